"""Stop a VM: ask its guest first, cut it only if that was asked for."""

from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.hostcommands import StopDomain
from vmorch.core.messages import message
from vmorch.core.operation import Plan, step
from vmorch.core.spec import Graceful


@message("vm.stop")
class StopVm(VmCommand, frozen=True, kw_only=True):
    """The VM is off. Its guest has `grace` seconds; then, with `force`, its power is cut."""

    verb = "stop"
    summary = "Stop a VM, asking its guest first"
    needs = frozenset({"running", "paused", "crashed"})

    grace: Graceful = 60.0
    force: Annotated[bool, Meta(description="cut the power when the guest has not stopped in time")] = False

    def plan(self, vm: Vm, host: Host) -> Plan:
        command = StopDomain(vm=vm.id, grace=self.grace, force=self.force)
        return Plan(steps=(step(host.id, command, deadline=self.grace + 60),))
