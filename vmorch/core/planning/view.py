"""What a planner may know: hosts and VMs at one log position, nothing that changes while it thinks."""

from collections.abc import Collection, Mapping

from vmorch.core.aggregates.budget import Budget
from vmorch.core.aggregates.cluster import Policy
from vmorch.core.aggregates.drain import Drain
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, Position, Stream
from vmorch.core.value import Value


class ClusterView(Value, frozen=True, kw_only=True):
    """The cluster as of `position`. `visiting` are VMs of other hosts that are on their way to a host, or that may have
    left something running there. `drains` are those under way, `erased` the subjects whose keys are destroyed."""

    position: Position
    hosts: tuple[Host, ...]
    vms_on: Mapping[HostId, tuple[Vm, ...]]
    policy: Policy = Policy()
    visiting: Mapping[HostId, tuple[Vm, ...]] = {}
    budgets: tuple[Budget, ...] = ()
    drains: tuple[Drain, ...] = ()
    erased: Collection[Stream] = ()

    def neighbours(self, host: HostId) -> tuple[Vm, ...]:
        """Everything that a VM on that host would have beside it, now or soon."""
        return (*self.vms_on.get(host, ()), *self.visiting.get(host, ()))


def view_of(fleet: Fleet) -> ClusterView:
    """The part of the fleet that planners decide on: living VMs and hosts that are not retired."""
    by_host: dict[HostId, list[Vm]] = {}
    visiting: dict[HostId, list[Vm]] = {}
    for vm in fleet.vms.values():
        if vm.host is not None and vm.deleted_at is None:
            by_host.setdefault(vm.host, []).append(vm)
            for host in vm.traces:
                visiting.setdefault(host, []).append(vm)
    return ClusterView(
        position=fleet.position,
        hosts=tuple(host for host in fleet.hosts.values() if not host.retired),
        vms_on={host: tuple(vms) for host, vms in by_host.items()},
        policy=fleet.cluster.policy,
        visiting={host: tuple(vms) for host, vms in visiting.items()},
        budgets=tuple(budget for budget in fleet.budgets.values() if not budget.deleted),
        drains=tuple(drain for drain in fleet.drains.values() if drain.running),
        erased=fleet.erasures.subjects.keys(),
    )
