"""See that a guest of another host can come here, and make room for it."""

from hostagent.commands._arrival import blockers
from hostagent.commands._clearing import check_clearable, clear
from hostagent.commands._domain import find
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Observed, PrepareArrival


def _reached(command: PrepareArrival, host: Host) -> bool:
    return _is_expected(command, host) and not blockers(command, host)


def _is_expected(command: PrepareArrival, host: Host) -> bool:
    return find(host, command.vm) is None and host.runs.of(command.vm).arrival == "expected"


@handles(PrepareArrival, reached=_reached)
def prepare_arrival(command: PrepareArrival, host: Host, scope: Scope) -> Done:
    check_clearable(host, command.vm)
    found = blockers(command, host)
    if found:
        raise Rejected("arrival-blocked", "; ".join(found), facts={"blockers": found})
    already = _is_expected(command, host)
    if not already:
        clear(host, command.vm, scope)
        # the record lies in the VM's directory, which the serial log needs: libvirt makes none on the way
        host.runs.expected(command.vm)
    return Done(observed=Observed(power="absent"), already=already)
