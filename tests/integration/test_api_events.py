"""The log over HTTP: pages, single events, the growing end."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from api_fixtures import Api, api, sse  # noqa: F401

from vmorch.core.ids import Position, stream
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.edge.routes import events as routes
from vmorch.engine.caller import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


async def test_events_are_shown_as_stored_with_who_and_why(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    async with api.client() as client:
        done = await client.post("/v1/hosts/hv-1/cordon", json={"reason": "raid"}, headers={"Vmorch-Reason": "CHG-1"})
        position = done.json()["position"]
        item = (await client.get(f"/v1/events/{position}")).json()["item"]
        assert (item["kind"], item["subject_name"], item["data"]) == ("host.cordoned", "hv-1", {"reason": "raid"})
        assert (item["actor"], item["reason"]) == ("the-admin", "CHG-1")
        for missing in (position + 1, 0):
            response = await client.get(f"/v1/events/{missing}")
            assert (response.status_code, response.json()["code"]) == (404, "no-such-event")


async def test_pages_of_events_cover_the_log_once(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    head = await api.log.head()
    found: list[int] = []
    after = "0"
    async with api.client("viewer") as client:
        while True:
            page = (await client.get("/v1/events", params={"limit": "2", "after": after})).json()
            found += [each["position"] for each in page["items"]]
            if page["next"] is None:
                break
            after = page["next"]
    assert found == list(range(1, head + 1))


async def test_events_are_found_by_every_filter(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    created = await api.create_vm()
    await api.finish_operation(created["operation"])
    id = created["subject"]
    async with api.client("viewer") as client:

        async def kinds(**params: str) -> list[str]:
            response = await client.get("/v1/events", params=params)
            assert response.status_code == 200, response.text
            return [each["kind"] for each in response.json()["items"]]

        assert (await kinds(subject="vm/web-1"))[:2] == ["vm.created", "vm.operation-started"]
        assert await kinds(stream=f"vm/{id}") == await kinds(subject="vm/web-1") == await kinds(subject=f"vm/{id}")
        assert await kinds(kind="host.*ed", subject="host/hv-1") == [
            "host.invited", "host.enrolled", "host.session-started", "host.capacity-reserved",
        ]  # fmt: skip
        assert await kinds(kind="image.*") == ["image.added"]
        assert set(await kinds(actor="setup")) == {"token.created"}
        assert "vm.operation-started" in await kinds(operation=created["operation"])
        assert await kinds(correlation="nothing") == []
        now = datetime.now(UTC)
        assert await kinds(since=(now + timedelta(hours=1)).isoformat()) == []
        assert await kinds(until=(now - timedelta(hours=1)).isoformat()) == []
        assert len(await kinds(until=(now + timedelta(hours=1)).isoformat())) == await api.log.head()
        first = (await client.get("/v1/events/1")).json()["item"]["time"]
        assert len(await kinds(since=first)) == await api.log.head()
        limited = (await client.get("/v1/events", params={"subject": "vm/web-1", "limit": "1"})).json()
        assert len(limited["items"]) == 1
        assert limited["next"] == str(limited["items"][0]["position"])
        assert (await client.get("/v1/events", params={"subject": "vm/nothing"})).status_code == 404
        assert (await client.get("/v1/events", params={"subject": "cow/x"})).status_code == 400


async def test_a_rare_event_is_found_behind_many_others(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(routes, "_SCANNED", 3)
    monkeypatch.setattr(routes, "_BATCH", 2)
    await api.enrol("hv-1")
    async with api.client("viewer") as client:
        page = (await client.get("/v1/events", params={"kind": "host.session-started"})).json()
    assert [each["kind"] for each in page["items"]] == ["host.session-started"]


async def test_an_event_that_this_version_cannot_read_is_shown_all_the_same(api: Api) -> None:  # noqa: F811
    event = NewEvent(kind="vm.teleported", schema=9, data=b'{"to":"mars"}', meta=b'{"actor":"future"}')
    part = StreamAppend(stream=stream("vm", "1"), expected=0, events=(event,))
    appended = await api.log.append(Append(streams=(part,)))
    async with api.client("auditor") as client:
        item = (await client.get(f"/v1/events/{appended.last}")).json()["item"]
    assert (item["kind"], item["schema"], item["data"], item["actor"]) == ("vm.teleported", 9, {"to": "mars"}, "future")


async def test_the_tail_resumes_where_it_broke_off(api: Api) -> None:  # noqa: F811
    setup = Caller(actor="setup", role="admin")
    await api.enrol("hv-1")
    head = await api.log.head()

    async def follow(headers: dict[str, str], params: dict[str, str], number: int) -> list[tuple[str, str]]:
        found = []
        async with (
            asyncio.timeout(20),
            api.client("viewer") as client,
            client.stream("GET", "/v1/events/tail", headers=headers, params=params) as response,
        ):
            tell.set()
            async for name, event, id in sse(response.aiter_lines()):
                assert name == "event"
                assert str(event["position"]) == id
                found.append((event["kind"], id))
                if len(found) == number:
                    break
        return found

    tell = asyncio.Event()
    live = asyncio.create_task(follow({}, {}, 2))
    await tell.wait()
    await api.control.on_host("hv-1", "cordon", {}, setup)
    await api.control.on_host("hv-1", "uncordon", {}, setup)
    assert await live == [("host.cordoned", str(head + 1)), ("host.uncordoned", str(head + 2))]
    assert await follow({"Last-Event-ID": str(head + 1)}, {}, 1) == [("host.uncordoned", str(head + 2))]
    filtered = await follow({}, {"after": "0", "kind": "host.un*"}, 1)
    assert filtered == [("host.uncordoned", str(head + 2))]
    assert await api.log.head() == Position(head + 2)
