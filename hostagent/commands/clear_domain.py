"""Take a halted half of a domain and its configuration from the host."""

from hostagent.commands._clearing import clear, is_clear
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import ClearDomain, Done, Observed


def _reached(command: ClearDomain, host: Host) -> bool:
    return is_clear(host, command.vm)


@handles(ClearDomain, reached=_reached)
def clear_domain(command: ClearDomain, host: Host, scope: Scope) -> Done:
    already = _reached(command, host)
    if not already:
        clear(host, command.vm, scope)
    return Done(observed=Observed(power="absent"), already=already)
