"""What the operations on backups share: how disks come out of a backup, and who carries the work on one.

An operation belongs to a VM, and the one that was backed up may be gone, or busy. So backups are verified and deleted
by a VM that exists for that alone and is seen while it lasts; it takes nothing of its host unless it is started.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from vmorch.core.aggregates.backup import Backup, saved_of
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import VmCreated, mac_address
from vmorch.core.hostcommands import DefineDomain, DeleteDisk, DeleteSeed, RestoreDisk, UndefineDomain, WriteSeed
from vmorch.core.ids import VmId, stream
from vmorch.core.operation import Change, Step, change, step
from vmorch.core.spec import DiskSpec, Placing, ReadySpec, Storage, VmSpec

COPYING = 24 * 3600.0
"""Seconds that reading or writing whole disks may take."""


def restored_spec(
    backup: Backup,
    vm: VmId,
    name: str,
    *,
    host: str | None = None,
    storage: Storage | None = None,
    isolated: bool = False,
) -> VmSpec:
    """The spec of a VM that is made from a backup: as it was then, with cards of its own or, `isolated`, with none."""
    assert backup.spec is not None
    then = backup.spec
    # what a disk once stood on is a part of what was kept of it
    disks = tuple(DiskSpec(name=disk.name, size=disk.size, storage=storage or disk.storage) for disk in then.disks)
    nics = tuple(replace(nic, mac=mac_address(vm, index)) for index, nic in enumerate(() if isolated else then.nics))
    reachable = nics or then.ready.by in ("none", "agent")
    return replace(
        then,
        disks=disks,
        nics=nics,
        seed=None if then.seed is None else replace(then.seed, hostname=name),
        ready=then.ready if reachable else ReadySpec(by="none"),
        placing=Placing(host=host, host_labels=then.placing.host_labels, away_from=then.placing.away_from),
    )


def making(vm: VmId, spec: VmSpec, host: Host, chain: tuple[Backup, ...]) -> Iterator[Step]:
    """The steps after which the VM's domain is there, off, with its disks out of the last backup of the chain."""
    target = chain[-1].target
    assert target is not None
    for disk in spec.disks:
        order = RestoreDisk(vm=vm, disk=disk, target=target, chain=saved_of(chain))
        yield step(host.id, order, undo=DeleteDisk(vm=vm, disk=disk), deadline=COPYING)
    if spec.seed is not None:
        seed = WriteSeed(vm=vm, seed=spec.seed, nics=spec.nics, instance=vm)
        yield step(host.id, seed, undo=DeleteSeed(vm=vm))
    yield step(host.id, DefineDomain(vm=vm, spec=spec), undo=UndefineDomain(vm=vm))


def carrier_name(verb: str, backup: Backup) -> str:
    """What the VM is called that carries the work on a backup."""
    return f"{verb}-{backup.id[-12:]}"


def carried(verb: str, backup: Backup, vm: VmId, spec: VmSpec, host: Host) -> Change:
    """The work on a backup has a VM that carries it."""
    created = VmCreated(name=carrier_name(verb, backup), spec=spec, labels={}, host=host.id, epoch=1)
    return change(stream("vm", vm), created)
