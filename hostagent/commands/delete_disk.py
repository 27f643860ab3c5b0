"""Remove a VM's disk from a storage."""

from hostagent.commands._domain import domain_is_active, lookup
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import delete_file, disk_file, drop_if_empty, opened, regular_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import DeleteDisk, Done


def _reached(command: DeleteDisk, host: Host) -> bool:
    with opened(host.layout.vm(command.disk.storage, command.vm)) as directory:
        return directory is None or regular_file(directory, disk_file(command.disk.name)) is None


@handles(DeleteDisk, reached=_reached)
def delete_disk(command: DeleteDisk, host: Host, scope: Scope) -> Done:
    if _reached(command, host):
        return Done(already=True)
    domain = lookup(host.link.calls, command.vm)
    if domain is not None and domain_is_active(domain.state()[0]):
        raise Rejected("busy", f"the domain {command.vm} is active and uses {command.disk.name}")
    directory = host.layout.vm(command.disk.storage, command.vm)
    delete_file(directory, disk_file(command.disk.name))
    drop_if_empty(directory)
    return Done()
