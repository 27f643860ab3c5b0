"""Give a VM a volume as a further disk; a guest that runs gets it as it runs."""

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.host import CapacityReserved, Host, Reservation, larger, reserve
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.aggregates.volume import DiskAttached, Volume, VolumeReleased, VolumeTaken
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import AttachDisk, DetachDisk
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change, step
from vmorch.core.spec import VmSpec

PLUGGING = 60.0
MOST_DISKS = 16
LETTERS = "bcdefghijklmnopqrstuvwxy"
"""vda is the VM's own, and vdz the seed's."""


@message("vm.attach-volume")
class AttachVolume(VmCommand, frozen=True, kw_only=True):
    """The volume is a disk of the VM, under the first name that is free. The VM's own disks stay the first ones."""

    verb = "attach-volume"
    summary = "Give a VM a volume as a disk"
    needs = frozenset({"off", "crashed", "running", "paused"})

    volume: Annotated[str, Meta(min_length=1, max_length=64, description="the volume's name or id")]


def plan(vm: Vm, host: Host, volume: Volume) -> Plan:
    """How the VM gets the volume. Raises Rejected `volume-in-use`, `volume-quarantined`, `volume-elsewhere`,
    `bad-spec`, `no-capacity`."""
    assert vm.spec is not None
    check_free(volume)
    _check_reachable(vm, host, volume)
    disk = volume.as_disk(_free_name(vm.spec))
    new = replace(vm.spec, disks=(*vm.spec.disks, disk))
    held = host.reservations.get(vm.id, Reservation.of(vm.spec))
    most = larger(held, Reservation.of(new))
    there = stream("host", host.id)
    promise = () if most == held else tuple(change(there, each) for each in reserve(host, vm.id, most))
    back = () if most == held else (change(there, CapacityReserved(vm=vm.id, reservation=held)),)
    attach = AttachDisk(vm=vm.id, spec=new, name=disk.name)
    detach = DetachDisk(vm=vm.id, spec=vm.spec, disk=disk)
    at = stream("volume", volume.id)
    return Plan(
        opening=(change(at, VolumeTaken(vm=vm.id, disk=disk.name)), *promise),
        steps=(step(host.id, attach, undo=detach, deadline=PLUGGING),),
        success=(change(stream("vm", vm.id), DiskAttached(volume=volume.id, disk=disk)),),
        failure=(change(at, VolumeReleased()), *back),
    )


def check_free(volume: Volume) -> None:
    """The volume is there and nobody uses it. Raises Rejected `volume-in-use`, `volume-quarantined`."""
    if volume.quarantined_at is not None or volume.stray is not None:
        raise Rejected(
            "volume-quarantined", f"{volume.name} waits to be deleted", hint=f"vmorch volume restore {volume.name}"
        )
    if volume.user is not None or not volume.made:
        raise Rejected(
            "volume-in-use",
            f"{volume.name} is in use" + (f" as {volume.disk} of {volume.user}" if volume.user else ""),
            hint=f"vmorch volume describe {volume.name}",
        )


def _check_reachable(vm: Vm, host: Host, volume: Volume) -> None:
    if volume.storage == "local" and volume.host != host.id:
        raise Rejected(
            "volume-elsewhere",
            f"{volume.name} is on another host's local storage than {vm.name}, which stands on {host.name}",
            hint=f"vmorch vm migrate {vm.name}, or keep volumes that travel on shared storage",
        )


def _free_name(spec: VmSpec) -> str:
    taken = {disk.name for disk in spec.disks}
    if len(taken) >= MOST_DISKS:
        raise Rejected("bad-spec", f"a VM has at most {MOST_DISKS} disks")
    return next(name for letter in LETTERS if (name := f"vd{letter}") not in taken)
