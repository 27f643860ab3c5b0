"""Let a domain's vCPUs run again."""

from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, ResumeDomain

_MOVED = frozenset({"migration", "postcopy", "postcopy failed"})
"""Paused because its other half may run elsewhere: to resume this one could make two of it."""


def _reached(command: ResumeDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is not None and observe(host, domain).power == "running"


@handles(ResumeDomain, reached=_reached)
def resume_domain(command: ResumeDomain, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    seen = observe(host, domain)
    if seen.power == "running":
        return Done(observed=seen, already=True)
    if seen.power == "paused" and seen.reason in _MOVED:
        raise Rejected("libvirt-refused", f"the domain is paused for {seen.reason}; it may run on another host")
    domain.resume()
    after = observe(host, domain)
    if after.power == "paused":
        # libvirt answers with success even if the disk that stopped the guest is still full
        raise Rejected("libvirt-refused", f"the domain paused again at once: {after.reason}")
    return Done(observed=after)
