"""Take a domain's persistent configuration from the host, with what was kept for it; a running one goes on until it
stops."""

from typing import Any

from hostagent.commands._clearing import forget, is_clear, undefine
from hostagent.commands._domain import find, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import SEED, clean, is_clean
from vmorch.core.hostcommands import Done, Observed, UndefineDomain


def _reached(command: UndefineDomain, host: Host) -> bool:
    return _is_reached(find(host, command.vm), command, host)


def _is_reached(domain: Any, command: UndefineDomain, host: Host) -> bool:
    if domain is None:
        return is_clear(host, command.vm) and is_clean(host.layout.vm("local", command.vm), SEED)
    return not domain.isPersistent()


@handles(UndefineDomain, reached=_reached)
def undefine_domain(command: UndefineDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    already = _is_reached(domain, command, host)
    if domain is not None and not already:
        undefine(domain)
    seen = Observed(power="absent") if domain is None else observe(host, domain)
    if seen.power == "absent":
        clean(host.layout.vm("local", command.vm), SEED)
        forget(host, command.vm)
    return Done(observed=seen, already=already)
