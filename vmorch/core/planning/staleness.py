"""Which later events touch what a plan decided, so that it is refused with their names and never by its age.

An event touches a plan if it changes something that the decision was made from: a VM of the plan, a host that one
leaves or goes to, the rules that hold for them. What only gives more room touches a plan that blocks somebody. Must not
judge whether the plan would still work: that is planning anew.
"""

from collections.abc import Callable, Iterable

from vmorch.core.aggregates import host as hosts
from vmorch.core.aggregates import vm as vms
from vmorch.core.aggregates.budget import BudgetCreated, BudgetDeleted
from vmorch.core.aggregates.cluster import PolicySet
from vmorch.core.aggregates.drain import DrainPlan, DrainStarted
from vmorch.core.aggregates.erasure import SubjectErased
from vmorch.core.aggregates.host import Host, Reservation
from vmorch.core.aggregates.passage import VmMigrated, VmResolved
from vmorch.core.aggregates.vm import Vm
from vmorch.core.codec import Fact
from vmorch.core.fleet import Fleet, name_held
from vmorch.core.ids import DrainId, HostId, Position, Stream, VmId, split_stream
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.evict import EvictionSet
from vmorch.core.operations.label import VmLabelled
from vmorch.core.operations.resize import VmResized
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.drain import digest_of
from vmorch.core.value import Value


class Touch(Value, frozen=True, kw_only=True):
    """A later event that a plan must not ignore."""

    position: Position
    kind: str
    subject: str
    actor: str
    reason: str
    detail: str = ""

    def text(self) -> str:
        """On one line."""
        said = f' "{self.reason}"' if self.reason else ""
        detail = f"  {self.detail}" if self.detail else ""
        return f"{self.kind}  {self.subject}{detail}  {self.actor}{said}"


ARRIVING = frozenset({vms.VmCreated.kind, VmMigrated.kind, VmLabelled.kind})
"""What can touch a plan though it is told of a VM that the plan does not have."""
HARMLESS = frozenset({SnapshotVm.verb, DeleteSnapshot.verb})
"""Operations after which a VM is where it was and what it was: those of schedules would make every plan stale."""


def may_touch(plan: DrainPlan) -> Callable[[Stream, str], bool]:
    """Whether an event of this stream and kind can touch the plan at all: most of a log is about other VMs."""
    planned = {each.vm for each in plan.moves} | {each.vm for each in plan.blocked}

    def concerns(stream: Stream, kind: str) -> bool:
        subject, id = split_stream(stream)
        return subject != "vm" or kind in ARRIVING or id in planned

    return concerns


def touching(fleet: Fleet, plan: DrainPlan, facts: Iterable[Fact]) -> list[Touch]:
    """Those of the facts after a plan that touch it. `fleet` is the state after them."""
    plan_view = _Decided(fleet, plan)
    found: list[Touch] = []
    for fact in facts:
        detail = plan_view.touched(fact) if fact.position > plan.position else None
        if detail is not None:
            kind, id = split_stream(fact.stream)
            found.append(
                Touch(
                    position=fact.position,
                    kind=fact.event.kind,
                    subject=f"{kind}/{name_held(fleet, fact.stream) or id}",
                    actor=fact.meta.actor,
                    reason=fact.meta.reason,
                    detail=detail,
                )
            )
    return found


