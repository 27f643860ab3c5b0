"""A link to a real NATS server: how it is lost, and how it comes back."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bus_fixtures import CLUSTER, Broker, a_broker, free_port, until

from vmorch.bus import BusUnavailable, RequestTimeout, to_nobody, to_sending_host
from vmorch.bus.connection import apart
from vmorch.bus.credentials import account_jwts, nats_config, operator_jwt
from vmorch.bus.keys import create
from vmorch.bus.link import Link, UnsafeBroker
from vmorch.core.ids import HostId
from vmorch.embedded import EmbeddedNats
from vmorch.wire import subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

H1 = HostId("h1")
COMMAND = subjects.command(CLUSTER, H1)
REPORT = subjects.report(CLUSTER, H1)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    yield from a_broker(tmp_path)


async def echo(subject: str, reply: str, data: bytes) -> bytes:
    return data


async def test_a_cancellation_that_the_library_takes_for_nothing_is_heeded() -> None:
    begun = asyncio.Event()

    async def deaf() -> None:
        # as nats-py when what it waits for comes in the same moment
        with suppress(asyncio.CancelledError):
            begun.set()
            await asyncio.Event().wait()

    async def calling() -> None:
        await apart(deaf())
        await asyncio.Event().wait()

    task = asyncio.create_task(calling())
    await begun.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=10)
    assert done
    assert task.cancelled()


async def test_a_host_whose_credential_expired_is_disconnected_until_it_is_renewed(broker: Broker) -> None:
    server, pair = await broker.control_plane(), create("user")
    await server.serve(subjects.reports(CLUSTER), echo, reply_allowed=to_sending_host)
    newest = broker.host_jwt("h1", pair, timedelta(seconds=2))
    states: list[bool] = []
    said: list[str] = []
    host = await Link.connect(
        broker.url, "h1", lambda: newest, pair, subjects.inbox(H1), states.append, said.append
    )
    assert await host.request(REPORT, b"fact", 5) == b"fact"
    await until(lambda: states == [True, False])
    await until(lambda: any("authorization violation" in text.lower() for text in said))
    assert not host.connected
    with pytest.raises(BusUnavailable):
        await host.request(REPORT, b"fact", 5)
    newest = broker.host_jwt("h1", pair)
    await until(lambda: states == [True, False, True])
    assert await host.request(REPORT, b"fact", 5) == b"fact"
    await host.close()
    await server.close()


async def test_a_link_survives_any_number_of_kills_of_the_server(broker: Broker) -> None:
    server, host = await broker.control_plane(), await broker.host("h1")
    await server.serve(subjects.reports(CLUSTER), echo, reply_allowed=to_sending_host)
    for n in range(3):
        broker.kill()
        await until(lambda: not host.connected and not server.connected)
        with pytest.raises(BusUnavailable):
            await host.request(REPORT, b"late", 60)
        broker.restart()
        await until(lambda: host.connected and server.connected, within=30)
        assert await host.request(REPORT, b"%d" % n, 5) == b"%d" % n
    await host.close()
    await server.close()


async def test_a_server_that_shows_no_sign_of_life_is_given_up_within_six_seconds(broker: Broker) -> None:
    server, host = await broker.control_plane(), await broker.host("h1")
    await server.serve(subjects.reports(CLUSTER), echo, reply_allowed=to_sending_host)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        frozen = time.monotonic()
        with pytest.raises(RequestTimeout):
            await host.request(REPORT, b"fact", 60)
        await until(lambda: not host.connected and not server.connected)
        assert time.monotonic() - frozen < 6.5
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    await until(lambda: host.connected and server.connected, within=30)
    assert await host.request(REPORT, b"fact", 5) == b"fact"
    await host.close()
    await server.close()


async def test_a_link_begun_before_its_server_connects_once_that_is_there(broker: Broker) -> None:
    broker.kill()
    states: list[bool] = []
    server = await broker.control_plane(states.append)
    assert not server.connected
    await server.serve(subjects.reports(CLUSTER), echo, reply_allowed=to_sending_host)
    broker.restart()
    host = await broker.host("h1")
    await until(lambda: server.connected and host.connected)
    assert states == [True]
    assert await host.request(REPORT, b"fact", 5) == b"fact"
    await host.close()
    await server.close()


async def test_a_link_without_a_server_can_be_closed(broker: Broker) -> None:
    broker.kill()
    server = await broker.control_plane()
    async with asyncio.timeout(3):
        await server.close()


async def test_a_forbidden_subject_is_an_error_told_and_the_link_lives_on(broker: Broker) -> None:
    said: list[str] = []
    server, host = await broker.control_plane(), await broker.host("h1", on_error=said.append)
    await server.serve(subjects.reports(CLUSTER), echo, reply_allowed=to_sending_host)
    await host.publish("vmorch.c.host.h2.report", b"")
    await host.serve("vmorch.c.host.h2.command", echo, reply_allowed=to_nobody)
    await until(lambda: len(said) == 2)
    assert "publish" in said[0].lower()
    assert "subscription" in said[1].lower()
    assert await host.request(REPORT, b"fact", 5) == b"fact"
    await host.close()
    await server.close()


@asynccontextmanager
async def a_server_that_says(info: dict[str, object]) -> AsyncIterator[str]:
    """A server of another make, which accepts everybody; its url."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        with suppress(ConnectionResetError):
            while line := await reader.readline():
                if line == b"PING\r\n":
                    writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"nats://127.0.0.1:{port}"


async def connect(url: str) -> Link:
    return await Link.connect(url, "h1", lambda: "jwt", create("user"), subjects.inbox(H1))


async def test_a_server_older_than_2_14_is_refused() -> None:
    for version in ("2.13.9", "2.9.25", "1.4.1"):
        async with a_server_that_says({"version": version, "auth_required": True, "nonce": "n"}) as url:
            with pytest.raises(UnsafeBroker, match=r"older than 2\.14"):
                await connect(url)


async def test_a_server_that_lets_anybody_in_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "open.conf"
    config.write_text(f'listen: "127.0.0.1:{free_port()}"\n')
    with EmbeddedNats(tmp_path, config) as server, pytest.raises(UnsafeBroker, match="no credentials"):
        await connect(server.url)


async def test_the_configuration_can_have_a_store(broker: Broker, tmp_path: Path) -> None:
    pair, now = create("user"), datetime.now(UTC)
    config = tmp_path / "store.conf"
    config.write_text(
        nats_config(
            f"127.0.0.1:{free_port()}",
            operator_jwt(broker.keys, now),
            account_jwts(broker.keys, CLUSTER, now),
            tmp_path / "store",
        )
    )
    with EmbeddedNats(tmp_path / "second", config) as server:
        link = await Link.connect(
            server.url, "h1", lambda: broker.host_jwt("h1", pair), pair, subjects.inbox(H1)
        )
        assert link.connected
        await link.close()
    assert "jetstream" in (tmp_path / "second" / "nats.log").read_text().lower()
