"""Snapshots through the log: what guests wrote until then is there again, and nothing is left of them at the end."""

from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from vmorch.core.aggregates.vm import Operation, VmCommand
from vmorch.core.hostcommands import Failed
from vmorch.core.hypervisor import LibvirtHost, content, disk_key, layers, remembering, written
from vmorch.core.hypervisor_state import empty_file, with_files
from vmorch.core.ids import VmId
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.label import LabelVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.schedule_snapshots import SetSnapshotPolicy
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm

pytestmark = pytest.mark.anyio


class Guest:
    """The VM `web` on the host `h1`, as its guest and its operator see it."""

    def __init__(self, made: Cluster) -> None:
        self.made, self.hypervisor = made, made.host("h1").hypervisor

    def goes_on(self, byte: int) -> None:
        """The guest writes this byte to its disk and has it in its memory."""
        vm = self.made.vm("web").id
        self.hypervisor.tamper(lambda host: remembering(written(host, vm, "vda", 0, byte), vm, str(byte)))

    @property
    def sees(self) -> tuple[int, str]:
        """The byte on its disk, and what is in its memory."""
        vm, host = self.made.vm("web").id, self.hypervisor.host
        domain = host.domains[vm]
        return content(host, vm, domain.found.disks[0])[0], domain.ram

    @property
    def layers(self) -> dict[int, int | None]:
        """The layers of its disk that are on the host; each must be in the log."""
        vm, host = self.made.vm("web"), self.hypervisor.host
        assert vm.spec is not None
        found = {number: file.on for number, file in layers(host, vm.id, vm.spec.disks[0]).items()}
        assert found == dict(vm.layers.get("vda", {0: None}))
        assert host.domains[vm.id].found.disks == vm.spec.disks
        return found

    async def ask(self, command: VmCommand) -> Operation:
        """Have a command done, with success."""
        operation = await self.made.do("web", command)
        assert operation.outcome == "succeeded", operation
        return operation


def foreign(host: LibvirtHost, vm: VmId) -> LibvirtHost:
    """The host after somebody made a layer above the first one by hand."""
    disk = host.domains[vm].found.disks[0]
    file = empty_file(replace(disk, layer=9), on=0)
    return with_files(host, vm, {**host.disks[vm], disk_key(file): file})


async def guest_on(made: Cluster) -> Guest:
    accepted = await made.create("web")
    assert accepted.operation is not None
    assert (await made.over(accepted.operation)).outcome == "succeeded"
    return Guest(made)


def safety(made: Cluster) -> str:
    """The newest snapshot that a rollback took."""
    return [each.name for each in made.vm("web").snapshots.values() if each.origin == "safety"][-1]


async def next_after(made: Cluster, known: list[str]) -> str:
    """The snapshot that is taken after those that are known."""
    await until(lambda: set(made.vm("web").snapshots) - set(known))
    [name] = set(made.vm("web").snapshots) - set(known)
    return name


async def kept(made: Cluster, names: list[str]) -> None:
    """Return once there are these snapshots, and nothing is done any more."""
    await until(lambda: list(made.vm("web").snapshots) == names and made.vm("web").active is None)


async def test_a_vm_goes_back_to_its_snapshots_and_forward_again_and_leaves_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        guest, free = await guest_on(made), made.host("h1").hypervisor.host.free
        guest.goes_on(1)
        await guest.ask(SnapshotVm(name="disks"))
        guest.goes_on(2)
        await guest.ask(SnapshotVm(name="whole", memory=True))
        guest.goes_on(3)
        assert guest.layers == {0: None, 1: 0, 2: 1}

        await guest.ask(RollbackVm(to="disks"))
        assert guest.sees == (1, ""), "it was booted anew"
        forward = safety(made)
        guest.goes_on(4)
        await guest.ask(RollbackVm(to="whole"))
        assert guest.sees == (2, "2")
        await guest.ask(RollbackVm(to=forward))
        assert guest.sees == (3, "3")
        assert made.vm("web").power == "running"
        assert guest.layers == {0: None, 1: 0, 2: 1, 3: 0, 4: 1, 5: 2}

        for name in list(made.vm("web").snapshots):
            await guest.ask(DeleteSnapshot(snapshot=name))
            assert guest.sees == (3, "3")
            assert guest.layers
        assert guest.layers == {0: None}
        host = made.host("h1").hypervisor.host
        assert (host.memories, host.free) == ({}, free)

        await guest.ask(SnapshotVm(name="again", memory=True))
        await guest.ask(DeleteVm())
        host = made.host("h1").hypervisor.host
        assert (host.domains, host.disks, host.memories, host.seeds) == ({}, {}, {}, {})


async def test_what_is_off_is_kept_and_brought_back_too(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        guest = await guest_on(made)
        guest.goes_on(1)
        await guest.ask(StopVm())
        await guest.ask(SnapshotVm(name="off"))
        await guest.ask(StartVm())
        guest.goes_on(2)
        await guest.ask(StopVm())
        await guest.ask(RollbackVm(to="off"))
        assert guest.sees == (1, "")
        assert made.vm("web").power == "off"
        await guest.ask(RollbackVm(to=safety(made)))
        await guest.ask(StartVm())
        assert guest.sees == (2, "")
        assert guest.layers


async def test_a_rollback_that_fails_leaves_the_guest_where_it_was(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        guest = await guest_on(made)
        guest.goes_on(1)
        await guest.ask(SnapshotVm(name="whole", memory=True))
        guest.goes_on(2)
        refusal = Failed(code="memory-damaged", message="it is not whole")
        made.host("h1").hypervisor.fail_next(refusal, "host.restore-guest")
        failed = await made.do("web", RollbackVm(to="whole"))
        assert (failed.outcome, failed.code) == ("undone", "memory-damaged")
        assert guest.sees == (2, "2")
        assert guest.layers == {0: None, 1: 0}
        assert list(made.vm("web").snapshots) == ["whole"]


async def test_a_layer_that_nobody_recorded_stops_everything_before_it_begins(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        guest = await guest_on(made)
        guest.goes_on(1)
        await guest.ask(SnapshotVm(name="a"))
        vm, host = made.vm("web").id, guest.hypervisor.host
        strange = foreign(host, vm)
        guest.hypervisor.tamper(lambda _: strange)
        for command in (SnapshotVm(name="b"), RollbackVm(to="a"), DeleteSnapshot(snapshot="a")):
            refused = await made.do("web", command)
            assert (refused.outcome, refused.code) == ("undone", "chain-drift")
            assert guest.hypervisor.host == strange
        guest.hypervisor.tamper(lambda _: host)
        await guest.ask(DeleteSnapshot(snapshot="a"))
        assert guest.layers == {0: None}


async def test_a_schedule_has_snapshots_taken_and_those_that_are_too_many_deleted(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1") as made:
        guest = await guest_on(made)
        await made.control.on_vm("web", SetSnapshotPolicy(every=3600, last=2), OPERATOR)
        taken: list[str] = []
        for byte in range(4):
            taken.append(await next_after(made, taken))
            await kept(made, taken[-2:])
            guest.goes_on(byte)
            made.clock.ahead += timedelta(hours=1)
            # whatever happens, schedules are looked at
            await made.control.on_vm("web", LabelVm(set={"byte": str(byte)}), OPERATOR)
        assert {each.origin for each in made.vm("web").snapshots.values()} == {"schedule"}
        await made.control.on_vm("web", SetSnapshotPolicy(off=True), OPERATOR)
        await until(lambda: made.vm("web").active is None)
        await guest.ask(RollbackVm(to=taken[-1]))
        assert guest.sees == (2, "")
