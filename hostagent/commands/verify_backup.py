"""Read a backup and all that it stands on, and compare it with what was noted when it was made."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, VerifyBackup


def _reached(command: VerifyBackup, host: Host) -> bool:
    # only reading it again could tell
    return False


@handles(VerifyBackup, reached=_reached)
def verify_backup(command: VerifyBackup, host: Host, scope: Scope) -> Done:
    place = host.targets.place(command.target)
    found = list(place.differences(command.chain, scope)) or list(place.together(command.chain, scope))
    if found:
        raise Rejected("backup-damaged", "; ".join(found), facts={"blockers": found})
    return Done()
