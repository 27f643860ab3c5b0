"""Take a domain's persistent configuration from the host; a running one goes on until it stops."""

from hostagent.commands._clearing import forget, is_clear, undefine
from hostagent.commands._domain import find, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done, Observed, UndefineDomain


def _reached(command: UndefineDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    return is_clear(host, command.vm) if domain is None else not domain.isPersistent()


@handles(UndefineDomain, reached=_reached)
def undefine_domain(command: UndefineDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    already = domain is None or not domain.isPersistent()
    if domain is not None and not already:
        undefine(domain)
    seen = Observed(power="absent") if domain is None else observe(host, domain)
    if seen.power == "absent":
        forget(host, command.vm)
    return Done(observed=seen, already=already)
