"""Give the host a domain's persistent configuration."""

from typing import Any

from hostagent.commands._chain import check_topmost
from hostagent.commands._defining import define, is_defined
from hostagent.commands._domain import find, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.domain_xml import Told
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import DefineDomain, Done


def _reached(command: DefineDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is not None and is_defined(host, domain, command.spec)


def _check(command: DefineDomain, host: Host, domain: Any | None) -> None:
    """An order that was given before a snapshot and comes after it knows nothing of the layers since. Raises Rejected
    `chain-drift`."""
    paths = {disk.name: host.layout.disk(command.vm, disk) for disk in command.spec.disks}
    check_topmost(command.vm, paths.values())
    used = Told(domain.XMLDesc(0)).disks if domain is not None and domain.isActive() else {}
    for name, path in paths.items():
        if used.get(name, str(path)) != str(path):
            raise Rejected("chain-drift", f"the running guest writes {name} to {used[name]} and not to {path}")


@handles(DefineDomain, reached=_reached)
def define_domain(command: DefineDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    if not _reached(command, host):
        _check(command, host, domain)
    defined = define(host, command.vm, domain, command.spec)
    return Done(observed=observe(host, defined or domain), already=defined is None)
