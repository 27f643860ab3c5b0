"""Remove a VM's disk from a storage."""

from hostagent.commands._domain import domain_is_active, lookup
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import clean, is_clean
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import DeleteDisk, Done


def _reached(command: DeleteDisk, host: Host) -> bool:
    path = host.layout.disk(command.vm, command.disk)
    return is_clean(path.parent, path.name)


@handles(DeleteDisk, reached=_reached)
def delete_disk(command: DeleteDisk, host: Host, scope: Scope) -> Done:
    if _reached(command, host):
        return Done(already=True)
    domain = lookup(host.link.calls, command.vm)
    if domain is not None and domain_is_active(domain.state()[0]):
        raise Rejected("busy", f"the domain {command.vm} is active and uses {command.disk.name}")
    path = host.layout.disk(command.vm, command.disk)
    clean(path.parent, path.name)
    return Done()
