"""Make a disk of a VM larger, while its guest runs as well."""

from msgspec.structs import replace

from vmorch.core.aggregates.host import CapacityReserved, Host, Reservation, larger, reserve
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.aggregates.volume import DiskGrown, Volume, VolumeResized
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import GrowDisk
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change, step
from vmorch.core.operations.detach_volume import check_whole
from vmorch.core.spec import DiskGiB, DiskName, DiskSpec

GROWING = 120.0


@message("vm.grow-disk")
class GrowVmDisk(VmCommand, frozen=True, kw_only=True):
    """The disk has this size; a guest that runs sees it at once. No disk becomes smaller."""

    verb = "grow-disk"
    summary = "Make a disk of a VM larger"
    needs = frozenset({"off", "crashed", "running", "paused"})

    disk: DiskName
    size: DiskGiB


def plan(command: GrowVmDisk, vm: Vm, host: Host, volume: Volume | None) -> Plan:
    """How the disk grows; `volume` is the one that it is, if it is one. Raises Rejected `bad-spec`, `already-so`,
    `no-capacity`, `volume-kept-by-snapshots`."""
    assert vm.spec is not None
    disk = next((each for each in vm.spec.disks if each.name == command.disk), None)
    if disk is None:
        raise Rejected("bad-spec", f"{vm.name} has no disk {command.disk}")
    check_larger(disk, command.size)
    # a way back to a smaller layer would make it smaller again
    check_whole(vm, disk.name)
    grown = replace(disk, size=command.size)
    new = replace(vm.spec, disks=tuple(grown if each == disk else each for each in vm.spec.disks))
    held = host.reservations.get(vm.id, Reservation.of(vm.spec))
    most, at = larger(held, Reservation.of(new)), stream("host", host.id)
    more = () if volume is None else (change(stream("volume", volume.id), VolumeResized(size=command.size)),)
    return Plan(
        opening=tuple(change(at, each) for each in reserve(host, vm.id, most)),
        steps=(step(host.id, GrowDisk(vm=vm.id, disk=grown), deadline=GROWING),),
        success=(change(stream("vm", vm.id), DiskGrown(name=disk.name, size=command.size)), *more),
        failure=(change(at, CapacityReserved(vm=vm.id, reservation=held)),),
    )


def check_larger(disk: DiskSpec, size: int) -> None:
    """Raises Rejected `bad-spec` if it would become smaller, `already-so` if it is that large."""
    if size < disk.size:
        raise Rejected("bad-spec", f"{disk.name} has {disk.size} GiB; what lies beyond {size} GiB would be lost")
    if size == disk.size:
        raise Rejected("already-so", f"{disk.name} has {size} GiB already")
