"""Prove that a VM can be had back from a backup: by comparing every byte, or by a trial as well.

What was found is a fact about the backup, also if it is a bad one. A look that did not come to an end says nothing.
"""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.backup import VERIFYING, Backup, BackupVerified, saved_of
from vmorch.core.aggregates.backup_steps import COPYING, carried, making
from vmorch.core.aggregates.host import CapacityReleased, CapacityReserved, Host, Reservation
from vmorch.core.aggregates.vm import VmDeleted
from vmorch.core.hostcommands import (
    AwaitReady,
    DeleteDisk,
    DeleteSeed,
    StartDomain,
    StopDomain,
    UndefineDomain,
    VerifyBackup,
)
from vmorch.core.ids import VmId, stream
from vmorch.core.messages import Command, message
from vmorch.core.operation import Plan, Step, change, step
from vmorch.core.spec import ReadySpec, VmSpec

STEADY = 20.0
"""Seconds for which a guest must run that can say in no other way that it is up."""


@message("backup.verify")
class ProveBackup(Command, frozen=True, kw_only=True):
    """It is recorded whether the VM can be had back from the backup: every byte of it, and of what it stands on, is
    read and compared with what was noted when it was made. With `boot` a VM is made from it, without network cards,
    started, waited for until it is up, and deleted."""

    verb = VERIFYING
    summary = "Prove that a VM can be had back from a backup"

    boot: Annotated[bool, Meta(description="also start a VM from it")] = False


def plan(command: ProveBackup, vm: VmId, spec: VmSpec, host: Host, chain: tuple[Backup, ...]) -> Plan:
    """How the last backup of the chain is verified, carried by the VM `vm`."""
    backup, at = chain[-1], stream("host", host.id)
    assert backup.target is not None
    reserved = CapacityReserved(vm=vm, reservation=Reservation.of(spec))
    released = (change(at, CapacityReleased(vm=vm)),) if command.boot else ()
    gone = (change(stream("vm", vm), VmDeleted()), *released)
    verified = BackupVerified(by="boot" if command.boot else "compare", ok=True)
    compared = VerifyBackup(target=backup.target, chain=saved_of(chain))
    return Plan(
        opening=(carried("verify", backup, vm, spec, host), *((change(at, reserved),) if command.boot else ())),
        steps=(
            step(host.id, compared, deadline=COPYING),
            *(_trial(vm, spec, host, chain) if command.boot else ()),
        ),
        success=(*gone, change(stream("backup", backup.id), verified)),
        failure=gone,
    )


def _trial(vm: VmId, spec: VmSpec, host: Host, chain: tuple[Backup, ...]) -> Iterator[Step]:
    yield from making(vm, spec, host, chain)
    cut = StopDomain(vm=vm, grace=0, force=True)
    yield step(host.id, StartDomain(vm=vm), undo=cut, deadline=120)
    ready = spec.ready if spec.ready.by == "agent" else ReadySpec(by="none")
    up = AwaitReady(vm=vm, ready=ready, nics=(), steady=0.0 if ready.by == "agent" else STEADY)
    yield step(host.id, up, deadline=ready.within + STEADY + 15)
    yield step(host.id, cut)
    yield step(host.id, UndefineDomain(vm=vm))
    if spec.seed is not None:
        yield step(host.id, DeleteSeed(vm=vm))
    for disk in spec.disks:
        yield step(host.id, DeleteDisk(vm=vm, disk=disk), deadline=120)
