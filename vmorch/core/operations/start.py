"""Start a VM that is off and wait until it is up."""

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.layering import unsettled
from vmorch.core.aggregates.vm import Vm, VmCommand, boot
from vmorch.core.hostcommands import DefineDomain, StopDomain
from vmorch.core.messages import message
from vmorch.core.operation import Plan, step


@message("vm.start")
class StartVm(VmCommand, frozen=True, kw_only=True):
    """The VM runs and is up by the word of its guest."""

    verb = "start"
    summary = "Start a VM"
    needs = frozenset({"off", "crashed"})

    def plan(self, vm: Vm, host: Host) -> Plan:
        assert vm.spec is not None
        # a rollback that got stuck may have left another configuration than the log's
        defined = (step(host.id, DefineDomain(vm=vm.id, spec=vm.spec)),) if unsettled(vm) else ()
        started = boot(vm.id, vm.spec, host.id, undo=StopDomain(vm=vm.id, grace=0, force=True))
        return Plan(steps=(*defined, *started))
