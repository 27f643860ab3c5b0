"""A volume: a disk with a name and a life of its own, in use by one VM at a time or by none.

Its files stay in one place, its home, whoever uses it. While it is a disk of a VM, that VM's state tells which layer
is written to; the volume learns it when it is given back. Must not know how a guest is given a disk.
"""

import uuid
from datetime import datetime
from typing import ClassVar

from msgspec.structs import replace

from vmorch.core.aggregates.host import StraysFound
from vmorch.core.aggregates.layering import tree_of
from vmorch.core.aggregates.vm import Vm, VmEvent
from vmorch.core.hostcommands import Answer, Done, FindStrays, Stray
from vmorch.core.ids import GiB, HostId, VmId, VolumeId, stream
from vmorch.core.messages import Event, message
from vmorch.core.operation import Change, Step, change
from vmorch.core.spec import DiskGiB, DiskName, DiskSpec, Home, ImagePin, LayerNumber, Storage
from vmorch.core.value import Value

_HOMES = uuid.UUID("5c4f1c0e-9a3b-5d0a-8a35-0c1f2c1d7e60")
NEW = "vda"
"""What the files of a volume are called that was made as one."""


class Volume(Value, frozen=True, kw_only=True):
    """A volume, folded from its stream.

    `host` has its files; those on shared storage it only sees like others. `user` is the VM whose disk `disk` it is, or
    which carries the work on it. One that is `quarantined` waits to be deleted for good. A `stray` is a directory that
    nobody owned and that was set aside: nobody can use it.
    """

    id: VolumeId
    name: str = ""
    version: int = 0
    size: GiB = GiB(0)
    storage: Storage = "local"
    host: HostId = HostId("")
    home: Home | None = None
    image: ImagePin | None = None
    layer: int = 0
    source: str = ""
    made: bool = False
    user: VmId | None = None
    disk: str = ""
    quarantined_at: datetime | None = None
    stray: Stray | None = None
    created_at: datetime | None = None
    gone: bool = False

    def as_disk(self, name: str) -> DiskSpec:
        """The volume as a disk of that name."""
        return DiskSpec(
            name=name, size=self.size, storage=self.storage, image=self.image, layer=self.layer, home=self.home
        )


