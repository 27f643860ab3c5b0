"""The work on volumes that no VM uses: made, copied, grown, deleted; and on directories that nobody owns.

An operation belongs to a VM, and here there is none. So each is carried by a VM that exists for that alone and is seen
while it lasts; it takes nothing of its host.
"""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import VmCreated, VmDeleted
from vmorch.core.aggregates.volume import (
    NEW,
    StraySetAside,
    Volume,
    VolumeCreated,
    VolumeDeleted,
    VolumeMade,
    VolumeQuarantined,
    VolumeReleased,
    VolumeResized,
    VolumeRestored,
    VolumeTaken,
    volume_at,
)
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import (
    BringBack,
    CopyDisk,
    CreateDisk,
    DeleteDisk,
    FindStrays,
    GrowDisk,
    Purge,
    SetAside,
    Stray,
)
from vmorch.core.ids import GiB, MiB, Stream, VmId, VolumeId, stream
from vmorch.core.messages import Command, HostCommand, message
from vmorch.core.operation import Change, Plan, change, step
from vmorch.core.operations.attach_volume import check_free
from vmorch.core.operations.grow_disk import GROWING, check_larger
from vmorch.core.spec import DiskGiB, DiskSpec, Home, Name, Placing, ReadySpec, Storage, VmSpec
from vmorch.core.value import Value

COPYING = 24 * 3600.0
"""Seconds that a whole disk may take to be copied."""
FINDING = "find-strays"
"""The verb under which a host is asked for directories that nobody owns."""


@message("volume.create")
class CreateVolume(Command, frozen=True, kw_only=True):
    """An empty volume of this name and size. On local storage it is on one host for good."""

    verb = "create-volume"
    summary = "Make an empty volume"

    name: Name
    size: DiskGiB
    storage: Storage = "shared"
    host: Annotated[Name, Meta(description="the host; one that has room, if none is given")] | None = None


@message("volume.clone")
class CloneVolume(Command, frozen=True, kw_only=True):
    """A new volume of this name that holds what the volume holds, and shares nothing with it."""

    verb = "clone-volume"
    summary = "Copy a volume"

    name: Name


@message("volume.resize")
class ResizeVolume(Command, frozen=True, kw_only=True):
    """The volume has this size; none becomes smaller."""

    verb = "resize-volume"
    summary = "Make a volume larger"

    size: DiskGiB


@message("volume.delete")
class DeleteVolume(Command, frozen=True, kw_only=True):
    """The volume waits to be deleted: nobody can use it, and it can be had back. Asked a second time, it is deleted
    for good."""

    verb = "delete-volume"
    summary = "Delete a volume: set it aside, and for good when asked again"


@message("volume.restore")
class RestoreVolume(Command, frozen=True, kw_only=True):
    """The volume does not wait to be deleted any more. What was found on a host that nobody owned is put back where it
    lay."""

    verb = "restore-volume"
    summary = "Have a volume back that waits to be deleted"


@message("volume.find-strays")
class AskForStrays(Command, frozen=True, kw_only=True):
    """It is recorded which directories on the host nobody owns."""

    verb = FINDING
    summary = "Look for directories on a host that nobody owns"


@message("volume.set-aside")
class SetStrayAside(Command, frozen=True, kw_only=True):
    """A directory that nobody owns, as the host told it last, is set aside, and waits to be deleted or had back."""

    verb = "set-aside"
    summary = "Set a directory aside that nobody owns"

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\n)")]
    storage: Storage


class Carrier(Value, frozen=True):
    """The VM that carries the work, with the host that does it, and the GiB of each storage that volumes have there
    which no VM uses."""

    vm: VmId
    name: str
    host: Host
    unused: Mapping[str, int]

    def begun(self, disk: DiskSpec) -> Change:
        """It is there."""
        spec = VmSpec(
            vcpus=1, max_vcpus=1, memory=MiB(16), max_memory=MiB(16), disks=(disk,),
            ready=ReadySpec(by="none"), placing=Placing(host=self.host.name), eviction="never",
        )  # fmt: skip
        created = VmCreated(name=self.name, spec=spec, labels={}, host=self.host.id, epoch=1)
        return change(stream("vm", self.vm), created)

    @property
    def over(self) -> Change:
        """It has done its work."""
        return change(stream("vm", self.vm), VmDeleted())


def carrier_name(verb: str, vm: VmId) -> str:
    """What the VM is called that carries the work."""
    return f"{verb}-{vm[-12:]}"


def create(command: CreateVolume, place: VmId, carrier: Carrier) -> Plan:
    """How an empty volume is made. Raises Rejected `no-such-storage`, `no-capacity`."""
    check_room(carrier, command.storage, command.size)
    home = Home(vm=place, name=NEW)
    created = VolumeCreated(
        name=command.name, size=command.size, storage=command.storage, host=carrier.host.id, home=home
    )
    disk = DiskSpec(name=NEW, size=command.size, storage=command.storage, home=home)
    return _made(carrier, created, disk, CreateDisk(vm=carrier.vm, disk=disk), 300.0)


def clone(command: CloneVolume, source: Volume, place: VmId, carrier: Carrier) -> Plan:
    """How a volume is copied. Raises Rejected `volume-in-use`, `volume-quarantined`, `no-capacity`."""
    check_free(source)
    check_room(carrier, source.storage, source.size)
    home = Home(vm=place, name=NEW)
    created = VolumeCreated(
        name=command.name, size=source.size, storage=source.storage, host=carrier.host.id, home=home, source=source.name
    )
    disk = DiskSpec(name=NEW, size=source.size, storage=source.storage, home=home)
    copied = CopyDisk(vm=carrier.vm, disk=disk, source=source.as_disk(NEW))
    made = _made(carrier, created, disk, copied, COPYING)
    at = stream("volume", source.id)
    released = change(at, VolumeReleased())
    return replace(
        made,
        opening=(*made.opening, change(at, VolumeTaken(vm=carrier.vm, disk=NEW))),
        success=(*made.success, released),
        failure=(*made.failure, released),
    )


