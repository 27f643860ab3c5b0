"""Which host works on a volume, and what is done there. Pure.

Files of a volume on local storage are on its host; those on shared storage any host can work on that sees them.
"""

from collections.abc import Iterable

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm
from vmorch.core.aggregates.volume import Volume, volume_at
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Stray
from vmorch.core.ids import HostId, VmId, VolumeId
from vmorch.core.messages import Command
from vmorch.core.operation import Plan
from vmorch.core.operations import attach_volume, detach_volume, grow_disk, volumes
from vmorch.core.operations.attach_volume import AttachVolume
from vmorch.core.operations.detach_volume import DetachVolume
from vmorch.core.operations.grow_disk import GrowVmDisk
from vmorch.core.operations.volumes import (
    AskForStrays,
    Carrier,
    CloneVolume,
    CreateVolume,
    DeleteVolume,
    ResizeVolume,
    RestoreVolume,
    SetStrayAside,
    carrier_name,
)
from vmorch.core.spec import Storage

OnVolume = CloneVolume | ResizeVolume | DeleteVolume | RestoreVolume
"""What is done with a volume that no VM uses."""
OnStrays = AskForStrays | SetStrayAside
"""What is done on a host with directories that nobody owns."""


def plan_disk(fleet: Fleet, vm: Vm, host: Host, command: AttachVolume | DetachVolume | GrowVmDisk) -> Plan:
    """How a VM's disks are changed. Raises Rejected `no-such-volume` and what the operations do."""
    match command:
        case AttachVolume(volume=name):
            return attach_volume.plan(vm, host, _within_reach(fleet, fleet.find_volume(name), host))
        case DetachVolume(volume=name):
            return detach_volume.plan(vm, host, fleet.find_volume(name))
        case GrowVmDisk(disk=name):
            return grow_disk.plan(command, vm, host, volume_of(fleet, vm, name))


def volume_of(fleet: Fleet, vm: Vm, disk: str) -> Volume | None:
    """The volume that a VM's disk is, if it is one."""
    homes = [each.home for each in (() if vm.spec is None else vm.spec.disks) if each.name == disk]
    return fleet.volumes.get(volume_at(homes[0])) if homes and homes[0] is not None else None


def plan_create(fleet: Fleet, command: CreateVolume, *, place: VmId, vm: VmId) -> Plan:
    """Where and how a volume is made. Raises Rejected `name-taken`, `no-such-host`, `no-such-storage`, `no-host-fits`,
    `no-capacity`."""
    _check_free(fleet, command.name)
    hosts = _connected(fleet.hosts.values())
    if command.host is not None:
        hosts = _connected([fleet.find_host(command.host)])
    elif command.storage == "shared":
        hosts = [each for each in hosts if each.facts is not None and each.facts.shared_id]
    if not hosts:
        raise Rejected(
            "no-host-fits", f"no connected host has {command.storage} storage for the volume", hint="vmorch host list"
        )
    best = min(hosts, key=lambda each: (-_left(fleet, each, command.storage), each.name))
    return volumes.create(command, place, _carrier(fleet, command, best, vm))


def plan_on_volume(fleet: Fleet, volume: Volume, command: OnVolume, *, place: VmId, vm: VmId) -> Plan:
    """Where and how something is done with a volume that no VM uses. Raises Rejected `name-taken`, `target-away` and
    what the operations do."""
    if isinstance(command, CloneVolume):
        _check_free(fleet, command.name)
    carrier = _carrier(fleet, command, _worker(fleet, volume), vm)
    match command:
        case CloneVolume():
            return volumes.clone(command, volume, place, carrier)
        case ResizeVolume():
            return volumes.resize(command, volume, carrier)
        case DeleteVolume():
            return volumes.delete(volume, carrier)
        case RestoreVolume():
            return volumes.restore(volume, carrier)


