"""Pause a VM: its vCPUs halt, its memory stays."""

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.hostcommands import SuspendDomain
from vmorch.core.messages import message
from vmorch.core.operation import Plan, step


@message("vm.pause")
class PauseVm(VmCommand, frozen=True, kw_only=True):
    """The VM is paused."""

    verb = "pause"
    summary = "Halt a VM's vCPUs, keeping its memory"
    needs = frozenset({"running"})

    def plan(self, vm: Vm, host: Host) -> Plan:
        # a failure says that the target is not reached, and the call has no halves: there is nothing to take back
        return Plan(steps=(step(host.id, SuspendDomain(vm=vm.id)),))
