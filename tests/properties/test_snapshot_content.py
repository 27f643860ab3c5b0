"""Guests and their operators in any order, on the model of a host: what was there at a snapshot is there again."""

import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.core.drive import Answering, drive
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.layering import reductions, tree_of
from vmorch.core.aggregates.vm import Operation, Vm, VmCommand
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Answer, Failed
from vmorch.core.hypervisor import Domain, LibvirtHost, content, expect, layers, remembering, written
from vmorch.core.ids import GiB, OperationId, VmId
from vmorch.core.messages import HostCommand
from vmorch.core.operations.create import DiskRequest
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.resume import ResumeVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.admission import admit_on_vm

quiet = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DISKS = ("vda", "vdb")


@dataclass(frozen=True)
class Sight:
    """What a guest has: disk -> cluster -> byte, and its memory; None: it has to be booted."""

    disks: dict[str, dict[int, int]]
    ram: str | None


@dataclass
class Life:
    """A VM with two disks on the model of a host, and beside it what its guest must see, reckoned without layers."""

    chance: random.Random
    trouble: float = 0.0
    history: History = field(default_factory=History)
    host: LibvirtHost = field(default_factory=LibvirtHost)
    then: dict[str, Sight] = field(default_factory=dict)
    """What there was at each snapshot."""

    def __post_init__(self) -> None:
        self.history.host("h1")
        self.history.image()
        self.id: VmId = self.history.create(asked("web", extra_disks=(DiskRequest(size=GiB(1)),)))
        drive(self.history, self.id, self.answer(-1))
        self.now: dict[str, dict[int, int]] = {name: {} for name in DISKS}
        self.ram = ""

    @property
    def vm(self) -> Vm:
        return self.history.fleet.vms[self.id]

    @property
    def domain(self) -> Domain:
        return self.host.domains[self.id]

    def answer(self, failing: int) -> Answering:
        """The host carries out every order but the one of that index."""

        def answer(index: int, undo: bool, command: HostCommand) -> Answer:
            if index == failing and not undo:
                return Failed(code="libvirt-refused", message="bad luck")
            self.host, said = expect(self.host, command)
            return said

        return answer

    def write(self) -> None:
        """The guest changes something on a disk and in its memory."""
        disk, cluster, byte = self.chance.choice(DISKS), self.chance.randrange(4), self.chance.randrange(1, 256)
        self.host = remembering(written(self.host, self.id, disk, cluster, byte), self.id, f"{disk} {cluster} {byte}")
        self.now[disk] = {**self.now[disk], cluster: byte}
        self.ram = self.domain.ram

    def ask(self, command: VmCommand) -> Operation | None:
        """The operation once it is over; None if it was refused."""
        operation = OperationId(f"op-{self.history.fleet.position}")
        try:
            admission = admit_on_vm(self.history.fleet, self.vm, command, operation=operation, who=WHO)
        except Rejected as refusal:
            if refusal.code not in ("wrong-power-state", "chain-too-deep", "already-so"):
                raise
            return None
        self.history.take(admission.changes)
        failing = self.chance.randrange(6) if self.chance.random() < self.trouble else -1
        return drive(self.history, self.id, self.answer(failing))

    def do(self, command: VmCommand) -> None:
        """A command and what follows from it for the guest."""
        before, seen = self.vm, Sight(dict(self.now), self.ram if self.domain.active else None)
        ended = self.ask(command)
        if ended is None:
            return
        assert self.trouble or ended.outcome == "succeeded", ended
        if isinstance(command, RollbackVm) and self.vm.number > before.number:
            target = before.snapshots[command.to]
            self.now = dict(self.then[target.name].disks)
            if target.memory is not None:
                assert self.domain.power == target.power
                assert self.domain.ram == self.then[target.name].ram
        elif ended.outcome == "undone" and not self.cuts(command):
            assert (self.vm.spec, tuple(self.vm.snapshots)) == (before.spec, tuple(before.snapshots))
            assert self.domain.ram == (seen.ram or "")
        for name in self.vm.snapshots.keys() - before.snapshots.keys():
            kept = self.vm.snapshots[name]
            self.then[name] = Sight(seen.disks, seen.ram if kept.memory is not None else None)
        self.ram = self.domain.ram

    @staticmethod
    def cuts(command: VmCommand) -> bool:
        """Whether a guest that it stopped has to be booted again."""
        return isinstance(command, StopVm) or (isinstance(command, RollbackVm) and not command.safety_snapshot)

    def go_on(self) -> None:
        """Something happens."""
        if self.vm.power == "running":
            for _ in range(self.chance.randrange(4)):
                self.write()
        on, names = self.vm.power in ("running", "paused"), list(self.vm.snapshots)
        deeds: list[VmCommand] = [StopVm(force=True), StartVm(), PauseVm(), ResumeVm()]
        deeds += 3 * [SnapshotVm(memory=on and self.chance.random() < 0.5)]
        for _ in range(3 if names else 0):
            deeds += [
                RollbackVm(to=self.chance.choice(names), safety_snapshot=self.chance.random() < 0.7),
                DeleteSnapshot(snapshot=self.chance.choice(names), with_children=self.chance.random() < 0.2),
            ]
        self.do(self.chance.choice(deeds))

    def check(self) -> None:
        """The guest and all snapshots have what they must, and the log has the layers that the host has."""
        vm = self.vm
        assert vm.spec is not None
        assert self.domain.found == vm.spec
        assert not self.domain.active or self.domain.disks == vm.spec.disks
        for disk in vm.spec.disks:
            found = {number: file.on for number, file in layers(self.host, self.id, disk).items()}
            assert found == tree_of(vm, disk.name)
            assert content(self.host, self.id, disk) == self.now[disk.name]
        for name, snapshot in vm.snapshots.items():
            for disk in snapshot.spec.disks:
                kept = replace(disk, layer=snapshot.layers[disk.name])
                assert content(self.host, self.id, kept) == self.then[name].disks[disk.name]
        memories = {each.memory.number: self.then[name].ram for name, each in vm.snapshots.items() if each.memory}
        assert {each.number: each.ram for each in self.host.memories.get(self.id, {}).values()} == memories

    def visit_all(self) -> None:
        """Back to each snapshot, and forward again to what was there before."""
        for name in list(self.vm.snapshots):
            present, ram, power = dict(self.now), self.ram, self.vm.power
            self.do(RollbackVm(to=name))
            self.check()
            forward = [each.name for each in self.vm.snapshots.values() if each.origin == "safety"][-1]
            self.do(RollbackVm(to=forward, safety_snapshot=False))
            self.check()
            assert self.now == present
            assert (self.ram, self.vm.power) == (ram, power) or power not in ("running", "paused")
            self.do(DeleteSnapshot(snapshot=forward))
            self.check()


@quiet
@given(st.integers(0, 10**9))
def test_whatever_happens_back_is_what_was_and_forward_what_came_since(seed: int) -> None:
    life = Life(random.Random(seed))
    for _ in range(25):
        life.go_on()
        life.check()
    life.visit_all()
    for name in list(life.vm.snapshots):
        life.do(DeleteSnapshot(snapshot=name))
        life.check()
    assert list(reductions(life.vm)) == []
    life.do(SnapshotVm(memory=life.domain.active))
    assert life.ask(DeleteVm())
    assert (life.host.domains, life.host.disks, life.host.memories, life.host.seeds) == ({}, {}, {}, {})


@quiet
@given(st.integers(0, 10**9))
def test_whatever_a_host_refuses_no_snapshot_changes(seed: int) -> None:
    life = Life(random.Random(seed), trouble=0.4)
    for _ in range(30):
        life.go_on()
        life.check()
