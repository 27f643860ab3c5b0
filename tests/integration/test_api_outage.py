"""The API while Postgres is away, and while it stops."""

import asyncio
import tempfile
import time
from pathlib import Path

import pytest
from api_fixtures import Api, api, api_over, sse  # noqa: F401
from databases import fresh_database, make_template

from vmorch.embedded import EmbeddedPostgres

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


async def test_without_postgres_every_answer_says_so_and_the_status_still_comes(service_directory: Path) -> None:
    with EmbeddedPostgres(service_directory / "short-lived") as server:
        make_template(server)
        databases = fresh_database(server)
        database = next(databases)
        with tempfile.TemporaryDirectory(prefix="vmorch-api-") as directory:
            async with api_over(database, Path(directory)) as running:
                await running.enrol("hv-1")
                await running.add_image()
                server.stop()
                async with running.client() as client:
                    for method, path in (
                        ("GET", "/v1/vms"),
                        ("GET", "/v1/events"),
                        ("GET", "/v1/projections"),
                        ("POST", "/v1/hosts/hv-1/cordon"),
                    ):
                        response = await client.request(method, path)
                        assert (response.status_code, response.json()["code"]) == (503, "log-unavailable"), path
                    status = await client.get("/v1/status")
                    assert (status.status_code, status.json()["postgres"]) == (200, False)
                    doctor = (await client.get("/v1/doctor")).json()["items"]
                    assert {each["check"]: each["state"] for each in doctor}["log"] == "fail"
                    # what is known is still shown
                    assert (await client.get("/v1/hosts/hv-1")).json()["item"]["name"] == "hv-1"
                server.start()


async def test_the_server_stops_in_time_although_somebody_watches(api: Api) -> None:  # noqa: F811
    async def follow(path: str) -> int:
        seen = 0
        async with api.client("viewer") as client, client.stream("GET", path) as response:
            listening.release()
            async for _ in sse(response.aiter_lines()):
                seen += 1
        return seen

    await api.enrol("hv-1")
    await api.add_image()
    created = await api.create_vm()
    listening = asyncio.Semaphore(0)
    watchers = [
        asyncio.create_task(follow("/v1/events/tail?after=0")),
        asyncio.create_task(follow(f"/v1/operations/{created['operation']}/watch")),
    ]
    for _ in watchers:
        await listening.acquire()
    began = time.monotonic()
    api.stop.set()
    await api.serving
    assert time.monotonic() - began < 5
    # both streams were ended, not broken off
    assert await asyncio.gather(*watchers)
    assert not api.socket.exists()
