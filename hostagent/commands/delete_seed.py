"""Remove what cloud-init found in the guest."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import SEED, delete_file, drop_if_empty, opened, regular_file
from vmorch.core.hostcommands import DeleteSeed, Done


def _reached(command: DeleteSeed, host: Host) -> bool:
    with opened(host.layout.vm("local", command.vm)) as directory:
        return directory is None or regular_file(directory, SEED) is None


@handles(DeleteSeed, reached=_reached)
def delete_seed(command: DeleteSeed, host: Host, scope: Scope) -> Done:
    directory = host.layout.vm("local", command.vm)
    deleted = delete_file(directory, SEED)
    drop_if_empty(directory)
    return Done(already=not deleted)
