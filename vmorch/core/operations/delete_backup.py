"""Delete backups: those that stand on others first, so that what is left at any moment is whole."""

from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.backup import Backup, BackupDeleted, BackupLeaving
from vmorch.core.aggregates.backup_steps import carried
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import VmDeleted
from vmorch.core.hostcommands import DropBackup
from vmorch.core.ids import VmId, stream
from vmorch.core.messages import Command, message
from vmorch.core.operation import Plan, change, step
from vmorch.core.spec import VmSpec

DROPPING = 600.0


@message("backup.delete")
class DeleteBackup(Command, frozen=True, kw_only=True):
    """Nothing of the backup is left. One that others stand on stays, unless they shall go `with_children`."""

    verb = "delete-backup"
    summary = "Delete a backup"

    with_children: Annotated[bool, Meta(description="also those that stand on it")] = False


def plan(vm: VmId, spec: VmSpec, host: Host, backups: tuple[Backup, ...]) -> Plan:
    """How these backups are deleted, in this order, carried by the VM `vm`."""
    steps, leaving = [], []
    for each in backups:
        assert each.target is not None
        at = stream("backup", each.id)
        order = DropBackup(target=each.target, backup=each.id)
        steps.append(step(host.id, order, deadline=DROPPING, then=(change(at, BackupDeleted()),)))
        leaving += [] if each.leaving else [change(at, BackupLeaving())]
    over = (change(stream("vm", vm), VmDeleted()),)
    carrier = carried("delete", backups[-1], vm, spec, host)
    return Plan(opening=(carrier, *leaving), steps=tuple(steps), success=over, failure=over)
