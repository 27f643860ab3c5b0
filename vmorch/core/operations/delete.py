"""Delete a VM: its domain with what was kept for it, its disks unless they shall stay; then its promise of capacity."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.host import CapacityReleased, Host
from vmorch.core.aggregates.layer_steps import left_memories
from vmorch.core.aggregates.layering import files_of, memories_of
from vmorch.core.aggregates.vm import Vm, VmCommand, VmDeleted
from vmorch.core.aggregates.volume import VolumeKept, VolumeReleased, volume_at
from vmorch.core.hostcommands import DeleteDisk, DetachDisk, DropLayers, StopDomain, UndefineDomain
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Change, Plan, change, step
from vmorch.core.operations.detach_volume import check_whole
from vmorch.core.spec import DiskSpec, VmSpec


@message("vm.delete")
class DeleteVm(VmCommand, frozen=True, kw_only=True):
    """The VM is gone from its host, a running one included. With `keep_disks` its disks stay there, as volumes.
    Volumes that it used are given back in any case."""

    verb = "delete"
    summary = "Delete a VM and its disks"

    keep_disks: Annotated[bool, Meta(description="keep the disks as volumes")] = False

    def plan(self, vm: Vm, host: Host) -> Plan:
        assert vm.spec is not None
        cut = StopDomain(vm=vm.id, grace=0, force=True)
        own = [disk for disk in vm.spec.disks if disk.home is None]
        lent = [disk for disk in vm.spec.disks if disk.home is not None]
        for disk in vm.spec.disks if self.keep_disks else lent:
            check_whole(vm, disk.name)
        disks = () if self.keep_disks else tuple(each for each in files_of(vm) if each.home is None)
        kept = tuple(disk.name for disk in own) if self.keep_disks else ()
        memories = (*memories_of(vm), *left_memories(vm))
        forget = DropLayers(vm=vm.id, stacks=(), next=vm.number + 1, memory=memories)
        return Plan(
            steps=(
                step(host.id, cut, commits=True),
                *(step(host.id, DetachDisk(vm=vm.id, spec=rest, disk=disk)) for disk, rest in _lent(vm.spec)),
                step(host.id, UndefineDomain(vm=vm.id)),
                *((step(host.id, forget, deadline=120),) if memories else ()),
                *(step(host.id, DeleteDisk(vm=vm.id, disk=disk), deadline=120) for disk in disks),
            ),
            success=(
                change(stream("vm", vm.id), VmDeleted(kept_disks=kept)),
                *(_kept(vm, host, disk) for disk in own if self.keep_disks),
                *(_given_back(disk) for disk in lent),
                change(stream("host", host.id), CapacityReleased(vm=vm.id)),
            ),
        )


def _lent(spec: VmSpec) -> Iterator[tuple[DiskSpec, VmSpec]]:
    """The volumes among the disks, each with what is left of the VM without it; one that only carries the work on a
    volume never had it."""
    left = spec
    for disk in spec.disks:
        if disk.home is not None and len(left.disks) > 1:
            left = replace(left, disks=tuple(each for each in left.disks if each != disk))
            yield disk, left


def _kept(vm: Vm, host: Host, disk: DiskSpec) -> Change:
    home = disk.at(vm.id)
    name = f"{vm.name[:40].rstrip('-')}-{disk.name}-{vm.id[-6:]}"
    kept = VolumeKept(name=name, host=host.id, disk=replace(disk, home=home), source=vm.name)
    return change(stream("volume", volume_at(home)), kept)


def _given_back(disk: DiskSpec) -> Change:
    assert disk.home is not None
    return change(stream("volume", volume_at(disk.home)), VolumeReleased(layer=disk.layer, size=disk.size))
