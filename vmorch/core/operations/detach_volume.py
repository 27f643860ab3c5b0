"""Take a volume away from its VM; a guest that runs has to let go of it first."""

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.host import CapacityReserved, Host, Reservation
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.aggregates.volume import DiskDetached, Volume, VolumeReleased, split
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import AttachDisk, DetachDisk
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change, step
from vmorch.core.operations.attach_volume import PLUGGING


@message("vm.detach-volume")
class DetachVolume(VmCommand, frozen=True, kw_only=True):
    """The volume is no disk of the VM any more, and holds what the VM wrote to it. A guest that does not let go of it
    keeps it."""

    verb = "detach-volume"
    summary = "Take a volume away from its VM"
    needs = frozenset({"off", "crashed", "running", "paused"})

    volume: Annotated[str, Meta(min_length=1, max_length=64, description="the volume's name or id")]


def plan(vm: Vm, host: Host, volume: Volume) -> Plan:
    """How the VM gives the volume back. Raises Rejected `volume-not-attached`, `volume-kept-by-snapshots`,
    `wrong-power-state`."""
    assert vm.spec is not None
    disk = next((each for each in vm.spec.disks if each.home is not None and each.home == volume.home), None)
    if disk is None:
        raise Rejected("volume-not-attached", f"{volume.name} is no disk of {vm.name}")
    check_whole(vm, disk.name)
    if vm.power == "paused":
        raise Rejected("wrong-power-state", f"{vm.name} is paused: a halted guest cannot let go of a disk")
    new = replace(vm.spec, disks=tuple(each for each in vm.spec.disks if each != disk))
    order = DetachDisk(vm=vm.id, spec=new, disk=disk)
    again = AttachDisk(vm=vm.id, spec=vm.spec, name=disk.name)
    smaller = CapacityReserved(vm=vm.id, reservation=Reservation.of(new))
    return Plan(
        steps=(step(host.id, order, undo=again, deadline=PLUGGING),),
        success=(
            change(stream("vm", vm.id), DiskDetached(name=disk.name)),
            change(stream("volume", volume.id), VolumeReleased(layer=disk.layer, size=disk.size)),
            change(stream("host", host.id), smaller),
        ),
    )


def check_whole(vm: Vm, disk: str) -> None:
    """The disk stands by itself. Raises Rejected `volume-kept-by-snapshots`."""
    if not split(vm, disk):
        return
    names = sorted(name for name, snapshot in vm.snapshots.items() if disk in snapshot.layers)
    raise Rejected(
        "volume-kept-by-snapshots",
        f"{disk} of {vm.name} is held by {', '.join(names) or 'layers that are being merged'}",
        hint=f"vmorch vm snapshot delete {vm.name} NAME, then repeat" if names else "repeat in a moment",
        facts={"snapshots": names},
    )
