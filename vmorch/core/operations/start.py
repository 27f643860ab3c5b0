"""Start a VM that is off and wait until it is up."""

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.hostcommands import AwaitReady, StartDomain, StopDomain
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
        cut = StopDomain(vm=vm.id, grace=0, force=True)
        ready = AwaitReady(vm=vm.id, ready=vm.spec.ready, nics=vm.spec.nics)
        return Plan(
            steps=(
                step(host.id, StartDomain(vm=vm.id), undo=cut, deadline=120),
                step(host.id, ready, keep=True, deadline=vm.spec.ready.within + 15),
            )
        )
