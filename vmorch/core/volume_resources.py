"""What people and programs read about volumes, and about directories that nobody owns."""

from datetime import datetime

from vmorch.core.aggregates.volume import Volume
from vmorch.core.fleet import Fleet
from vmorch.core.planning.volumes import strays_of
from vmorch.core.value import Value


class VolumeResource(Value, frozen=True, kw_only=True):
    """A volume as people see it. `state` is creating, available, attached, busy (an operation works on it) or
    quarantined; `vm` and `disk` tell of which VM it is which disk. `size` is in GiB. `source` is the volume that it was
    copied from, or the VM whose disk it was. A `stray` is a directory that nobody owned and that was set aside; `files`
    are the first of its files and `bytes` what all of them take."""

    id: str
    name: str
    state: str
    size: int
    storage: str
    host: str
    vm: str | None
    disk: str | None
    image: str | None
    source: str
    quarantined_at: datetime | None
    created_at: datetime | None
    stray: bool
    files: tuple[str, ...]
    bytes: int
    path: str
    version: int


class StrayResource(Value, frozen=True, kw_only=True):
    """A directory on a host that nobody owns, as the host told it at `seen_at`."""

    id: str
    name: str
    host: str
    storage: str
    files: tuple[str, ...]
    bytes: int
    seen_at: datetime | None


def volume_resource(fleet: Fleet, volume: Volume) -> VolumeResource:
    """A volume of the fleet. While it is a VM's disk, that VM tells how large it is."""
    host, user = fleet.hosts.get(volume.host), None if volume.user is None else fleet.vms.get(volume.user)
    size = volume.size
    attached = False
    for disk in () if user is None or user.spec is None else user.spec.disks:
        if disk.home == volume.home and disk.home is not None and disk.name == volume.disk:
            size, attached = disk.size, user is not None and user.created_at is not None and user.power != "absent"
    stray = volume.stray
    return VolumeResource(
        id=volume.id,
        name=volume.name,
        state=_state(volume, attached=attached),
        size=size,
        storage=volume.storage,
        host=volume.host if host is None else host.name,
        vm=None if user is None else user.name,
        disk=volume.disk or None,
        image=None if volume.image is None else volume.image.digest,
        source=volume.source,
        quarantined_at=volume.quarantined_at,
        created_at=volume.created_at,
        stray=stray is not None,
        files=() if stray is None else stray.files,
        bytes=0 if stray is None else stray.bytes,
        path=_path(volume),
        version=volume.version,
    )


def _state(volume: Volume, *, attached: bool) -> str:
    if attached:
        return "attached"
    if volume.user is not None:
        return "busy" if volume.made else "creating"
    if volume.quarantined_at is not None:
        return "quarantined"
    return "available" if volume.made else "unfinished"


def _path(volume: Volume) -> str:
    """Where it lies below the storage's directory."""
    if volume.stray is not None:
        return f"aside/{volume.stray.id}"
    assert volume.home is not None
    return f"vms/{volume.home.vm}/{volume.home.name}" + (f".{volume.layer}" if volume.layer else "") + ".qcow2"


def stray_resources(fleet: Fleet) -> list[StrayResource]:
    """What hosts told of last that nobody owns, by host and id."""
    return [
        StrayResource(
            id=each.id,
            name=each.id,
            host=host.name,
            storage=each.storage,
            files=each.files,
            bytes=each.bytes,
            seen_at=host.strays_at,
        )
        for host in sorted(fleet.hosts.values(), key=lambda host: host.name)
        if not host.retired
        for each in strays_of(fleet, host)
    ]
