"""Let a paused VM run on."""

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.hostcommands import ResumeDomain
from vmorch.core.messages import message
from vmorch.core.operation import Plan, step


@message("vm.resume")
class ResumeVm(VmCommand, frozen=True, kw_only=True):
    """The VM runs again where it was paused."""

    verb = "resume"
    summary = "Let a paused VM run on"
    needs = frozenset({"paused"})

    def plan(self, vm: Vm, host: Host) -> Plan:
        # a failure says that the target is not reached, and the call has no halves: there is nothing to take back
        return Plan(steps=(step(host.id, ResumeDomain(vm=vm.id)),))
