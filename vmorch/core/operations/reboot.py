"""Reboot a VM as a stop and a start.

Both are absolute targets, so an interrupted reboot can be looked at and finished; and changes that waited for
the next start take effect. A reset signal has neither property.
"""

from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand, boot
from vmorch.core.hostcommands import StartDomain, StopDomain
from vmorch.core.messages import message
from vmorch.core.operation import Plan, step
from vmorch.core.spec import Graceful


@message("vm.reboot")
class RebootVm(VmCommand, frozen=True, kw_only=True):
    """The VM was off and runs again. Its guest has `grace` seconds; then, with `force`, its power is cut."""

    verb = "reboot"
    summary = "Stop a VM and start it again"
    needs = frozenset({"running"})

    grace: Graceful = 60.0
    force: Annotated[bool, Meta(description="cut the power when the guest has not stopped in time")] = False

    def plan(self, vm: Vm, host: Host) -> Plan:
        assert vm.spec is not None
        stop = StopDomain(vm=vm.id, grace=self.grace, force=self.force)
        stopped = step(host.id, stop, undo=StartDomain(vm=vm.id), deadline=self.grace + 60)
        return Plan(steps=(stopped, *boot(vm.id, vm.spec, host.id)))
