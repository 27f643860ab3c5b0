"""Make a new VM from a backup: its disks first, each compared with what was noted, then like any other VM."""

from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.backup import Backup
from vmorch.core.aggregates.backup_steps import making
from vmorch.core.aggregates.host import CapacityReleased, CapacityReserved, Host, Reservation
from vmorch.core.aggregates.vm import VmCreated, VmDeleted, boot
from vmorch.core.hostcommands import StopDomain
from vmorch.core.ids import VmId, stream
from vmorch.core.messages import Command, message
from vmorch.core.operation import Plan, change
from vmorch.core.spec import Name, Storage, VmSpec


@message("backup.restore")
class RestoreBackup(Command, frozen=True, kw_only=True):
    """A new VM of this name whose disks hold what the backup's held, shaped as the VM was then, with cards of its own.
    The VM that was backed up is not touched. `isolated`: without cards."""

    verb = "restore"
    summary = "Make a new VM from a backup"

    name: Name
    host: Annotated[Name, Meta(description="the host; one that suits, if none is given")] | None = None
    storage: Annotated[Storage, Meta(description="where its disks go; as they were, if nothing is said")] | None = None
    isolated: Annotated[bool, Meta(description="without network cards")] = False
    start: Annotated[bool, Meta(description="start it")] = True


def plan(
    command: RestoreBackup, vm: VmId, spec: VmSpec, host: Host, chain: tuple[Backup, ...], placement: dict[str, str]
) -> Plan:
    """How the VM is made on the chosen host, and how it is taken back if a step fails."""
    created = VmCreated(name=command.name, spec=spec, labels={}, host=host.id, epoch=1, placement=placement)
    reserved = CapacityReserved(vm=vm, reservation=Reservation.of(spec))
    cut = StopDomain(vm=vm, grace=0, force=True)
    return Plan(
        opening=(change(stream("vm", vm), created), change(stream("host", host.id), reserved)),
        steps=(*making(vm, spec, host, chain), *(boot(vm, spec, host.id, undo=cut) if command.start else ())),
        failure=(
            change(stream("vm", vm), VmDeleted()),
            change(stream("host", host.id), CapacityReleased(vm=vm)),
        ),
    )
