"""Plans, drains and budgets over HTTP, against the real control plane, log and read models."""

import asyncio
from typing import Any

import httpx2
import pytest
from api_fixtures import Api, api, sse  # noqa: F401

from vmorch.core.ids import stream
from vmorch.core.operations.evict import EvictionSet

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


async def vm_on(made: Api, host: str, name: str, eviction: str = "live") -> None:
    """A VM that runs on this host."""
    async with made.client() as client:
        body = {
            "name": name,
            "image": "debian-13",
            "memory": 512,
            "placing": {"host": host},
            "eviction": eviction,
            "labels": {"app": "web"},
        }
        receipt = (await client.post("/v1/vms", json=body)).json()
    await made.finish_operation(receipt["operation"])


async def two_hosts(made: Api) -> None:
    await made.enrol("hv-1")
    await made.enrol("hv-2")
    await made.add_image()


async def planned(client: httpx2.AsyncClient, *hosts: str, **fields: Any) -> str:
    answer = await client.post("/v1/drains", json={"hosts": list(hosts), **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["subject"])


async def test_a_plan_is_stored_shown_listed_and_discarded(api: Api) -> None:  # noqa: F811
    await two_hosts(api)
    await vm_on(api, "hv-1", "web-1")
    await vm_on(api, "hv-1", "pet-1", eviction="stop")
    async with api.client() as client:
        id = await planned(client, "hv-1")
        shown = (await client.get(f"/v1/drains/{id}")).json()
        assert shown["kind"] == "Drain"
        lines = {line["name"]: line for line in shown["item"]["lines"]}
        assert (lines["pet-1"]["state"], lines["pet-1"]["how"]) == ("planned", "stop")
        assert lines["web-1"]["state"] == "blocked"
        assert {cause["why"] for cause in lines["web-1"]["causes"]} >= {
            "its agent says no address for guests to come to"
        }
        assert shown["item"]["touched"] == []
        listed = (await client.get("/v1/drains?started=false&state=planned")).json()
        assert [(each["id"], each["vms"]) for each in listed["items"]] == [(id, {"blocked": 1, "planned": 1})]
        assert (await client.get("/v1/drains?started=true")).json()["items"] == []
        assert (await client.get("/v1/hosts/hv-1")).json()["item"]["state"] == "active"
        assert (await client.post(f"/v1/drains/{id}/discard")).status_code == 202
        refused = await client.post(f"/v1/drains/{id}/apply", json={})
        assert (refused.status_code, refused.json()["code"]) == (409, "already-over")


async def test_what_is_blocked_or_stale_is_named_in_the_refusal(api: Api) -> None:  # noqa: F811
    await two_hosts(api)
    await vm_on(api, "hv-1", "web-1")
    async with api.client() as client:
        blocked = await client.post("/v1/drains", json={"hosts": ["hv-1"], "start": True})
        assert (blocked.status_code, blocked.json()["code"]) == (409, "drain-blocked")
        assert "web-1" in blocked.json()["facts"]
        id = await planned(client, "hv-1", on_blocked="skip")
        vm = api.fleet.find_vm("web-1")
        await api.record(stream("vm", vm.id), EvictionSet(eviction="stop"))
        stale = await client.post(f"/v1/drains/{id}/apply", json={})
        assert (stale.status_code, stale.json()["code"]) == (409, "plan-stale")
        assert list(stale.json()["facts"].values()) == ["vm.eviction-set  vm/web-1  host:test"]
        touched = (await client.get(f"/v1/drains/{id}")).json()["item"]["touched"]
        assert [each["kind"] for each in touched] == ["vm.eviction-set"]
        applied = await client.post(f"/v1/drains/{id}/apply", json={"rebase": True})
        assert applied.status_code == 202, applied.text
        assert (await client.get("/v1/hosts/hv-1")).json()["item"]["state"] == "draining"


async def test_a_drain_is_watched_to_its_end(api: Api) -> None:  # noqa: F811
    await two_hosts(api)
    await vm_on(api, "hv-1", "pet-1", eviction="stop")
    async with api.client() as client:
        id = await planned(client, "hv-1", start=True)
        driving = [asyncio.create_task(api.control.reconcile.run()), asyncio.create_task(_stop_all(api))]
        states = []
        async with client.stream("GET", f"/v1/drains/{id}/watch") as stream_:
            async for event, drain, _ in sse(stream_.aiter_lines()):
                assert event == "drain"
                states.append((drain["state"], drain["lines"][0]["state"]))
        for task in driving:
            task.cancel()
        assert states[-1] == ("done", "stopped")
        listed = (await client.get("/v1/drains?active=false&started=true")).json()["items"]
        assert [(each["id"], each["state"]) for each in listed] == [(id, "done")]


async def _stop_all(made: Api) -> None:
    """Be the hosts: every VM that is asked to stop does."""
    while True:
        for vm in list(made.fleet.vms.values()):
            if vm.active is not None:
                await made.finish_operation(vm.active, power="off")
        await asyncio.sleep(0.02)


async def test_a_drain_that_is_cancelled_is_ending(api: Api) -> None:  # noqa: F811
    await two_hosts(api)
    await vm_on(api, "hv-1", "pet-1", eviction="stop")
    async with api.client() as client:
        id = await planned(client, "hv-1", start=True)
        assert (await client.post(f"/v1/drains/{id[-8:]}/cancel")).status_code == 202
        assert (await client.get(f"/v1/drains/{id}")).json()["item"]["state"] in ("ending", "cancelled")
        again = await client.post(f"/v1/drains/{id}/cancel")
        assert again.status_code == 409


async def test_a_budget_is_made_shown_and_deleted(api: Api) -> None:  # noqa: F811
    await two_hosts(api)
    await vm_on(api, "hv-1", "web-1")
    async with api.client("operator") as client:
        body = {"name": "web", "selector": {"app": "web"}, "max_unavailable": 2}
        assert (await client.post("/v1/budgets", json=body)).status_code == 201
        taken = await client.post("/v1/budgets", json=body)
        assert (taken.status_code, taken.json()["code"]) == (409, "name-taken")
        shown = (await client.get("/v1/budgets/web")).json()["item"]
        assert (shown["vms"], shown["away"], shown["max_unavailable"]) == (1, [], 2)
        assert [each["name"] for each in (await client.get("/v1/budgets?name=w*&limit=5")).json()["items"]] == ["web"]
        assert (await client.post("/v1/budgets/web/delete")).status_code == 202
        assert (await client.get("/v1/budgets/web")).status_code == 404
        for bad in ({"name": "all", "selector": {}}, {"name": "none", "selector": {"a": "b"}, "max_unavailable": 0}):
            assert (await client.post("/v1/budgets", json=bad)).status_code == 400


async def test_an_activated_host_takes_vms_again(api: Api) -> None:  # noqa: F811
    await two_hosts(api)
    async with api.client() as client:
        assert (await client.post("/v1/hosts/hv-1/cordon", json={"reason": "raid"})).status_code == 202
        assert (await client.post("/v1/hosts/hv-1/activate", json={})).status_code == 202
        assert (await client.get("/v1/hosts/hv-1")).json()["item"]["state"] == "active"
        again = await client.post("/v1/hosts/hv-1/activate", json={})
        assert (again.status_code, again.json()["code"]) == (409, "already-so")


async def test_a_maintenance_is_foreseen_begun_shown_and_cancelled(api: Api) -> None:  # noqa: F811
    await two_hosts(api)
    async with api.client() as client:
        body = {"hosts": ["hv-1", "hv-2"], "at_once": 2}
        plan = (await client.post("/v1/maintenances?dryRun=true", json=body)).json()
        assert [group["hosts"] for group in plan["groups"]] == [["hv-1", "hv-2"]]
        assert (await client.get("/v1/maintenances")).json()["items"] == []
        id = (await client.post("/v1/maintenances", json={"hosts": ["hv-1"]})).json()["subject"]
        driving = asyncio.create_task(api.control.reconcile.run())
        try:
            phases = []
            async with client.stream("GET", f"/v1/maintenances/{id}/watch") as stream_:
                async for event, found, _ in sse(stream_.aiter_lines()):
                    assert event == "maintenance"
                    phases.append(found["hosts"][0]["phase"])
                    if phases[-1] == "preparing":
                        break
            assert (await client.get("/v1/hosts/hv-1")).json()["item"]["state"] == "maintenance"
            shown = (await client.get(f"/v1/maintenances/{id}")).json()["item"]
            assert shown["hosts"][0]["waits_for"].startswith("hv-1")
            refused = await client.post("/v1/hosts/hv-1/maintenance-done")
            assert (refused.status_code, refused.json()["code"]) == (409, "not-open")
            again = await client.post("/v1/drains", json={"hosts": ["hv-1"], "start": True})
            assert (again.status_code, again.json()["code"]) == (409, "in-maintenance")
            assert (await client.post(f"/v1/maintenances/{id}/cancel", json={})).status_code == 202
            listed = (await client.get("/v1/maintenances?active=true")).json()["items"]
            assert [(each["id"], each["state"]) for each in listed] == [(id, "cancelling")]
            names = [check["check"] for check in (await client.get("/v1/doctor")).json()["items"]]
            assert f"maintenance {id}" in names
        finally:
            driving.cancel()


async def test_only_admins_drain_and_a_drain_of_nothing_is_refused(api: Api) -> None:  # noqa: F811
    async with api.client("operator") as client:
        assert (await client.post("/v1/drains", json={"hosts": ["hv-1"]})).status_code == 403
    async with api.client() as client:
        for body, status in (({"hosts": []}, 400), ({}, 400), ({"hosts": ["nowhere"]}, 404)):
            assert (await client.post("/v1/drains", json=body)).status_code == status
        assert (await client.get("/v1/drains/none-such")).status_code == 404
