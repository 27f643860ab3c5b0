"""What happens to the layers of a VM's disks: snapshots taken and deleted, layers merged and dropped, ways back taken.

The state after each of these facts is what is on disk at that moment, so that a host can be asked to find it so before
it touches anything. Must not decide what is reduced: that is `core.layers`.
"""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from msgspec.structs import replace

from vmorch.core.aggregates.vm import Vm, VmEvent
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Memory
from vmorch.core.layers import Drop, Merge, Reduction, Stack, Tree, chain, grown, reduced, spare, stack, stands_for
from vmorch.core.messages import message
from vmorch.core.snapshot import Schedule, Snapshot
from vmorch.core.spec import DiskName, DiskSpec, LayerNumber, VmSpec

ROOT = "vda"
"""Every VM has this disk for as long as it lives, so its layers tell which snapshot stands on which."""
LAYERING = frozenset({"snapshot", "rollback", "delete-snapshot"})
"""The verbs that change layers."""
MOST_LAYERS = 32
"""How many layers may lie above each other: each one costs its guest a little at every read of old data."""


def tree_of(vm: Vm, disk: str) -> Tree:
    """The layers of a disk; one that was never split is one layer."""
    return vm.layers.get(disk, {0: None})


def stacks_of(vm: Vm) -> tuple[Stack, ...]:
    """The VM's disks as its host must find them now."""
    assert vm.spec is not None
    return tuple(stack(disk, tree_of(vm, disk.name)) for disk in vm.spec.disks)


def files_of(vm: Vm) -> Iterator[DiskSpec]:
    """Every layer of every disk as a disk of its own, upper ones first; also what a change that got stuck may have
    left."""
    assert vm.spec is not None
    left = (vm.number + 1,) if unsettled(vm) else ()
    for disk in vm.spec.disks:
        yield from (replace(disk, layer=layer) for layer in sorted({*tree_of(vm, disk.name), *left}, reverse=True))


def unsettled(vm: Vm) -> bool:
    """Whether the latest change of the VM's layers got stuck, so that its host may have gone a step further than the
    log."""
    touched = [each for each in vm.operations.values() if each.verb in LAYERING]
    return bool(touched) and touched[-1].outcome == "stuck"


def memories_of(vm: Vm) -> tuple[Memory, ...]:
    """Every file that a guest's memory is kept in."""
    return tuple(snapshot.memory for snapshot in vm.snapshots.values() if snapshot.memory is not None)


def written_to(spec: VmSpec) -> dict[DiskName, LayerNumber]:
    """The layer of each disk that its guest writes to."""
    return {disk.name: disk.layer for disk in spec.disks}


def with_layers(spec: VmSpec, layers: Mapping[str, int]) -> VmSpec:
    """The spec with its guest writing to these layers; disks that are not named stay as they are."""
    disks = tuple(replace(disk, layer=layers.get(disk.name, disk.layer)) for disk in spec.disks)
    return replace(spec, disks=disks)


def depth(vm: Vm) -> int:
    """How many layers lie above each other under the guest, at most."""
    assert vm.spec is not None
    return max(len(chain(tree_of(vm, disk.name), disk.layer)) for disk in vm.spec.disks)


def parent_of(vm: Vm, layer: int) -> str | None:
    """The snapshot that a layer of the root disk stands on, whether directly or above layers of none."""
    holders = {snapshot.layers[ROOT]: name for name, snapshot in vm.snapshots.items()}
    return next((holders[below] for below in chain(tree_of(vm, ROOT), layer)[1:] if below in holders), None)


def current_parent(vm: Vm) -> str | None:
    """The snapshot that the guest's present state came from."""
    assert vm.spec is not None
    return parent_of(vm, written_to(vm.spec)[ROOT])


def descendants(vm: Vm, name: str) -> list[str]:
    """The snapshots that came from this one, nearest first."""
    found: list[str] = []
    for other in vm.snapshots.values():
        above: str | None = other.name
        while above is not None and above != name:
            above = parent_of(vm, vm.snapshots[above].layers[ROOT])
        if above == name and other.name != name:
            found.append(other.name)
    return sorted(found, key=lambda each: vm.snapshots[each].number)


def reductions(vm: Vm, without: Collection[str] = ()) -> Iterator[tuple[DiskSpec, Reduction]]:
    """What can be merged or dropped, in order, once the snapshots `without` are no more."""
    assert vm.spec is not None
    for disk in vm.spec.disks:
        held = {
            snapshot.layers[disk.name]
            for snapshot in vm.snapshots.values()
            if snapshot.name not in without and disk.name in snapshot.layers
        }
        for each in spare(tree_of(vm, disk.name), held | {disk.layer}):
            yield disk, each


