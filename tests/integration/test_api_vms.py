"""VMs, hosts and operations over HTTP, against the real control plane, log and read models."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from api_fixtures import Api, api, names, sse  # noqa: F401

from vmorch.core.ids import stream
from vmorch.core.operations.label import VmLabelled
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.engine.caller import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


SETUP = Caller(actor="setup", role="admin")


async def test_a_vm_is_created_watched_to_its_end_and_described(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    async with api.client("operator") as client:
        body = {"name": "web-1", "image": "debian-13", "memory": 512, "labels": {"app": "web"}}
        accepted = await client.post("/v1/vms", json=body, headers={"Vmorch-Reason": "größer".encode()})
        assert accepted.status_code == 202
        receipt = accepted.json()
        assert receipt["kind"] == "Accepted"
        assert receipt["name"] == "web-1"
        assert accepted.headers["Vmorch-Position"] == str(receipt["position"])

        states = []
        told: list[dict[str, Any]] = []
        finishing: asyncio.Task[None] | None = None
        async with client.stream("GET", f"/v1/operations/{receipt['operation']}/watch") as stream:
            assert stream.headers["Content-Type"].startswith("text/event-stream")
            async for event, operation, _ in sse(stream.aiter_lines()):
                if event == "vm":
                    told.append(operation)
                    continue
                assert event == "operation"
                states.append(operation["state"])
                if finishing is None:
                    finishing = asyncio.create_task(api.finish_operation(receipt["operation"]))
        assert finishing is not None
        await finishing
        assert states[0] == "running"
        assert states[-1] == "succeeded"

        shown = (await client.get("/v1/vms/web-1")).json()
        assert shown["kind"] == "Vm"
        assert (shown["item"]["state"], shown["item"]["host"]) == ("running", "hv-1")
        assert [vm["state"] for vm in told] == ["running"]
        operation = (await client.get(f"/v1/operations/{receipt['operation']}")).json()["item"]
        assert (operation["actor"], operation["reason"], operation["verb"]) == ("the-operator", "größer", "create")


async def test_a_dry_run_shows_the_plan_and_changes_nothing(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.enrol("hv-2")
    await api.add_image()
    async with api.client("operator") as client:
        await api.control.on_host("hv-2", "cordon", {"reason": "raid"}, SETUP)
        head = await api.log.head()
        body = {"name": "web-1", "image": "debian-13", "memory": 512}
        plan = (await client.post("/v1/vms?dryRun=true", json=body)).json()
        assert plan["kind"] == "Plan"
        assert plan["host"] == "hv-1"
        assert plan["position"] == head
        assert [(each["name"], each["fits"]) for each in plan["verdicts"]] == [("hv-1", True), ("hv-2", False)]
        assert plan["verdicts"][1]["reason"] == "cordoned (raid)"
        assert plan["steps"][:2] == ["image", "disk"]
        assert plan["spec"]["memory"] == 512
        assert await api.log.head() == head

        created = await api.create_vm()
        await api.finish_operation(created["operation"])
        stop = await client.post("/v1/vms/web-1/stop?dryRun=true", json={"grace": 5})
        assert stop.status_code == 200
        assert stop.json()["host"] == "hv-1"
        assert stop.json()["verdicts"] == []


async def test_snapshots_have_addresses_and_a_rollback_tells_beforehand_what_it_does(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    await api.finish_operation((await api.create_vm())["operation"])
    async with api.client("operator") as client:
        unknown = await client.post("/v1/vms/web-1/rollback?dryRun=true", json={"to": "before"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "no-such-snapshot")
        taken = await client.post("/v1/vms/web-1/snapshot", json={"name": "before", "description": "2.0"})
        assert taken.status_code == 202
        assert (await client.get("/v1/vms/web-1")).json()["item"]["state"] == "snapshotting"
        await api.finish_operation(taken.json()["operation"])

        head = await api.log.head()
        answer = await client.post("/v1/vms/web-1/rollback?dryRun=true", json={"to": "before"})
        assert answer.status_code == 200
        foreseen = answer.json()["rollback"]
        assert (foreseen["to"], foreseen["lost"], foreseen["stops"], foreseen["boots"]) == ("before", [], True, True)
        assert foreseen["memory"] == 512
        assert "safety-2" in foreseen["kept"][0]
        waived = {"to": "before", "safety_snapshot": False}
        answer = await client.post("/v1/vms/web-1/rollback?dryRun=true", json=waived)
        assert "the present state of vda" in answer.json()["rollback"]["lost"][0]
        stop = await client.post("/v1/vms/web-1/stop?dryRun=true")
        assert stop.json()["rollback"] is None
        assert await api.log.head() == head

    async with api.client("viewer") as client:
        at = {"minPosition": str(head)}
        listed = (await client.get("/v1/vms/web-1/snapshots", params=at)).json()
        assert (listed["kind"], names(listed["items"]), listed["next"]) == ("SnapshotList", ["before"], None)
        assert listed["items"][0]["current"]
        detail = (await client.get("/v1/vms/web-1/snapshots/before", params=at)).json()["item"]
        assert (detail["vm_name"], detail["description"], detail["children"]) == ("web-1", "2.0", [])
        missing = await client.get("/v1/vms/web-1/snapshots/after")
        assert (missing.status_code, missing.json()["code"]) == (404, "no-such-snapshot")
        in_list = (await client.get("/v1/vms", params=at)).json()["items"][0]
        assert (names(in_list["snapshots"]), in_list["layers_deep"], in_list["schedule"]) == (["before"], 2, None)
        refused = await client.post("/v1/vms/web-1/snapshot", json={})
        assert refused.status_code == 403


async def test_every_verb_of_the_registry_is_a_route_and_no_other(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    created = await api.create_vm()
    await api.finish_operation(created["operation"])
    async with api.client("operator") as client:
        labelled = await client.post("/v1/vms/web-1/label", json={"set": {"tier": "gold"}})
        assert labelled.status_code == 202
        assert labelled.json()["operation"] is None
        stopped = await client.post("/v1/vms/web-1/stop")
        assert stopped.status_code == 202
        assert stopped.json()["operation"]
        busy = await client.post("/v1/vms/web-1/start")
        assert (busy.status_code, busy.json()["code"]) == (409, "operation-in-flight")
        unknown = await client.post("/v1/vms/web-1/explode")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "no-such-verb")
        assert "stop" in unknown.json()["facts"]["verbs"]


async def test_the_same_request_id_gives_the_same_answer(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    async with api.client("operator") as client:
        body = {"name": "web-1", "image": "debian-13", "memory": 512}
        id = {"Vmorch-Request-Id": str(uuid4())}
        first, second = [await client.post("/v1/vms", json=body, headers=id) for _ in range(2)]
        assert first.status_code == second.status_code == 202
        assert first.json() == second.json()
        assert second.headers["Vmorch-Request-Id"] == id["Vmorch-Request-Id"]
        other = await client.post("/v1/vms", json={**body, "name": "web-2"}, headers=id)
        assert (other.status_code, other.json()["code"]) == (409, "request-reused")


async def test_an_operation_is_cancelled_once(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    created = await api.create_vm()
    async with api.client("operator") as client:
        path = f"/v1/operations/{created['operation']}/cancel"
        assert (await client.post(path)).status_code == 202
        assert (await client.get(path.removesuffix("/cancel"))).json()["item"]["state"] == "cancelling"
        again = await client.post(path)
        assert (again.status_code, again.json()["code"]) == (409, "already-so")
        missing = await client.post(f"/v1/operations/{uuid4()}/cancel")
        assert (missing.status_code, missing.json()["code"]) == (404, "no-such-operation")


async def test_lists_are_filtered_and_paged_to_the_end_without_repetition(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    for name in ("db-1", "web-1", "web-2", "web-3"):
        created = await api.create_vm(name)
        await api.finish_operation(created["operation"])
    async with api.client("viewer") as client:
        at = {"minPosition": str(await api.log.head())}
        page = (await client.get("/v1/vms", params={"name": "web-*", **at})).json()
        assert page["kind"] == "VmList"
        assert names(page["items"]) == ["web-1", "web-2", "web-3"]
        assert page["next"] is None
        assert page["asOf"]["position"] == await api.log.head()

        found: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = (await client.get("/v1/vms", params={"limit": "3", **after, **at})).json()
            found += names(page["items"])
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert found == ["db-1", "web-1", "web-2", "web-3"]

        running = (await client.get("/v1/operations", params={"active": "true"})).json()
        assert running["items"] == []
        over = (await client.get("/v1/operations", params={"active": "false", "vm": "db-1"})).json()
        assert [each["vm_name"] for each in over["items"]] == ["db-1"]


async def test_hosts_are_invited_enrolled_changed_and_retired(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    async with api.client() as client:
        cordoned = await client.post("/v1/hosts/hv-1/cordon", json={"reason": "raid"})
        assert cordoned.status_code == 202
        assert (await client.get("/v1/hosts/hv-1")).json()["item"]["state"] == "cordoned"
        assert (await client.post("/v1/hosts/hv-1/uncordon")).status_code == 202
        assert (await client.post("/v1/hosts/hv-1/label", json={"set": {"rack": "a"}})).status_code == 202
        assert (await client.post("/v1/hosts/hv-1/overcommit", json={"cpu": 2})).status_code == 202
        item = (await client.get("/v1/hosts/hv-1")).json()["item"]
        assert item["labels"] == {"rack": "a"}
        assert item["overcommit"]["cpu"] == 2
        listed = await client.get("/v1/hosts", params={"minPosition": str(await api.log.head())})
        assert names(listed.json()["items"]) == ["hv-1"]
        wrong = await client.post("/v1/hosts/hv-1/cordon", json={"reasons": "raid"})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "bad-request")
        assert (await client.post("/v1/hosts/hv-1/retire")).status_code == 202
        gone = await client.post("/v1/hosts/hv-1/cordon")
        assert (gone.status_code, gone.json()["code"]) == (404, "no-such-host")


async def test_a_used_or_unknown_enrolment_token_admits_nobody(api: Api) -> None:  # noqa: F811
    pair = await api.enrol("hv-1")
    async with api.client(None) as client:
        asked = {"token": "vmh_wrong", "key": pair.public, "machine_id": "m"}
        refused = await client.post("/v1/enroll", json=asked)
        assert (refused.status_code, refused.json()["code"]) == (403, "bad-token")
        for _ in range(12):
            refused = await client.post("/v1/enroll", json=asked)
        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-requests")


async def test_status_and_doctor_name_what_is_wrong(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    created = await api.create_vm()
    async with api.client("viewer") as client:
        status = (await client.get("/v1/status")).json()
        assert status["cluster"] == "test"
        assert status["version"] == "1.2.3"
        assert status["hosts"] == {"active": 1}
        assert status["vms"] == {"creating": 1}
        assert status["operations"] == 1
        assert status["postgres"]
        assert status["nats"]
        assert status["head"] == created["position"]
        checks = (await client.get("/v1/doctor")).json()["items"]
        assert {each["check"]: each["state"] for each in checks}["log"] == "ok"
        (api.images.directory / next(iter(api.images.digests()))).unlink()
        checks = (await client.get("/v1/doctor")).json()["items"]
        assert {each["check"]: each["state"] for each in checks}["images"] == "fail"


async def test_an_event_that_cannot_be_read_stops_its_stream_alone_and_is_told(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    await api.create_vm("web-1")
    await api.create_vm("web-2")
    await api.settle()
    one, two = (stream("vm", api.fleet.find_vm(name).id) for name in ("web-1", "web-2"))
    strange = NewEvent(
        kind="vm.from-the-future", schema=1, data=b"{}", meta=b'{"actor":"x","occurred_at":"2026-01-01T00:00:00Z"}'
    )
    part = StreamAppend(stream=one, expected=api.fleet.version(one), events=(strange,))
    at = (await api.log.append(Append(streams=(part,)))).last
    await api.record(two, VmLabelled(labels={"after": "all"}))
    await api.settle()
    async with api.client("viewer") as client:
        for each in (await client.get("/v1/projections")).json()["items"]:
            assert each["position"] == each["head"] == await api.log.head()
            assert list(each["poisoned"]) == [one]
            assert each["poisoned"][one].startswith(f"{at}: no event is called 'vm.from-the-future'")
        checks = {each["check"]: each for each in (await client.get("/v1/doctor")).json()["items"]}
        for name in ("projection read-models", "projection live-state"):
            assert checks[name]["state"] == "fail"
            assert "1 streams stand still" in checks[name]["detail"]
        assert (await client.get("/v1/vms/web-2")).json()["item"]["labels"] == {"after": "all"}
        assert (await client.get("/v1/vms/web-1")).json()["item"]["name"] == "web-1"
        assert (await client.get(f"/v1/events/{at}")).json()["item"]["kind"] == "vm.from-the-future"


async def test_read_models_are_rebuilt_to_the_same_lists(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.settle()
    async with api.client() as client:
        before = (await client.get("/v1/hosts")).json()["items"]
        assert (await client.post("/v1/projections/rebuild")).status_code == 200
        assert (await client.get("/v1/hosts")).json()["items"] == before
        lag = (await client.get("/v1/projections")).json()["items"]
        assert lag[0]["position"] == await api.log.head()