class VolumeEvent(Event, frozen=True, kw_only=True):
    """A fact about one volume."""

    subject: ClassVar[str] = "volume"

    def apply(self, volume: Volume, at: datetime) -> Volume:
        """The volume after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("volume.created")
class VolumeCreated(VolumeEvent, frozen=True, kw_only=True):
    """A volume of this name is being made, empty or with what the volume `source` holds."""

    name: str
    size: DiskGiB
    storage: Storage
    host: HostId
    home: Home
    source: str = ""

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(
            volume, name=self.name, size=self.size, storage=self.storage, host=self.host, home=self.home,
            source=self.source, created_at=at,
        )  # fmt: skip


@message("volume.made")
class VolumeMade(VolumeEvent, frozen=True, kw_only=True):
    """The volume is there and can be used."""

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(volume, made=True)


@message("volume.kept")
class VolumeKept(VolumeEvent, frozen=True, kw_only=True):
    """What was a disk of a VM that was deleted is a volume now; its files are where they were."""

    name: str
    host: HostId
    disk: DiskSpec
    source: str

    def apply(self, volume: Volume, at: datetime) -> Volume:
        disk = self.disk
        return replace(
            volume, name=self.name, size=disk.size, storage=disk.storage, host=self.host, home=disk.home,
            image=disk.image, layer=disk.layer, source=self.source, made=True, created_at=at,
        )  # fmt: skip


@message("volume.taken")
class VolumeTaken(VolumeEvent, frozen=True, kw_only=True):
    """The volume is to be that disk of the VM, or the VM carries the work on it; nobody else can have it."""

    vm: VmId
    disk: DiskName

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(volume, user=self.vm, disk=self.disk)


@message("volume.released")
class VolumeReleased(VolumeEvent, frozen=True, kw_only=True):
    """Nobody uses the volume. `layer` is the one that was written to last, if that may have changed."""

    layer: LayerNumber | None = None
    size: DiskGiB | None = None

    def apply(self, volume: Volume, at: datetime) -> Volume:
        layer = volume.layer if self.layer is None else self.layer
        return replace(volume, user=None, disk="", layer=layer, size=self.size or volume.size)


@message("volume.resized")
class VolumeResized(VolumeEvent, frozen=True, kw_only=True):
    """The volume is that large, in GiB."""

    size: DiskGiB

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(volume, size=self.size)


@message("volume.set-aside")
class StraySetAside(VolumeEvent, frozen=True, kw_only=True):
    """A directory on a host that nobody owns was moved aside, and waits there to be deleted or brought back."""

    name: str
    host: HostId
    stray: Stray

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(
            volume, name=self.name, host=self.host, storage=self.stray.storage, stray=self.stray, made=True,
            created_at=at, quarantined_at=at,
        )  # fmt: skip


@message("volume.quarantined")
class VolumeQuarantined(VolumeEvent, frozen=True, kw_only=True):
    """The volume waits to be deleted; nobody can use it, and it can still be had back."""

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(volume, quarantined_at=at)


@message("volume.restored")
class VolumeRestored(VolumeEvent, frozen=True, kw_only=True):
    """The volume does not wait to be deleted any more."""

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(volume, quarantined_at=None)


@message("volume.deleted")
class VolumeDeleted(VolumeEvent, frozen=True, kw_only=True):
    """Nothing of the volume is known any more: its files are gone, were never made, or lie again where they did."""

    def apply(self, volume: Volume, at: datetime) -> Volume:
        return replace(volume, gone=True)


@message("vm.disk-attached")
class DiskAttached(VmEvent, frozen=True, kw_only=True):
    """The volume `volume` is a disk of the VM from now on."""

    volume: VolumeId
    disk: DiskSpec

    def apply(self, vm: Vm, at: datetime) -> Vm:
        assert vm.spec is not None
        layer = self.disk.layer
        layers = {**vm.layers, self.disk.name: {layer: None}} if layer else vm.layers
        # a new layer must not get the number of an old file of the volume
        number = max(vm.number, layer)
        spec = replace(vm.spec, disks=(*vm.spec.disks, self.disk))
        return replace(vm, spec=spec, layers=layers, number=number, unnoted=vm.unnoted or "its disks were others")


@message("vm.disk-detached")
class DiskDetached(VmEvent, frozen=True, kw_only=True):
    """This disk is no part of the VM any more."""

    name: DiskName

    def apply(self, vm: Vm, at: datetime) -> Vm:
        assert vm.spec is not None
        spec = replace(vm.spec, disks=tuple(disk for disk in vm.spec.disks if disk.name != self.name))
        layers = {name: tree for name, tree in vm.layers.items() if name != self.name}
        return replace(vm, spec=spec, layers=layers, unnoted=vm.unnoted or "its disks were others")


@message("vm.disk-grown")
class DiskGrown(VmEvent, frozen=True, kw_only=True):
    """This disk is that large, in GiB."""

    name: DiskName
    size: DiskGiB

    def apply(self, vm: Vm, at: datetime) -> Vm:
        assert vm.spec is not None
        disks = tuple(replace(disk, size=self.size) if disk.name == self.name else disk for disk in vm.spec.disks)
        return replace(vm, spec=replace(vm.spec, disks=disks))


def volume_at(home: Home) -> VolumeId:
    """The id of the volume whose files are there."""
    return VolumeId(str(uuid.uuid5(_HOMES, f"{home.vm}/{home.name}")))


def found(step: Step, answer: Answer) -> tuple[Change, ...]:
    """What a host's answer says about directories that nobody owns."""
    if step.label != FindStrays.label or not isinstance(answer, Done) or step.command.kind != FindStrays.kind:
        return ()
    return (change(stream("host", step.host), StraysFound(strays=answer.strays)),)


def split(vm: Vm, disk: str) -> bool:
    """Whether a disk consists of more than one layer, so that it cannot stand by itself."""
    return len(tree_of(vm, disk)) > 1 or any(disk in snapshot.layers for snapshot in vm.snapshots.values())