def _made(carrier: Carrier, created: VolumeCreated, disk: DiskSpec, order: HostCommand, deadline: float) -> Plan:
    at = stream("volume", volume_at(created.home))
    undo = DeleteDisk(vm=carrier.vm, disk=disk)
    return Plan(
        opening=(carrier.begun(disk), change(at, created)),
        steps=(step(carrier.host.id, order, undo=undo, deadline=deadline),),
        success=(change(at, VolumeMade()), carrier.over),
        failure=(change(at, VolumeDeleted()), carrier.over),
    )


def resize(command: ResizeVolume, volume: Volume, carrier: Carrier) -> Plan:
    """How a volume grows that nobody uses. Raises Rejected `volume-in-use`, `volume-quarantined`, `bad-spec`,
    `already-so`, `no-capacity`."""
    check_free(volume)
    check_larger(volume.as_disk(volume.name), command.size)
    check_room(carrier, volume.storage, command.size - volume.size)
    grown = replace(volume.as_disk(NEW), size=command.size)
    order = GrowDisk(vm=carrier.vm, disk=grown)
    return _carried(carrier, volume, order, GROWING, VolumeResized(size=command.size))


def delete(volume: Volume, carrier: Carrier) -> Plan:
    """How a volume is set aside, or deleted if it was. Raises Rejected `volume-in-use`."""
    at = stream("volume", volume.id)
    if volume.user is not None:
        check_free(replace(volume, quarantined_at=None, stray=None))
    if volume.quarantined_at is None:
        return Plan(opening=(change(at, VolumeQuarantined()),))
    if volume.stray is not None:
        order: HostCommand = Purge(storage=volume.stray.storage, id=volume.stray.id)
    else:
        order = DeleteDisk(vm=carrier.vm, disk=volume.as_disk(NEW))
    return _carried(carrier, volume, order, 600.0, VolumeDeleted(), commits=True)


def restore(volume: Volume, carrier: Carrier) -> Plan:
    """How a volume is had back. Raises Rejected `already-so`, `volume-in-use`."""
    at = stream("volume", volume.id)
    if volume.quarantined_at is None:
        raise Rejected("already-so", f"{volume.name} does not wait to be deleted")
    if volume.user is not None:
        check_free(replace(volume, quarantined_at=None, stray=None))
    if volume.stray is None:
        return Plan(opening=(change(at, VolumeRestored()),))
    order = BringBack(storage=volume.stray.storage, id=volume.stray.id)
    return _carried(carrier, volume, order, 60.0, VolumeDeleted())


def _carried(
    carrier: Carrier,
    volume: Volume,
    order: HostCommand,
    deadline: float,
    fact: VolumeResized | VolumeDeleted,
    *,
    commits: bool = False,
) -> Plan:
    at = stream("volume", volume.id)
    released = (change(at, VolumeReleased()),)
    home = Home(vm=VmId(volume.id), name=NEW)
    disk = volume.as_disk(NEW) if volume.home is not None else DiskSpec(name=NEW, size=GiB(1), home=home)
    gone = isinstance(fact, VolumeDeleted)
    return Plan(
        opening=(carrier.begun(disk), change(at, VolumeTaken(vm=carrier.vm, disk=NEW))),
        steps=(step(carrier.host.id, order, deadline=deadline, commits=commits),),
        success=(change(at, fact), *(() if gone else released), carrier.over),
        failure=(*released, carrier.over),
    )


def find(carrier: Carrier, known: tuple[VmId, ...]) -> Plan:
    """How a host is asked for directories that nobody owns; what it finds is recorded with its answer."""
    placeholder = DiskSpec(name=NEW, size=GiB(1), home=Home(vm=carrier.vm, name=NEW))
    return Plan(
        opening=(carrier.begun(placeholder),),
        steps=(step(carrier.host.id, FindStrays(known=known), deadline=60.0),),
        success=(carrier.over,),
        failure=(carrier.over,),
    )


def set_aside(stray: Stray, id: VolumeId, carrier: Carrier) -> Plan:
    """How a directory that nobody owns is set aside."""
    at: Stream = stream("volume", id)
    placeholder = DiskSpec(name=NEW, size=GiB(1), home=Home(vm=carrier.vm, name=NEW))
    noted = StraySetAside(name=f"stray-{stray.id[-12:]}", host=carrier.host.id, stray=stray)
    moved = SetAside(storage=stray.storage, id=stray.id)
    back = BringBack(storage=stray.storage, id=stray.id)
    return Plan(
        opening=(carrier.begun(placeholder),),
        steps=(step(carrier.host.id, moved, undo=back),),
        success=(change(at, noted), carrier.over),
        failure=(carrier.over,),
    )


def check_room(carrier: Carrier, storage: Storage, more: int) -> None:
    """The host has the storage, and room on it. Raises Rejected `no-such-storage`, `no-capacity`."""
    host = carrier.host
    total, promised, name = host.total(), host.promised(), f"{storage}_gib"
    left = getattr(total, name) - getattr(promised, name) - carrier.unused.get(storage, 0)
    if storage == "shared" and (host.facts is None or not host.facts.shared_id):
        raise Rejected("no-such-storage", f"{host.name} has no shared storage", hint="--storage local --host HOST")
    if more > left:
        raise Rejected("no-capacity", f"{host.name} has {left:.0f} GiB of {storage} storage left, and needs {more}")
