"""Delete a backup, or what was left of one that came to nothing."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done, DropBackup


def _reached(command: DropBackup, host: Host) -> bool:
    place = host.targets.place(command.target)
    return not place.directory(command.backup).exists() and not place.draft(command.backup).exists()


@handles(DropBackup, reached=_reached)
def drop_backup(command: DropBackup, host: Host, scope: Scope) -> Done:
    return Done(already=not host.targets.place(command.target).drop(command.backup))
