"""Any moment over HTTP: reads as of then, and plans made on what there was then."""

from typing import Any

import pytest
from api_fixtures import Api, api, names  # noqa: F401

from vmorch.edge.table import ROUTES

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

NOT_OF_THE_PAST = {
    "/healthz", "/v1/errors", "/v1/schemas", "/v1/schemas/{kind}", "/v1/doctor", "/v1/projections", "/v1/whoami",
    "/v1/events/tail", "/v1/events/{position}", "/v1/hosts/{ref}/credentials", "/v1/certificates/revoked",
    "/v1/images/{digest}/content", "/v1/events/{position}/causes", "/v1/why/{kind}/{ref}", "/v1/audit/status",
    "/v1/audit/checkpoint", "/v1/audit/consistency", "/v1/audit/inclusion/{position}", "/v1/audit/export",
    "/v1/audit/replay",
}  # fmt: skip
"""What does not answer from the state but from the log, follows it, or tells of this server now."""


def test_every_read_of_the_state_takes_a_moment() -> None:
    without = {
        route.path
        for route in ROUTES
        if route.method == "GET"
        and not route.path.endswith("/watch")
        and not {"asOf", "from"} & {each.name for each in route.parameters}
    }
    assert without - NOT_OF_THE_PAST == set()


async def get(api: Api, path: str, **query: Any) -> Any:  # noqa: F811
    async with api.client("viewer") as client:
        answer = await client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def test_the_past_answers_as_it_did_when_it_was_the_present(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    first = await api.create_vm("web-1")
    await api.finish_operation(first["operation"])
    paths = [
        "/v1/vms", "/v1/vms/web-1", "/v1/vms/web-1/snapshots", "/v1/hosts", "/v1/hosts/hv-1", "/v1/images",
        "/v1/images/debian-13", "/v1/tokens", "/v1/operations", f"/v1/operations/{first['operation']}", "/v1/drains",
        "/v1/maintenances", "/v1/budgets", "/v1/cluster",
    ]  # fmt: skip
    await api.settle()
    shown = {path: await get(api, path) for path in paths}
    then = shown["/v1/vms"]["asOf"]["position"]
    status = await get(api, "/v1/status")

    async with api.client() as client:
        gone = (await client.post("/v1/vms/web-1/delete", json={})).json()
        await api.finish_deletion(gone["operation"])
        await client.post("/v1/hosts/hv-1/cordon", json={"reason": "DIMM"})
        await client.post("/v1/drains", json={"hosts": ["hv-1"]})
        await client.post("/v1/budgets", json={"name": "web", "selector": {"app": "web"}, "max_unavailable": 1})
        await client.patch("/v1/cluster", json={"migrations": 3})
        assert (await client.get("/v1/vms/web-1")).status_code == 404

    for path in paths:
        assert await get(api, path, asOf=f"@{then}") == shown[path], path
    at = shown["/v1/vms"]["asOf"]["time"]
    assert (await get(api, "/v1/vms/web-1", asOf=at))["item"]["state"] == "running"
    past = await get(api, "/v1/status", asOf=f"@{then}")
    assert (past["hosts"], past["vms"], past["asOf"]) == (status["hosts"], status["vms"], status["asOf"])
    assert (await get(api, "/v1/vms", asOf="@0"))["items"] == []
    assert (await get(api, "/v1/vms", asOf="now"))["items"] == []
    events = (await get(api, "/v1/events", asOf=f"@{then}"))["items"]
    assert events[-1]["position"] == then


@pytest.mark.parametrize(
    ("moment", "code"),
    [("@999999", "future-moment"), ("2999-01-01T00:00:00Z", "future-moment"), ("soon", "bad-moment")],
)
async def test_a_moment_that_is_none_is_refused(api: Api, moment: str, code: str) -> None:  # noqa: F811
    async with api.client("viewer") as client:
        for path in ("/v1/vms", "/v1/vms/web-1", "/v1/cluster", "/v1/events"):
            answer = await client.get(path, params={"asOf": moment})
            assert (answer.status_code, answer.json()["code"]) == (400, code)


async def test_a_plan_can_be_made_on_the_past_and_leaves_no_trace(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.enrol("hv-2")
    await api.add_image()
    created = await api.create_vm("web-1")
    await api.finish_operation(created["operation"])
    async with api.client() as client:
        await client.patch("/v1/cluster", json={"clear_migration": True})
    then = await api.log.head()
    home = api.fleet.hosts[next(iter(api.fleet.vms.values())).host].name  # type: ignore[index]
    other = {"hv-1": "hv-2", "hv-2": "hv-1"}[home]
    async with api.client() as client:
        await client.post(f"/v1/hosts/{other}/cordon", json={})
        await client.post(f"/v1/hosts/{home}/cordon", json={})
        head = await api.log.head()
        wanted = {"name": "web-2", "image": "debian-13", "memory": 512}
        what_if = {"dryRun": "true", "asOf": f"@{then}"}

        now = await client.post("/v1/vms", params={"dryRun": "true"}, json=wanted)
        assert now.json()["code"] == "no-host-fits"
        plans = [(await client.post("/v1/vms", params=what_if, json=wanted)).json() for _ in range(2)]
        assert plans[0]["host"] in ("hv-1", "hv-2")
        assert plans[0]["position"] == then
        assert plans[0]["host"] == plans[1]["host"]
        assert plans[0]["verdicts"] == plans[1]["verdicts"]

        emptying = {"hosts": [home], "copy_disks": True}
        drained = [(await client.post("/v1/drains", params=what_if, json=emptying)).json() for _ in range(2)]
        assert drained[0]["asOf"]["position"] == then
        today = (await client.post("/v1/drains", params={"dryRun": "true"}, json=emptying)).json()
        causes = [[why["why"] for why in plan["item"]["lines"][0]["causes"]] for plan in (drained[0], today)]
        assert causes[0] != causes[1]
        assert drained[0]["item"]["lines"] == drained[1]["item"]["lines"]

        stopped = (await client.post("/v1/vms/web-1/stop", params=what_if, json={})).json()
        assert stopped["steps"]
        for path, body in (("/v1/vms", wanted), ("/v1/drains", emptying), ("/v1/vms/web-1/stop", {})):
            refused = await client.post(path, params={"asOf": f"@{then}"}, json=body)
            assert (refused.status_code, refused.json()["code"]) == (400, "bad-request")
        assert await api.log.head() == head


async def test_a_difference_names_the_event_that_made_it(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    created = await api.create_vm("web-1")
    await api.finish_operation(created["operation"])
    then = await api.log.head()
    async with api.client("operator") as client:
        why = {"Vmorch-Reason": "CHG-7"}
        for labels in ({"app": "web"}, {"app": "shop"}):
            done = await client.post("/v1/vms/web-1/label", json={"set": labels}, headers=why)
            assert done.status_code == 202
        await client.post("/v1/vms/web-1/rename", json={"name": "web-2"})
    async with api.client() as client:
        await client.post("/v1/hosts/hv-1/cordon", json={"reason": "DIMM"})
    head = await api.log.head()

    found = await get(api, "/v1/diff", **{"from": f"@{then}", "subject": "vm/web-2"})
    assert (found["from"], found["to"]) == (then, head)
    [vm] = found["items"]
    assert (vm["name"], vm["change"]) == ("web-2", "changed")
    fields = {change["field"]: change for change in vm["fields"]}
    assert set(fields) == {"labels.app", "name"}
    label = fields["labels.app"]
    assert (label["before"], label["after"], label["times"]) == (None, "shop", 2)
    assert (label["event"], label["actor"], label["reason"]) == ("vm.labelled", "the-operator", "CHG-7")
    shown = await get(api, f"/v1/events/{label['position']}")
    assert shown["item"]["kind"] == "vm.labelled"

    everything = await get(api, "/v1/diff", **{"from": f"@{then}"})
    assert [(each["subject"].partition("/")[0], each["name"]) for each in everything["items"]] == [
        ("host", "hv-1"),
        ("vm", "web-2"),
    ]
    assert everything["items"][1] == vm
    # the same by the name that it had, and by a label that it has now
    assert (await get(api, "/v1/diff", **{"from": f"@{then}", "to": f"@{head}", "label": "app=shop"}))["items"] == [vm]
    assert (await get(api, "/v1/diff", **{"from": f"@{then}", "to": f"@{then}"}))["items"] == []
    born = await get(api, "/v1/diff", **{"from": "@0", "to": f"@{then}", "subject": "vm/web-1"})
    assert born["items"][0]["change"] == "created"
    async with api.client("viewer") as client:
        backwards = await client.get("/v1/diff", params={"from": f"@{head}", "to": f"@{then}"})
        assert backwards.json()["code"] == "bad-request"
        assert (await client.get("/v1/diff")).json()["code"] == "bad-request"
        nobody = await client.get("/v1/diff", params={"from": "@1", "subject": "vm/nobody"})
        assert nobody.json()["code"] == "no-such-vm"


async def test_a_replay_finds_nothing_in_what_was_folded_rightly(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image()
    created = await api.create_vm("web-1")
    await api.finish_operation(created["operation"])
    await api.settle()
    async with api.client("auditor") as client:
        done = (await client.get("/v1/audit/replay", params={"verify": "true"})).json()["item"]
        assert (done["total"], done["differences"], done["unreadable"]) == (0, [], {})
        assert (done["position"], done["events"]) == (await api.log.head(), await api.log.head())
        assert done["live"] is True
        assert done["rows"] >= 7
        # that it was read is an event too
        again = (await client.get("/v1/audit/replay", params={"to": f"@{done['position']}"})).json()["item"]
        assert again["digest"] == done["digest"]
        assert again["verified"] is False
        earlier = (await client.get("/v1/audit/replay", params={"to": "@3"})).json()["item"]
        assert (earlier["position"], earlier["rows"]) == (3, None)
    async with api.client("viewer") as client:
        assert (await client.get("/v1/audit/replay")).status_code == 403
