"""Say where a frozen VM is, when its hosts cannot be asked: an operator's word, recorded with what had been seen."""

from typing import Annotated

import msgspec
from msgspec import Meta

from vmorch.core.aggregates.passage import VmResolved
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.ids import HostId, stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change
from vmorch.core.spec import Name


@message("vm.resolve")
class ResolveVm(VmCommand, frozen=True, kw_only=True):
    """The VM belongs to the host `on`; the other one must not run it, and whatever is left of it there is cleared as
    soon as that host is heard. Be sure that the VM does not run there: nothing else keeps two of it from running.
    """

    verb = "resolve"
    summary = "Say where a VM is after a migration whose outcome is unknown"
    resolves = True

    on: Annotated[Name, Meta(description="the host that the VM belongs to")]


def plan(vm: Vm, host: HostId) -> Plan:
    """The facts that follow from an operator's word that a frozen VM is on this host, one of its two ends."""
    assert vm.frozen is not None
    ends = (vm.frozen.source, vm.frozen.destination)
    other = ends[1] if host == ends[0] else ends[0]
    resolved = VmResolved(
        host=host,
        other=other,
        epoch=vm.epoch + 1,
        evidence={
            "why": vm.frozen.why,
            "source": msgspec.to_builtins(vm.frozen.source_seen),
            "destination": msgspec.to_builtins(vm.frozen.destination_seen),
        },
    )
    return Plan(opening=(change(stream("vm", vm.id), resolved),))
