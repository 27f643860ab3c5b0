"""Let a domain's vCPUs run again."""

from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.commands._resuming import check_whole, resume
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done, ResumeDomain


def _reached(command: ResumeDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is not None and observe(host, domain).power == "running"


@handles(ResumeDomain, reached=_reached)
def resume_domain(command: ResumeDomain, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    seen = observe(host, domain)
    if seen.power == "running":
        return Done(observed=seen, already=True)
    check_whole(seen)
    after = resume(host, domain)
    host.runs.ran(command.vm)
    return Done(observed=after)