def plan_on_strays(fleet: Fleet, host: Host, command: OnStrays, *, place: VmId, vm: VmId) -> Plan:
    """How a host is asked for directories that nobody owns, or sets one aside that it told of. Raises Rejected
    `host-offline`, `no-such-stray`."""
    if host.agent != "connected":
        raise Rejected("host-offline", f"{host.name} is unreachable", hint=f"vmorch host describe {host.name}")
    carrier, known = _carrier(fleet, command, host, vm), owned(fleet, host.id)
    if isinstance(command, AskForStrays):
        return volumes.find(carrier, known)
    told = [each for each in strays_of(fleet, host) if (each.id, each.storage) == (command.id, command.storage)]
    if not told:
        raise Rejected(
            "no-such-stray",
            f"{host.name} told of no directory {command.id} on {command.storage} storage that nobody owns",
            hint="vmorch volume list --orphans",
        )
    return volumes.set_aside(told[0], VolumeId(place), carrier)


def strays_of(fleet: Fleet, host: Host) -> tuple[Stray, ...]:
    """What the host told of last and what nobody owns now either."""
    known = set(owned(fleet, host.id))
    return tuple(each for each in host.strays if each.id not in known)


def owned(fleet: Fleet, host: HostId) -> tuple[VmId, ...]:
    """The ids whose directories on that host somebody owns, or may: of VMs, also those that have only traces there,
    and of volumes."""
    found: set[VmId] = set()
    for vm in fleet.vms.values():
        if vm.spec is None or vm.deleted_at is not None:
            continue
        shared = any(disk.storage == "shared" for disk in vm.spec.disks)
        uncertain = vm.frozen is not None or vm.active is not None
        if host == vm.host or host in vm.traces or shared or uncertain:
            found.add(vm.id)
    for volume in fleet.volumes.values():
        if volume.home is not None and (volume.storage == "shared" or volume.host == host):
            found.add(volume.home.vm)
    return tuple(sorted(found))


def _worker(fleet: Fleet, volume: Volume) -> Host:
    """A connected host that sees the volume's files. Raises Rejected `host-offline`."""
    own = fleet.hosts.get(volume.host)
    if own is not None and own.agent == "connected":
        return own
    if volume.storage == "shared" and own is not None and own.facts is not None and volume.stray is None:
        others = [each for each in _connected(fleet.hosts.values()) if _sees(each, own.facts.shared_id)]
        if others:
            return min(others, key=lambda each: each.name)
    name = volume.host if own is None else own.name
    raise Rejected("host-offline", f"{name} has the files of {volume.name} and is unreachable", hint="vmorch host list")


def _within_reach(fleet: Fleet, volume: Volume, host: Host) -> Volume:
    """The volume, if that host sees it in case it is shared. Raises Rejected `volume-elsewhere`."""
    own = fleet.hosts.get(volume.host)
    shared = "" if own is None or own.facts is None else own.facts.shared_id
    if volume.storage == "shared" and not _sees(host, shared):
        raise Rejected("volume-elsewhere", f"{host.name} does not see the storage that {volume.name} is on")
    return volume


def _sees(host: Host, shared: str) -> bool:
    return host.facts is not None and bool(shared) and host.facts.shared_id == shared


def _connected(hosts: Iterable[Host]) -> list[Host]:
    return [each for each in hosts if each.agent == "connected" and not each.retired]


def _carrier(fleet: Fleet, command: Command, host: Host, vm: VmId) -> Carrier:
    unused = {"local": _unused(fleet, host, "local"), "shared": _unused(fleet, host, "shared")}
    return Carrier(vm, carrier_name(command.verb, vm), host, unused)


def _left(fleet: Fleet, host: Host, storage: Storage) -> float:
    name = f"{storage}_gib"
    left: float = getattr(host.total(), name) - getattr(host.promised(), name) - _unused(fleet, host, storage)
    return left


def _unused(fleet: Fleet, host: Host, storage: Storage) -> int:
    """What volumes have of a host's storage that are no disk of a VM, in GiB: those of VMs are promised to them."""
    return sum(
        each.size
        for each in fleet.volumes.values()
        if each.host == host.id and each.storage == storage and each.user is None and each.stray is None
    )


def _check_free(fleet: Fleet, name: str) -> None:
    if any(each.name == name for each in fleet.volumes.values()):
        raise Rejected("name-taken", f"a volume called {name} exists", hint=f"vmorch volume describe {name}")
