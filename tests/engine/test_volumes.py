"""Volumes through the log: what one VM wrote is there for the next, and nothing is lost on the way."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from vmorch.core.aggregates.vm import Operation, VmCommand
from vmorch.core.errors import Rejected
from vmorch.core.hypervisor import content, written
from vmorch.core.hypervisor_state import empty_file, with_files
from vmorch.core.ids import GiB, VmId
from vmorch.core.operations.attach_volume import AttachVolume
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.detach_volume import DetachVolume
from vmorch.core.operations.grow_disk import GrowVmDisk
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.operations.volumes import (
    AskForStrays,
    CloneVolume,
    CreateVolume,
    DeleteVolume,
    ResizeVolume,
    RestoreVolume,
    SetStrayAside,
)
from vmorch.core.spec import DiskSpec
from vmorch.core.volume_resources import stray_resources, volume_resource
from vmorch.engine.handle import VolumeCommand

pytestmark = pytest.mark.anyio


class Shelf:
    """Volumes, and VMs that use them."""

    def __init__(self, made: Cluster) -> None:
        self.made = made

    async def vm(self, name: str, **more: object) -> None:
        accepted = await self.made.create(name, **{"storage": "shared", **more})
        assert accepted.operation is not None
        assert (await self.made.over(accepted.operation)).outcome == "succeeded"

    async def volume(self, ref: str, command: VolumeCommand) -> Operation | None:
        """Have something done with a volume; None if nothing but a fact was needed."""
        accepted = await self.made.control.on_volumes(ref, command, OPERATOR)
        return None if accepted.operation is None else await self.made.over(accepted.operation)

    async def create(self, name: str = "data", size: int = 2, **more: object) -> None:
        done = await self.volume("", CreateVolume(name=name, size=GiB(size), **more))  # type: ignore[arg-type]
        assert done is not None
        assert done.outcome == "succeeded", done

    async def on(self, vm: str, command: VmCommand) -> Operation:
        operation = await self.made.do(vm, command)
        assert operation.outcome == "succeeded", operation
        return operation

    def state(self, name: str = "data") -> tuple[str, str | None, str | None]:
        shown = volume_resource(self.made.fleet, self.made.fleet.find_volume(name))
        return shown.state, shown.vm, shown.disk

    def host_of(self, vm: str) -> str:
        host = self.made.vm(vm).host
        assert host is not None
        return self.made.fleet.hosts[host].name

    def write(self, vm: str, disk: str, byte: int) -> None:
        id, hypervisor = self.made.vm(vm).id, self.made.host(self.host_of(vm)).hypervisor
        hypervisor.tamper(lambda host: written(host, id, disk, 0, byte))

    def read(self, vm: str, disk: str) -> int:
        id, host = self.made.vm(vm).id, self.made.host(self.host_of(vm)).hypervisor.host
        used = next(each for each in host.domains[id].disks if each.name == disk)
        return content(host, id, used).get(0, 0)

    def disks(self, vm: str) -> list[str]:
        spec = self.made.vm(vm).spec
        assert spec is not None
        return [disk.name for disk in spec.disks]


async def test_what_one_vm_wrote_is_there_for_the_next_on_another_host(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        shelf = Shelf(made)
        await shelf.vm("web")
        await shelf.vm("db")
        await shelf.create()
        assert shelf.state() == ("available", None, None)
        await shelf.on("web", AttachVolume(volume="data"))
        assert shelf.state() == ("attached", "web", "vdb")
        shelf.write("web", "vdb", 7)
        with pytest.raises(Rejected) as refused:
            await made.do("db", AttachVolume(volume="data"))
        assert refused.value.code == "volume-in-use"
        await shelf.on("web", MigrateVm())
        assert shelf.read("web", "vdb") == 7
        await shelf.on("web", DetachVolume(volume="data"))
        assert (shelf.state(), shelf.disks("web")) == (("available", None, None), ["vda"])
        await shelf.on("db", AttachVolume(volume="data"))
        assert shelf.read("db", "vdb") == 7


async def test_a_vm_that_is_off_gets_and_gives_volumes_too(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = Shelf(made)
        await shelf.vm("web")
        await shelf.create()
        await shelf.on("web", StopVm(force=True))
        await shelf.on("web", AttachVolume(volume="data"))
        await shelf.on("web", StartVm())
        shelf.write("web", "vdb", 3)
        await shelf.on("web", StopVm(force=True))
        await shelf.on("web", DetachVolume(volume="data"))
        await shelf.on("web", AttachVolume(volume="data"))
        await shelf.on("web", StartVm())
        assert shelf.read("web", "vdb") == 3


async def test_a_guest_that_does_not_let_go_keeps_its_disk(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf, hypervisor = Shelf(made), made.host("h1").hypervisor
        await shelf.vm("web")
        await shelf.create()
        await shelf.on("web", AttachVolume(volume="data"))
        id = made.vm("web").id
        hypervisor.tamper(lambda host: replace(host, deaf=frozenset({id})))
        held = await made.do("web", DetachVolume(volume="data"))
        assert (held.outcome, held.code) == ("undone", "device-held")
        assert (shelf.state(), shelf.disks("web")) == (("attached", "web", "vdb"), ["vda", "vdb"])
        hypervisor.tamper(lambda host: replace(host, deaf=frozenset()))
        await shelf.on("web", DetachVolume(volume="data"))


@pytest.mark.parametrize("when", ["lost-before", "lost-after"])
@pytest.mark.parametrize("kind", ["host.attach-disk", "host.detach-disk"])
async def test_a_daemon_that_ends_in_the_middle_costs_nothing(tmp_path: Path, kind: str, when: str) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf, hypervisor = Shelf(made), made.host("h1").hypervisor
        await shelf.vm("web")
        await shelf.create()
        command: VmCommand = AttachVolume(volume="data")
        if kind == "host.detach-disk":
            await shelf.on("web", command)
            shelf.write("web", "vdb", 9)
            command = DetachVolume(volume="data")
        hypervisor.vanish_at_next(when, kind)  # type: ignore[arg-type]
        accepted = await made.control.on_vm("web", command, OPERATOR)
        assert accepted.operation is not None
        await until(lambda: not hypervisor.here)
        hypervisor.come_back()
        assert (await made.over(accepted.operation)).outcome == "succeeded"
        assert shelf.state()[0] == ("attached" if kind == "host.attach-disk" else "available")


async def test_a_volume_has_snapshots_with_its_vm_and_leaves_when_they_are_gone(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = Shelf(made)
        await shelf.vm("web")
        await shelf.create()
        await shelf.on("web", SnapshotVm(name="before"))
        await shelf.on("web", AttachVolume(volume="data"))
        shelf.write("web", "vdb", 1)
        await shelf.on("web", SnapshotVm(name="with"))
        shelf.write("web", "vdb", 2)
        with pytest.raises(Rejected) as refused:
            await made.do("web", DetachVolume(volume="data"))
        assert refused.value.code == "volume-kept-by-snapshots"
        with pytest.raises(Rejected) as refused:
            await made.do("web", DeleteVm())
        assert refused.value.code == "volume-kept-by-snapshots"
        with pytest.raises(Rejected) as refused:
            await made.do("web", RollbackVm(to="before"))
        assert refused.value.code == "other-disks"
        await shelf.on("web", RollbackVm(to="with", safety_snapshot=False))
        assert shelf.read("web", "vdb") == 1
        await shelf.on("web", DeleteSnapshot(snapshot="with"))
        await shelf.on("web", DeleteSnapshot(snapshot="before"))
        await shelf.on("web", DetachVolume(volume="data"))
        await shelf.vm("db")
        await shelf.on("db", AttachVolume(volume="data"))
        await shelf.on("db", SnapshotVm(name="here"))
        assert shelf.read("db", "vdb") == 1


async def test_volumes_grow_whether_they_are_used_or_not(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = Shelf(made)
        await shelf.vm("web")
        await shelf.create()
        await shelf.volume("data", ResizeVolume(size=GiB(3)))
        assert made.fleet.find_volume("data").size == 3
        await shelf.on("web", AttachVolume(volume="data"))
        await shelf.on("web", GrowVmDisk(disk="vdb", size=GiB(5)))
        await shelf.on("web", GrowVmDisk(disk="vda", size=GiB(2)))
        await shelf.on("web", DetachVolume(volume="data"))
        assert made.fleet.find_volume("data").size == 5
        for size, code in ((4, "bad-spec"), (5, "already-so"), (10**4, "no-capacity")):
            with pytest.raises(Rejected) as refused:
                await shelf.volume("data", ResizeVolume(size=GiB(size)))
            assert refused.value.code == code


async def test_a_copy_shares_nothing_with_what_it_was_copied_from(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = Shelf(made)
        await shelf.vm("web")
        await shelf.create()
        await shelf.on("web", AttachVolume(volume="data"))
        shelf.write("web", "vdb", 4)
        with pytest.raises(Rejected) as refused:
            await shelf.volume("data", CloneVolume(name="copy"))
        assert refused.value.code == "volume-in-use"
        await shelf.on("web", DetachVolume(volume="data"))
        await shelf.volume("data", CloneVolume(name="copy"))
        await shelf.on("web", AttachVolume(volume="data"))
        await shelf.on("web", AttachVolume(volume="copy"))
        shelf.write("web", "vdb", 5)
        assert (shelf.read("web", "vdb"), shelf.read("web", "vdc")) == (5, 4)


async def test_a_volume_is_deleted_at_the_second_time_of_asking(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf, hypervisor = Shelf(made), made.host("h1").hypervisor
        await shelf.vm("web")
        await shelf.create()
        assert await shelf.volume("data", DeleteVolume()) is None
        assert shelf.state()[0] == "quarantined"
        with pytest.raises(Rejected) as refused:
            await made.do("web", AttachVolume(volume="data"))
        assert refused.value.code == "volume-quarantined"
        await shelf.volume("data", RestoreVolume())
        await shelf.on("web", AttachVolume(volume="data"))
        await shelf.on("web", DetachVolume(volume="data"))
        before = hypervisor.host.disks
        await shelf.volume("data", DeleteVolume())
        assert hypervisor.host.disks == before
        await shelf.volume("data", DeleteVolume())
        assert len(hypervisor.host.disks) == len(before) - 1
        assert not made.fleet.volumes
        await shelf.create()


async def test_a_deleted_vm_leaves_the_disks_that_shall_stay_and_the_volumes_that_it_used(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf = Shelf(made)
        await shelf.vm("web")
        await shelf.create()
        await shelf.on("web", AttachVolume(volume="data"))
        shelf.write("web", "vda", 1)
        shelf.write("web", "vdb", 2)
        gone = made.vm("web").id
        await shelf.on("web", DeleteVm(keep_disks=True))
        kept = next(each for each in made.fleet.volumes.values() if each.name != "data")
        assert kept.name == f"web-vda-{gone[-6:]}"
        assert shelf.state() == ("available", None, None)
        await shelf.vm("db")
        await shelf.on("db", AttachVolume(volume=kept.name))
        await shelf.on("db", AttachVolume(volume="data"))
        assert (shelf.read("db", "vdb"), shelf.read("db", "vdc")) == (1, 2)
        await shelf.on("db", DeleteVm())
        assert [shelf.state(name)[0] for name in ("data", kept.name)] == ["available", "available"]


async def test_what_nobody_owns_is_found_set_aside_and_had_back_or_deleted(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        shelf, hypervisor = Shelf(made), made.host("h1").hypervisor
        await shelf.vm("web")
        await shelf.create()
        lost = VmId("0192f0c1-0000-7000-8000-00000000beef")
        disk = DiskSpec(name="vda", size=GiB(1))
        hypervisor.tamper(lambda host: with_files(host, lost, {"local/vda": empty_file(disk)}))
        await shelf.volume("h1", AskForStrays())
        assert [(each.id, each.storage, each.files) for each in stray_resources(made.fleet)] == [
            (lost, "local", ("vda.qcow2",))
        ]
        with pytest.raises(Rejected) as refused:
            await shelf.volume("h1", SetStrayAside(id=made.vm("web").id, storage="shared"))
        assert refused.value.code == "no-such-stray"
        for last in (RestoreVolume(), DeleteVolume()):
            await shelf.volume("h1", AskForStrays())
            await shelf.volume("h1", SetStrayAside(id=lost, storage="local"))
            assert lost not in hypervisor.host.disks
            assert shelf.state(f"stray-{lost[-12:]}")[0] == "quarantined"
            await shelf.volume(f"stray-{lost[-12:]}", last)
            assert (lost in hypervisor.host.disks) == isinstance(last, RestoreVolume)
        assert not hypervisor.host.aside
        assert [each.name for each in made.fleet.volumes.values()] == ["data"]


async def test_local_volumes_stay_where_they_are(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        shelf = Shelf(made)
        await shelf.vm("web")
        there = "h2" if shelf.host_of("web") == "h1" else "h1"
        await shelf.create("near", storage="local", host=shelf.host_of("web"))
        await shelf.create("far", storage="local", host=there)
        with pytest.raises(Rejected) as refused:
            await made.do("web", AttachVolume(volume="far"))
        assert refused.value.code == "volume-elsewhere"
        await shelf.on("web", AttachVolume(volume="near"))
        for command in (MigrateVm(), MigrateVm(copy_disks=True)):
            with pytest.raises(Rejected) as refused:
                await made.do("web", command)
            assert "volume" in str(refused.value.facts) or not command.copy_disks
