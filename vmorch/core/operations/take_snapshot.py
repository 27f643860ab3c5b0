"""Take a snapshot: the guest goes on above new layers, and the ones below hold the moment.

One order to one host, because libvirt does it for all disks in one stroke; either all of it is so, or nothing.
"""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.layer_steps import MEMORY_DEADLINE, memory_file
from vmorch.core.aggregates.layering import MOST_LAYERS, SnapshotTaken, depth, stacks_of, with_layers, written_to
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import TakeSnapshot
from vmorch.core.ids import stream
from vmorch.core.layers import Quality
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change, step
from vmorch.core.snapshot import Description, Freezing, Origin, Snapshot
from vmorch.core.spec import Name

MOST_SNAPSHOTS = 128


@message("vm.snapshot")
class SnapshotVm(VmCommand, frozen=True, kw_only=True):
    """The VM can be brought back to this moment. Of a running guest the disks are kept as after a power cut; with
    `quiesce` its agent holds its file systems at rest meanwhile, or nothing is taken; with `memory` it will go on
    exactly where it was."""

    verb = "snapshot"
    summary = "Take a snapshot of a VM"
    needs = frozenset({"off", "crashed", "running", "paused"})

    name: Annotated[Name, Meta(description="its name; made up if none is given")] | None = None
    memory: Annotated[bool, Meta(description="keep the guest's memory too")] = False
    quiesce: Annotated[bool, Meta(description="have the guest's agent hold its file systems at rest")] = False
    freeze_within: Freezing = 10.0
    description: Annotated[Description, Meta(description="what it is for")] = ""

    def plan(self, vm: Vm, host: Host) -> Plan:
        return plan(self, vm, host, "operator")


def plan(command: SnapshotVm, vm: Vm, host: Host, origin: Origin, at: datetime | None = None) -> Plan:
    """How it is taken. `at` is when it counts as taken, if that is not when it is recorded.

    Raises Rejected `name-taken`, `chain-too-deep`, `too-many-snapshots`, `wrong-power-state`.
    """
    assert vm.spec is not None
    quality = _quality(command, vm)
    number = vm.number + 1
    name = command.name or f"snap-{number}"
    _check_room(vm, name)
    memory = memory_file(vm, number) if command.memory else None
    taken = Snapshot(
        name=name,
        number=number,
        layers=written_to(vm.spec),
        spec=vm.spec,
        power=vm.power,
        quality=quality,
        memory=memory,
        origin=origin,
        description=command.description,
        taken_at=at,
    )
    order = TakeSnapshot(
        vm=vm.id,
        stacks=stacks_of(vm),
        next=number,
        spec=with_layers(vm.spec, {disk.name: number for disk in vm.spec.disks}),
        memory=memory,
        freeze=command.freeze_within if command.quiesce else None,
    )
    then = (change(stream("vm", vm.id), SnapshotTaken(snapshot=taken, layer=number)),)
    deadline = MEMORY_DEADLINE if command.memory else 120.0
    return Plan(steps=(step(host.id, order, commits=True, deadline=deadline, then=then),))


def _quality(command: SnapshotVm, vm: Vm) -> Quality:
    if vm.power in ("off", "crashed"):
        if command.memory or command.quiesce:
            raise Rejected(
                "wrong-power-state", f"{vm.name} is {vm.power}: it has no memory to keep and no file systems to freeze"
            )
        return "off"
    if command.quiesce and command.memory:
        raise Rejected("bad-spec", "with its memory kept, a guest goes on where it was: there is nothing to freeze for")
    if command.quiesce and vm.power != "running":
        raise Rejected("wrong-power-state", f"{vm.name} is {vm.power}: a halted guest cannot freeze its file systems")
    return "memory" if command.memory else "frozen" if command.quiesce else "crash-consistent"


def _check_room(vm: Vm, name: str) -> None:
    if name in vm.snapshots:
        raise Rejected(
            "name-taken",
            f"{vm.name} has a snapshot {name}",
            hint=f"vmorch vm snapshot describe {vm.name} {name}",
        )
    if depth(vm) >= MOST_LAYERS:
        raise Rejected(
            "chain-too-deep",
            f"{depth(vm)} layers lie above each other under {vm.name}, and {MOST_LAYERS} may",
            hint=f"delete one below it: vmorch vm snapshot list {vm.name}",
        )
    if len(vm.snapshots) >= MOST_SNAPSHOTS:
        raise Rejected(
            "too-many-snapshots",
            f"{vm.name} has {len(vm.snapshots)} snapshots, and {MOST_SNAPSHOTS} are allowed",
            hint=f"vmorch vm snapshot list {vm.name}",
        )
