"""Backups through the log, with agents on simulated hosts: what a guest wrote is in a VM that is made from one."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from vmorch.core.aggregates.backup import Backup
from vmorch.core.aggregates.vm import Operation
from vmorch.core.hostcommands import Failed
from vmorch.core.hypervisor import LibvirtHost, content, written
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.verify_backup import ProveBackup
from vmorch.engine.handle import BackupCommand

pytestmark = pytest.mark.anyio

TARGET = "9" * 32


class Shelf:
    """The VM `web`, and its backups in a target that both hosts see."""

    def __init__(self, made: Cluster) -> None:
        self.made = made

    def on(self, vm: str) -> LibvirtHost:
        found = self.made.vm(vm)
        assert found.host is not None
        return self.made.host(self.made.fleet.hosts[found.host].name).hypervisor.host

    def write(self, byte: int) -> None:
        found = self.made.vm("web")
        assert found.host is not None
        name = self.made.fleet.hosts[found.host].name
        self.made.host(name).hypervisor.tamper(lambda host: written(host, found.id, "vda", 0, byte))

    def read(self, vm: str) -> int:
        found = self.made.vm(vm)
        assert found.spec is not None
        return content(self.on(vm), found.id, found.spec.disks[0])[0]

    async def take(self, name: str) -> Backup:
        operation = await self.made.do("web", BackUpVm(name=name))
        assert operation.outcome == "succeeded", operation
        return self.made.fleet.find_backup(name)

    async def ask(self, name: str, command: BackupCommand) -> Operation:
        accepted = await self.made.control.on_backup(name, command, OPERATOR)
        assert accepted.operation is not None
        return await self.made.over(accepted.operation)


async def shelf_of(made: Cluster) -> Shelf:
    accepted = await made.create("web", storage="shared")
    assert accepted.operation is not None
    assert (await made.over(accepted.operation)).outcome == "succeeded"
    return Shelf(made)


async def test_a_vm_is_made_again_from_its_backups_after_it_has_moved_and_is_gone(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        shelf = await shelf_of(made)
        shelf.write(1)
        await shelf.take("one")
        shelf.write(2)
        assert (await made.do("web", MigrateVm())).outcome == "succeeded"
        two = await shelf.take("two")
        assert two.saved is not None
        assert (two.saved.kind, two.parent) == ("incremental", made.fleet.find_backup("one").id)
        assert (await shelf.ask("two", ProveBackup(boot=True))).outcome == "succeeded"
        assert (await made.do("web", DeleteVm())).outcome == "succeeded"
        for name, byte in (("one", 1), ("two", 2)):
            operation = await shelf.ask(name, RestoreBackup(name=f"from-{name}"))
            assert operation.outcome == "succeeded", operation
            assert shelf.read(f"from-{name}") == byte
            assert made.vm(f"from-{name}").power == "running"
        assert (await shelf.ask("one", DeleteBackup(with_children=True))).outcome == "succeeded"
        assert not made.fleet.backups
        assert all(not host.hypervisor.host.backups[TARGET] for host in made.hosts.values())


async def test_a_daemon_that_ends_in_the_middle_costs_nothing_but_time(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf, hypervisor = await shelf_of(made), made.host("h1").hypervisor
        await shelf.take("one")
        for when in ("lost-before", "lost-after"):
            shelf.write(7)
            hypervisor.vanish_at_next(when, "host.take-backup")  # type: ignore[arg-type]
            accepted = await made.control.on_vm("web", BackUpVm(name=when), OPERATOR)
            assert accepted.operation is not None
            await until(lambda: not hypervisor.here)
            hypervisor.come_back()
            assert (await made.over(accepted.operation)).outcome == "succeeded"
            found = made.fleet.find_backup(when)
            assert found.saved is not None
            assert found.saved.kind == "incremental"
        assert hypervisor.effects["host.take-backup"] == 3


async def test_one_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf, hypervisor = await shelf_of(made), made.host("h1").hypervisor
        hypervisor.hang_next("host.take-backup")
        accepted = await made.control.on_vm("web", BackUpVm(name="one"), OPERATOR)
        assert accepted.operation is not None
        await until(lambda: hypervisor.begun["host.take-backup"])
        await made.control.cancel(accepted.operation, OPERATOR)
        assert (await made.over(accepted.operation)).outcome == "cancelled"
        assert not made.fleet.backups
        assert (await shelf.take("one")).saved is not None


async def test_damage_is_recorded_and_told_with_the_operation(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = await shelf_of(made)
        one = await shelf.take("one")
        made.host("h1").hypervisor.tamper(lambda host: spoiled(host, one))
        operation = await shelf.ask("one", ProveBackup())
        assert (operation.outcome, operation.code) == ("undone", "backup-damaged")
        found = made.fleet.find_backup("one").verification
        assert found is not None
        assert (found.ok, found.by) == (False, "compare")
        restored = await shelf.ask("one", RestoreBackup(name="again"))
        assert (restored.outcome, restored.code) == ("undone", "backup-damaged")
        assert {vm.name for vm in made.fleet.vms.values() if vm.deleted_at is None} == {"web"}


async def test_requests_that_come_twice_are_carried_out_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = await shelf_of(made)
        await shelf.take("one")
        caller = replace(OPERATOR, request="r-1")  # type: ignore[arg-type]
        command = RestoreBackup(name="again")
        first = await made.control.on_backup("one", command, caller)
        assert await made.control.on_backup("one", command, caller) == first
        assert first.operation is not None
        assert (await made.over(first.operation)).outcome == "succeeded"


async def test_a_host_that_refuses_is_heard(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = await shelf_of(made)
        made.host("h1").hypervisor.fail_next(Failed(code="disk-full", message="no room"), "host.take-backup")
        operation = await made.do("web", BackUpVm(name="one"))
        assert (operation.outcome, operation.code) == ("undone", "disk-full")
        assert made.vm("web").power == "running"
        assert (await shelf.take("one")).saved is not None


def spoiled(host: LibvirtHost, backup: Backup) -> LibvirtHost:
    kept = host.backups[TARGET][backup.id]
    other = replace(kept, disks={name: {**held, 9: 9} for name, held in kept.disks.items()})
    return replace(host, backups={TARGET: {**host.backups[TARGET], backup.id: other}})