class _Decided:
    """What a plan was made from."""

    def __init__(self, fleet: Fleet, plan: DrainPlan) -> None:
        self.fleet = fleet
        self.plan = plan
        self.on = {each.vm: each.on for each in plan.moves} | {each.vm: each.on for each in plan.blocked}
        self.sources = frozenset(plan.hosts) | {each.source for each in plan.moves}
        self.destinations = frozenset(each.destination for each in plan.moves if each.destination is not None)
        self.hosts = self.sources | self.destinations

    def touched(self, fact: Fact) -> str | None:
        """What about a fact touches the plan, in words that may be empty; None if nothing does."""
        kind, id = split_stream(fact.stream)
        match kind:
            case "vm":
                return self._vm(VmId(id), fact)
            case "host":
                return self._host(HostId(id), fact)
            case "budget":
                return self._budget(id, fact)
            case "drain":
                return self._drain(DrainId(id), fact)
            case "cluster":
                return "" if isinstance(fact.event, PolicySet) else None
            case "audit":
                return "" if isinstance(fact.event, SubjectErased) and self._erases(fact.event.key_of) else None
        return None

    def _erases(self, subject: Stream) -> bool:
        """Whether a VM of the plan cannot be moved any more because its user data was sealed for this subject."""
        planned = (self.fleet.vms.get(id) for id in self.on)
        return any(vm is not None and vm.spec is not None and vm.spec.sealed_for == subject for vm in planned)

    def _vm(self, id: VmId, fact: Fact) -> str | None:
        event = fact.event
        if isinstance(event, vms.VmCreated):
            return f"on {self._name(event.host)}" if event.host in self.sources else None
        if isinstance(event, VmMigrated):
            arrives = event.destination in self.sources
            return f"to {self._name(event.destination)}" if id in self.on or arrives else None
        if isinstance(event, VmLabelled):
            vm = self.fleet.vms.get(id)
            return "" if id in self.on or (vm is not None and vm.host in self.destinations) else None
        if id not in self.on:
            return None
        match event:
            case vms.OperationStarted(verb=verb):
                return None if verb in HARMLESS else verb
            case vms.VmObserved(observed=seen):
                now = seen.power in ("running", "paused")
                return seen.power if now != self.on[id] else None
            case vms.VmDeleted() | VmResized() | VmResolved() | EvictionSet():
                return ""
        return None

    def _host(self, id: HostId, fact: Fact) -> str | None:
        event, blocks = fact.event, bool(self.plan.blocked)
        match event:
            case hosts.HostUncordoned():
                return "" if blocks and id not in self.sources else None
            case hosts.HostReachable():
                return "" if blocks else None
            case hosts.SessionStarted(facts=facts):
                known = self.plan.facts.get(id)
                if known is None:
                    return "" if blocks else None
                said = digest_of(Host(id=id, name="", facts=facts))
                return "it is not what it was" if said != known else None
            case hosts.CapacityReserved(vm=vm, reservation=asked):
                return self._promised(vm, asked) if id in self.destinations and vm not in self.on else None
            case hosts.CapacityReleased():
                return "" if blocks and id not in self.sources else None
        if id not in self.hosts:
            return None
        match event:
            case hosts.HostCordoned():
                return "" if id in self.destinations else None
            case hosts.HostUnreachable() | hosts.HostRetired():
                return ""
            case hosts.HostLabelled() | hosts.OvercommitSet():
                return "" if id in self.destinations else None
        return None

    def _budget(self, id: str, fact: Fact) -> str | None:
        budget = self.fleet.budgets.get(id)
        if budget is None or not isinstance(fact.event, BudgetCreated | BudgetDeleted):
            return None
        covered = any(vm in self.fleet.vms and budget.covers(self.fleet.vms[vm]) for vm in self.on)
        return "" if covered else None

    def _drain(self, id: DrainId, fact: Fact) -> str | None:
        """Another drain that begins takes places that this plan may count on."""
        other = self.fleet.drains.get(id)
        if not isinstance(fact.event, DrainStarted) or other is None or other.plan is None:
            return None
        taken = {move.destination for move in other.plan.moves}
        return "" if taken & self.destinations or set(other.plan.hosts) & self.hosts else None

    def _promised(self, id: VmId, asked: Reservation) -> str:
        vm: Vm | None = self.fleet.vms.get(id)
        return f"{vm.name if vm else id} ({asked.memory} MiB)"

    def _name(self, id: HostId) -> str:
        host = self.fleet.hosts.get(id)
        return id if host is None else host.name
