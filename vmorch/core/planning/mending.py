"""What the control plane does by itself about VMs that a migration left unsettled or in two places. Pure.

Must not touch a VM that an operation works on, and must not ask a host again and again that has nothing new to say.
"""

from datetime import datetime, timedelta

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.layering import LAYERING, reductions, unsettled
from vmorch.core.aggregates.vm import Vm
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, OperationId, VmId, stream
from vmorch.core.operation import Change
from vmorch.core.operations.delete_snapshot import ForgetSnapshots
from vmorch.core.planning.acts import Act, Because
from vmorch.core.planning.admission import Who, admit_scheduled, admit_settling, admit_tidying

LEFT_OVER = Who(actor="system", reason="left over by a change of its layers that got stuck")
AGAIN = timedelta(seconds=60)
"""When something that did not help is tried again, though nothing is known to have changed."""


class MendVm(Act, frozen=True):
    """Something to do with a VM. It is wanted as long as asking anew gives it again."""

    vm: VmId

    @property
    def subject(self) -> str:
        return stream("vm", self.vm)

    def because(self, fleet: Fleet) -> Because:
        vm = fleet.vms[self.vm]
        causes = [cause for each in vm.operations if (cause := fleet.cause(each)) is not None]
        return Because(reason="after a migration", correlation=causes[-1] if causes else None)

    def changes(self, fleet: Fleet, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        return self.decided(fleet, operation) if self in mend(fleet, now) else ()

    def decided(self, fleet: Fleet, operation: OperationId) -> tuple[Change, ...]:
        """Everything to append on exactly this state."""
        raise NotImplementedError


class SettleVm(MendVm, frozen=True):
    """Judge anew where this frozen VM is: both ends can be asked."""

    def decided(self, fleet: Fleet, operation: OperationId) -> tuple[Change, ...]:
        return admit_settling(fleet, fleet.vms[self.vm], operation=operation)


class TidyVm(MendVm, frozen=True):
    """Clear what is left of this VM on a host that is not its own."""

    host: HostId

    def decided(self, fleet: Fleet, operation: OperationId) -> tuple[Change, ...]:
        return admit_tidying(fleet, fleet.vms[self.vm], self.host, operation=operation)


class MergeSpare(MendVm, frozen=True):
    """Merge layers of this VM that no snapshot needs: a deletion got stuck on its way."""

    def because(self, fleet: Fleet) -> Because:
        return Because(actor=LEFT_OVER.actor, reason=LEFT_OVER.reason)

    def decided(self, fleet: Fleet, operation: OperationId) -> tuple[Change, ...]:
        merge = ForgetSnapshots(snapshots=())
        return admit_scheduled(fleet, fleet.vms[self.vm], merge, operation=operation, who=LEFT_OVER)


Mending = SettleVm | TidyVm | MergeSpare


def mend(fleet: Fleet, now: datetime) -> list[Mending]:
    """What can be done now. At most one thing for each VM."""
    found: list[Mending] = []
    for vm in fleet.vms.values():
        if vm.active is None and vm.layers and vm.frozen is None and _can_merge(fleet, vm, now):
            found.append(MergeSpare(vm.id))
            continue
        if vm.active is not None or not (vm.traces or vm.frozen):
            continue
        if vm.frozen is not None:
            if _can_settle(fleet, vm, now):
                found.append(SettleVm(vm.id))
            continue
        traces = sorted(host for host in vm.traces if _can_tidy(fleet, vm, host, now))
        found += [TidyVm(vm.id, host) for host in traces[:1]]
    return found


def _can_settle(fleet: Fleet, vm: Vm, now: datetime) -> bool:
    assert vm.frozen is not None
    ends = [fleet.hosts.get(vm.frozen.source), fleet.hosts.get(vm.frozen.destination)]
    if not all(_answers(host) for host in ends):
        return False
    news = any(host is not None and host.since is not None and host.since > vm.frozen.since for host in ends)
    return news or now - vm.frozen.since >= AGAIN


def _can_tidy(fleet: Fleet, vm: Vm, id: HostId, now: datetime) -> bool:
    host = fleet.hosts.get(id)
    if not _answers(host) or id == vm.host:
        return False
    tried = [each for each in vm.operations.values() if each.verb == "tidy" and each.arguments.get("host") == id]
    ended = tried[-1].ended_at if tried else None
    assert host is not None
    return ended is None or now - ended >= AGAIN or (host.since is not None and host.since > ended)


def _can_merge(fleet: Fleet, vm: Vm, now: datetime) -> bool:
    # a schedule merges by itself
    if vm.schedule is not None or vm.host is None or vm.deleted_at is not None or not unsettled(vm):
        return False
    ended = next(each.ended_at for each in reversed(list(vm.operations.values())) if each.verb in LAYERING)
    rested = ended is not None and now - ended >= AGAIN
    able = vm.power in ForgetSnapshots.needs and _answers(fleet.hosts.get(vm.host))
    return rested and able and next(reductions(vm), None) is not None


def _answers(host: Host | None) -> bool:
    return host is not None and not host.retired and host.agent == "connected"
