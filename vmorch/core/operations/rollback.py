"""Bring a VM back to a snapshot, with the way forward kept open.

What the VM is until then is kept as a snapshot of its own first, memory included if it runs, so that a rollback is one
more branch of the tree and nothing is lost by it. The layers of the snapshot itself are never written to.
"""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.host import CapacityReserved, Host, Reservation, larger, reserve
from vmorch.core.aggregates.layer_steps import MEMORY_DEADLINE, memory_file, tidying
from vmorch.core.aggregates.layering import (
    VmRolledBack,
    find_snapshot,
    foreseen,
    stacks_of,
    tree_of,
    with_layers,
    written_to,
)
from vmorch.core.aggregates.vm import Vm, VmCommand, boot
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import (
    AwaitReady,
    DefineDomain,
    DropLayers,
    MakeLayers,
    RestoreGuest,
    SaveGuest,
    StartDomain,
    StopDomain,
)
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Change, Plan, Step, change, step
from vmorch.core.snapshot import Snapshot
from vmorch.core.spec import Name, VmSpec
from vmorch.core.value import Value


@message("vm.rollback")
class RollbackVm(VmCommand, frozen=True, kw_only=True):
    """The VM is what it was at a snapshot: its disks, and its memory if the snapshot has it. Else it is switched on
    again if it is on now. What it is until then is kept in a snapshot that it can be brought back to in the same way,
    unless that is waived."""

    verb = "rollback"
    summary = "Bring a VM back to a snapshot"
    needs = frozenset({"off", "crashed", "running", "paused"})

    to: Annotated[Name, Meta(description="the snapshot")]
    config_too: Annotated[bool, Meta(description="also the vCPUs, memory and cards that it had")] = False
    safety_snapshot: Annotated[bool, Meta(description="keep what it is now as a snapshot")] = True

    def plan(self, vm: Vm, host: Host) -> Plan:
        return _Way(self, vm, host).plan()


class Prospect(Value, frozen=True, kw_only=True):
    """What a rollback would do, for whoever decides on it. `lost` and `kept` are in words; `stops` tells that a guest
    runs now that is stopped, and `memory` how many MiB are written and read until it goes on, at most."""

    to: str
    lost: tuple[str, ...]
    kept: tuple[str, ...]
    stops: bool
    memory: int
    boots: bool


def prospect(command: RollbackVm, vm: Vm) -> Prospect:
    """What the command would do to the VM now. Raises Rejected `no-such-snapshot`."""
    assert vm.spec is not None
    target = find_snapshot(vm, command.to)
    on = vm.power in ("running", "paused")
    spec = _spec_after(command, vm, target)
    back = [disk.name for disk in spec.disks if disk.name in target.layers]
    as_they_are = [disk.name for disk in spec.disks if disk.name not in target.layers]
    now = f"the present state of {', '.join(back)}" + (", and of the guest's memory" if on else "")
    kept, lost = [], []
    if command.safety_snapshot:
        kept.append(f"{now}: in snapshot {_safety_name(vm)}, to which it can be brought back")
    else:
        lost.append(now)
    kept += [f"{name} stays as it is: {target.name} does not hold it" for name in as_they_are]
    gone = [disk.name for disk in vm.spec.disks if all(disk.name != each.name for each in spec.disks)]
    kept += [f"{name} is left out of the VM: it had none of it then" for name in gone]
    if not command.config_too and _shape(vm.spec) != _shape(target.spec):
        kept.append("vCPUs, memory and cards as they are now (--config-too brings back those of then)")
    written = vm.spec.memory if on and command.safety_snapshot else 0
    read = spec.memory if target.memory is not None else 0
    return Prospect(
        to=target.name,
        lost=tuple(lost),
        kept=tuple(kept),
        stops=on,
        memory=written + read,
        boots=on and target.memory is None,
    )


def _safety_name(vm: Vm) -> str:
    name = f"safety-{vm.number + 1}"
    while name in vm.snapshots:
        name += "x"
    return name


def _spec_after(command: RollbackVm, vm: Vm, target: Snapshot) -> VmSpec:
    assert vm.spec is not None
    if not command.config_too:
        return vm.spec
    then = target.spec
    # where it may stand, what becomes of it there and when it is up are wishes of now
    return replace(
        vm.spec,
        vcpus=then.vcpus,
        max_vcpus=then.max_vcpus,
        memory=then.memory,
        max_memory=then.max_memory,
        disks=then.disks,
        nics=then.nics,
    )


def _shape(spec: VmSpec) -> tuple[object, ...]:
    """What of a spec a guest's memory fits to, or does not."""
    return spec.vcpus, spec.max_vcpus, spec.memory, spec.max_memory, spec.nics, tuple(d.name for d in spec.disks)


