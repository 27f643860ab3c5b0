"""Backups over HTTP: listed, described, restored, verified and deleted, and what is refused."""

from typing import Any

import pytest
from api_fixtures import Api, api, names  # noqa: F401  a fixture
from msgspec.structs import replace

from vmorch.core.aggregates.backup import BackupBegun, BackupMade, BackupVerified
from vmorch.core.aggregates.host import SessionStarted
from vmorch.core.backup import Saved, SavedDisk, Target
from vmorch.core.ids import BackupId, Digest, SessionId, VmId, stream

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TARGET = Target(name="main", id="7" * 32)


async def shelf(made: Api) -> VmId:
    """A VM `web-1` with the backups `one` and, on it, `two`; `three` was never made to its end."""
    await made.enrol("hv-1")
    host = made.fleet.find_host("hv-1")
    assert host.facts is not None
    facts = replace(host.facts, backup_targets={TARGET.name: TARGET.id}, networks=("lab",))
    await made.record(stream("host", host.id), SessionStarted(session=SessionId("session-2"), facts=facts))
    await made.add_image()
    accepted = await made.create_vm()
    await made.finish_operation(accepted["operation"])
    vm = made.fleet.find_vm("web-1")
    assert vm.spec is not None
    parent = None
    for number, name in enumerate(("one", "two", "three"), 1):
        id = BackupId(f"0000000{number}-0000-7000-8000-00000000000{number}")
        begun = BackupBegun(
            name=name, vm=vm.id, vm_name="web-1", spec=vm.spec, host=host.id, target=TARGET,
            quality="crash-consistent", parent=parent,
        )  # fmt: skip
        await made.record(stream("backup", id), begun)
        if name == "three":
            continue
        size = vm.spec.disks[0].size << 30
        disk = SavedDisk(name="vda", size=size, bytes=1000, sha256=Digest("a" * 64), content=Digest("b" * 64))
        saved = Saved(backup=id, kind="incremental" if parent else "full", disks=(disk,), why="")
        await made.record(stream("backup", id), BackupMade(saved=saved))
        parent = id
    return vm.id


async def items(client: Any, path: str) -> list[dict[str, Any]]:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def test_backups_are_listed_newest_first_chosen_and_paged(api: Api) -> None:  # noqa: F811
    vm = await shelf(api)
    async with api.client("viewer") as client:
        assert names(await items(client, "/v1/backups")) == ["three", "two", "one"]
        assert names(await items(client, "/v1/backups?name=t*&vm=web-1")) == ["three", "two"]
        assert await items(client, "/v1/backups?vm=other") == []
        assert names(await items(client, f"/v1/vms/{vm}/backups")) == ["three", "two", "one"]
        first = (await client.get("/v1/vms/web-1/backups?limit=2")).json()
        assert names(first["items"]) == ["three", "two"]
        assert names(await items(client, f"/v1/vms/web-1/backups?after={first['next']}")) == ["one"]
        two = (await client.get("/v1/backups/two")).json()["item"]
        assert (two["state"], two["parent"], two["chain"]) == ("whole", "one", ["one", "two"])
        assert (await client.get(f"/v1/backups/{two['id'][:8]}")).json()["item"] == two
        assert (await client.get("/v1/backups/three")).json()["item"]["state"] == "unfinished"
        assert (await client.get("/v1/backups/four")).json()["code"] == "no-such-backup"
        assert (await client.post("/v1/backups/two/verify", json={})).status_code == 403


async def test_the_log_is_read_by_the_name_of_a_backup(api: Api) -> None:  # noqa: F811
    await shelf(api)
    async with api.client("viewer") as client:
        found = await items(client, "/v1/events?subject=backup/one")
    assert [each["kind"] for each in found] == ["backup.begun", "backup.made"]
    assert found[0]["subject_name"] == "one"


async def test_a_restore_is_foreseen_and_begun(api: Api) -> None:  # noqa: F811
    await shelf(api)
    async with api.client("operator") as client:
        plan = (await client.post("/v1/backups/two/restore?dryRun=true", json={"name": "again"})).json()
        assert (plan["kind"], plan["host"]) == ("Plan", "hv-1")
        assert plan["steps"] == ["restore disk", "seed", "define", "start", "ready"]
        accepted = (await client.post("/v1/backups/two/restore", json={"name": "again"})).json()
        assert accepted["name"] == "again"
        assert (await client.get("/v1/vms/again")).json()["item"]["state"] == "restoring"
        for body, code in (
            ({"name": "again"}, "name-taken"), ({"name": "x", "host": "hv-9"}, "no-host-fits"),
            ({"name": "../x"}, "bad-name"), ({}, "bad-request"), ({"name": "x", "to": "y"}, "bad-request"),
        ):  # fmt: skip
            refused = await client.post("/v1/backups/two/restore", json=body)
            assert refused.json()["code"] == code, refused.text
        assert (await client.post("/v1/backups/three/restore", json={"name": "x"})).json()["code"] == "backup-broken"


async def test_a_backup_that_others_need_is_not_deleted(api: Api) -> None:  # noqa: F811
    await shelf(api)
    async with api.client("operator") as client:
        refused = (await client.post("/v1/backups/one/delete", json={})).json()
        assert (refused["code"], refused["facts"]) == ("backup-needed", {"backups": ["two", "three"]})
        accepted = (await client.post("/v1/backups/three/delete", json={})).json()
        assert (await client.get("/v1/backups/three")).json()["item"]["state"] == "deleting"
        await api.finish_operation(accepted["operation"], power="absent")
        assert names(await items(client, "/v1/backups")) == ["two", "one"]


async def test_doctor_names_backups_that_are_of_no_use(api: Api) -> None:  # noqa: F811
    await shelf(api)
    two = api.fleet.find_backup("two")
    await api.record(stream("backup", two.id), BackupVerified(by="compare", ok=False, why="vda differs"))
    async with api.client() as client:
        found = {each["check"]: each for each in await items(client, "/v1/doctor")}
    assert (found["backup two"]["state"], found["backup three"]["state"]) == ("fail", "warn")
    assert "vda differs" in found["backup two"]["detail"]
    assert "backup one" not in found
