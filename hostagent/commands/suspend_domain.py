"""Halt a domain's vCPUs."""

from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done, SuspendDomain


def _reached(command: SuspendDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is not None and observe(host, domain).power == "paused"


@handles(SuspendDomain, reached=_reached)
def suspend_domain(command: SuspendDomain, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    seen = observe(host, domain)
    if seen.power == "paused":
        return Done(observed=seen, already=True)
    host.runs.ran(command.vm)
    domain.suspend()
    return Done(observed=observe(host, domain))