class _Way:
    """The steps of one rollback."""

    def __init__(self, command: RollbackVm, vm: Vm, host: Host) -> None:
        assert vm.spec is not None
        self.command, self.vm, self.host = command, vm, host
        self.old = vm.spec
        self.target = find_snapshot(vm, command.to)
        self.number = vm.number + 1
        # a disk that the snapshot does not hold goes on from where it is, but above what is kept of it
        self.on = {
            disk.name: self.target.layers.get(disk.name, disk.layer)
            for disk in _spec_after(command, vm, self.target).disks
            if disk.name in self.target.layers or command.safety_snapshot
        }
        self.new = with_layers(_spec_after(command, vm, self.target), dict.fromkeys(self.on, self.number))
        self._check()

    def _check(self) -> None:
        others = [disk.name for disk in self.old.disks if disk.home is not None and disk.name not in self.target.layers]
        if others:
            raise Rejected(
                "other-disks",
                f"{', '.join(others)} of {self.vm.name} is a volume that it got after {self.target.name} was taken",
                hint="detach it first: vmorch volume detach NAME",
            )
        lost = [name for name, layer in self.on.items() if layer not in tree_of(self.vm, name)]
        if lost:
            raise Rejected("bad-spec", f"{', '.join(lost)} of {self.target.name} was deleted since")
        if self.target.memory is not None and _shape(self.new) != _shape(self.target.spec):
            raise Rejected(
                "config-differs",
                f"{self.vm.name} has other vCPUs, memory, disks or cards than the memory kept in {self.target.name}",
                hint="--config-too brings those back too",
            )

    def plan(self) -> Plan:
        vm, at = self.vm, stream("host", self.host.id)
        held = self.host.reservations.get(vm.id, Reservation.of(self.old))
        wanted = Reservation.of(self.new)
        most = larger(held, wanted)
        opening = () if most == held else tuple(
            change(at, event) for event in reserve(self.host, vm.id, most)
        )
        settled = () if wanted == most else (change(at, CapacityReserved(vm=vm.id, reservation=wanted)),)
        back = () if most == held else (change(at, CapacityReserved(vm=vm.id, reservation=held)),)
        return Plan(opening=opening, steps=tuple(self._steps()), success=settled, failure=back)

    def _steps(self) -> Iterator[Step]:
        vm, host = self.vm, self.host.id
        stacks = stacks_of(vm)
        made = MakeLayers(vm=vm.id, stacks=stacks, next=self.number, on=self.on)
        after = foreseen(vm, self._rolled_back())
        unmade = DropLayers(
            vm=vm.id, stacks=stacks, next=self.number, layers=dict.fromkeys(self.on, (self.number,))
        )
        yield step(host, made, undo=unmade, deadline=120)
        yield from self._halted()
        define = DefineDomain(vm=vm.id, spec=self.new)
        defined = step(host, define, undo=DefineDomain(vm=vm.id, spec=self.old))
        running = self._running()
        if not running:
            yield step(host, define, commits=True, then=self._then())
        else:
            # a guest that goes on from its memory gets its configuration in the same stroke
            yield from () if self.target.memory is not None else (defined,)
            yield from running
        if not self.command.safety_snapshot:
            yield from tidying(after, self.host)

    def _halted(self) -> Iterator[Step]:
        """The guest is off, and what it was can be had again."""
        vm, host = self.vm, self.host.id
        if vm.power not in ("running", "paused"):
            return
        halted = vm.power == "paused"
        if self.command.safety_snapshot:
            memory = memory_file(vm, self.number)
            again = RestoreGuest(vm=vm.id, spec=self.old, memory=memory, halted=halted, spend=True)
            yield step(host, SaveGuest(vm=vm.id, memory=memory), undo=again, deadline=MEMORY_DEADLINE)
        else:
            cut = StopDomain(vm=vm.id, grace=0, force=True)
            yield step(host, cut, undo=StartDomain(vm=vm.id, halted=halted))

    def _running(self) -> list[Step]:
        """The guest is on again, if it shall be."""
        vm, host, target = self.vm, self.host.id, self.target
        ready = self.new.ready
        if target.memory is not None:
            halted = target.power == "paused"
            restored = RestoreGuest(vm=vm.id, spec=self.new, memory=target.memory, halted=halted)
            back = DefineDomain(vm=vm.id, spec=self.old)
            steps = [
                step(host, restored, undo=back, commits=True, deadline=MEMORY_DEADLINE, then=self._then())
            ]
            if not halted and ready.by != "none":
                up = AwaitReady(vm=vm.id, ready=ready, nics=self.new.nics)
                steps.append(step(host, up, keep=True, deadline=ready.within + 15))
            return steps
        if vm.power == "paused":
            start = StartDomain(vm=vm.id, halted=True)
            return [step(host, start, commits=True, deadline=120, then=self._then())]
        if vm.power == "running":
            _, *rest = boot(vm.id, self.new, host)
            start = StartDomain(vm=vm.id)
            return [step(host, start, commits=True, deadline=120, then=self._then()), *rest]
        return []

    def _then(self) -> tuple[Change, ...]:
        return (change(stream("vm", self.vm.id), self._rolled_back()),)

    def _rolled_back(self) -> VmRolledBack:
        vm = self.vm
        safety = None
        if self.command.safety_snapshot:
            on = vm.power in ("running", "paused")
            safety = Snapshot(
                name=_safety_name(vm),
                number=self.number,
                layers=written_to(self.old),
                spec=self.old,
                power=vm.power,
                quality="memory" if on else "off",
                memory=memory_file(vm, self.number) if on else None,
                origin="safety",
                description=f"before the rollback to {self.target.name}",
            )
        return VmRolledBack(to=self.target.name, layer=self.number, on=self.on, spec=self.new, safety=safety)
