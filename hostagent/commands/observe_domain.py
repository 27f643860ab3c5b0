"""Look at a domain; nothing is changed."""

from hostagent.commands._domain import observe_vm
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Observed, ObserveDomain


def _reached(command: ObserveDomain, host: Host) -> bool:
    return True


@handles(ObserveDomain, reached=_reached)
def observe_domain(command: ObserveDomain, host: Host, scope: Scope) -> Done:
    try:
        return Done(observed=observe_vm(host, command.vm))
    except Rejected:  # somebody else's domain of that name is not the one that is looked for
        return Done(observed=Observed(power="absent"))