def after(vm: Vm, disk: str, reduction: Reduction) -> Vm:
    """The VM after one layer of a disk was merged or dropped."""
    assert vm.spec is not None
    tree = reduced(tree_of(vm, disk), reduction)
    layers = {name: stands_for(reduction, layer) for name, layer in written_to(vm.spec).items() if name == disk}
    snapshots = {
        name: replace(
            snapshot,
            layers={
                each: stands_for(reduction, layer) if each == disk else layer
                for each, layer in snapshot.layers.items()
            },
        )
        for name, snapshot in vm.snapshots.items()
    }
    return replace(
        vm, spec=with_layers(vm.spec, layers), layers={**vm.layers, disk: tree}, snapshots=snapshots
    )


def foreseen(vm: Vm, fact: VmEvent) -> Vm:
    """The VM as it will be once this is recorded; when that is cannot be told yet."""
    assert vm.created_at is not None
    return fact.apply(vm, vm.created_at)


def find_snapshot(vm: Vm, name: str) -> Snapshot:
    """The VM's snapshot of this name. Raises Rejected `no-such-snapshot`."""
    found = vm.snapshots.get(name)
    if found is None:
        raise Rejected(
            "no-such-snapshot", f"{vm.name} has no snapshot {name}", hint=f"vmorch vm snapshot list {vm.name}"
        )
    return found


def _is_on(vm: Vm) -> bool:
    """Whether QEMU itself changes the layers, and takes along what is noted of their guest's writes."""
    return vm.power in ("running", "paused")


@message("vm.snapshot-taken")
class SnapshotTaken(VmEvent, frozen=True, kw_only=True):
    """The VM can be brought back to this moment; from then on its guest writes to layer `layer` of each disk."""

    snapshot: Snapshot
    layer: LayerNumber

    def apply(self, vm: Vm, at: datetime) -> Vm:
        assert vm.spec is not None
        running = vm.operations.get(vm.active) if vm.active is not None else None
        frozen = None if running is None else running.frozen
        taken = replace(self.snapshot, taken_at=self.snapshot.taken_at or at, frozen=frozen)
        layers = {
            disk.name: grown(tree_of(vm, disk.name), self.layer, disk.layer) for disk in vm.spec.disks
        }
        return replace(
            vm,
            layers={**vm.layers, **layers},
            spec=with_layers(vm.spec, dict.fromkeys(layers, self.layer)),
            snapshots={**vm.snapshots, taken.name: taken},
            number=max(vm.number, self.layer, taken.number),
            unnoted=vm.unnoted or ("" if _is_on(vm) else "layers were made while the VM was off"),
        )


@message("vm.snapshots-deleted")
class SnapshotsDeleted(VmEvent, frozen=True, kw_only=True):
    """The VM can no longer be brought back to these moments. What their layers hold is merged after."""

    names: tuple[str, ...]

    def apply(self, vm: Vm, at: datetime) -> Vm:
        left = {name: each for name, each in vm.snapshots.items() if name not in self.names}
        return replace(vm, snapshots=left)


@message("vm.layers-merged")
class LayersMerged(VmEvent, frozen=True, kw_only=True):
    """What layer `top` of the disk held is held by the layer below it, `into`, from now on."""

    disk: DiskName
    top: LayerNumber
    into: LayerNumber

    def apply(self, vm: Vm, at: datetime) -> Vm:
        assert vm.spec is not None
        merged = after(vm, self.disk, Merge(self.top, self.into))
        under = self.top in chain(tree_of(vm, self.disk), written_to(vm.spec)[self.disk])
        if not under or _is_on(vm):
            return merged
        return replace(merged, unnoted=vm.unnoted or "layers were merged while the VM was off")


@message("vm.layer-dropped")
class LayerDropped(VmEvent, frozen=True, kw_only=True):
    """This layer of the disk is gone with what it held."""

    disk: DiskName
    layer: LayerNumber

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return after(vm, self.disk, Drop(self.layer))


@message("vm.rolled-back")
class VmRolledBack(VmEvent, frozen=True, kw_only=True):
    """The VM is what it was at the snapshot `to`: its guest writes to the new layer `layer` of each disk named in
    `on`, which stands on the one told there. `safety` is what it was until then, and can be brought back to."""

    to: str
    layer: LayerNumber
    on: dict[DiskName, LayerNumber]
    spec: VmSpec
    safety: Snapshot | None = None

    def apply(self, vm: Vm, at: datetime) -> Vm:
        layers = {disk: grown(tree_of(vm, disk), self.layer, below) for disk, below in self.on.items()}
        kept = {} if self.safety is None else {self.safety.name: replace(self.safety, taken_at=at)}
        return replace(
            vm,
            layers={**vm.layers, **layers},
            spec=self.spec,
            snapshots={**vm.snapshots, **kept},
            number=max(vm.number, self.layer),
            unnoted=vm.unnoted or "the VM was rolled back",
        )


@message("vm.schedule-set")
class ScheduleSet(VmEvent, frozen=True, kw_only=True):
    """Snapshots of the VM are taken and deleted by this schedule; None: by none."""

    schedule: Schedule | None

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, schedule=self.schedule)
