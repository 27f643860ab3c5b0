"""Remove what cloud-init found in the guest."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import SEED, clean, is_clean
from vmorch.core.hostcommands import DeleteSeed, Done


def _reached(command: DeleteSeed, host: Host) -> bool:
    return is_clean(host.layout.vm("local", command.vm), SEED)


@handles(DeleteSeed, reached=_reached)
def delete_seed(command: DeleteSeed, host: Host, scope: Scope) -> Done:
    already = _reached(command, host)
    clean(host.layout.vm("local", command.vm), SEED)
    return Done(already=already)
