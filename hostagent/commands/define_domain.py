"""Give the host a domain's persistent configuration."""

from hostagent.commands._defining import define, is_defined
from hostagent.commands._domain import find, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import DefineDomain, Done


def _reached(command: DefineDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is not None and is_defined(host, domain, command.spec)


@handles(DefineDomain, reached=_reached)
def define_domain(command: DefineDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    defined = define(host, command.vm, domain, command.spec)
    return Done(observed=observe(host, defined or domain), already=defined is None)
