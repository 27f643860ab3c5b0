"""What people and programs read about drains, plans and budgets. Additive within v1.

A list shows `DrainResource`, whose figures are enough to choose from; a single one has a line for each VM beside.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec.structs import asdict

from vmorch.core.aggregates.budget import Budget, unavailable
from vmorch.core.aggregates.drain import Begun, Blocked, Cause, Drain, Entry, Move
from vmorch.core.aggregates.vm import Operation
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, VmId
from vmorch.core.value import Value


class DrainResource(Value, frozen=True, kw_only=True):
    """A drain, or the return of VMs to a host. `state` is planned, discarded, running, ending or its outcome; `vms`
    counts VMs by their states; `estimate` is in seconds from the start; `position` is where the plan was made."""

    id: str
    purpose: str
    state: str
    hosts: tuple[str, ...]
    vms: Mapping[str, int]
    waves: int
    estimate: float
    survivable: bool
    on_blocked: str
    actor: str
    reason: str
    parent: str
    position: int
    planned_at: datetime | None
    started_at: datetime | None
    deadline: datetime | None
    ended_at: datetime | None
    version: int


class CauseResource(Value, frozen=True, kw_only=True):
    """What keeps a VM from moving. `hosts` are those that this speaks against as destinations: the first few of
    `number`; none if it is about the VM itself."""

    why: str
    hosts: tuple[str, ...]
    number: int


class DrainVm(Value, frozen=True, kw_only=True):
    """One VM of a drain: what is planned, how far it is, what became of it.

    `state` is planned, waiting, moving, moved, stopped, started, failed, blocked, left or gone. `host` is where it is
    or was last; `doing` is the step under way and `waits_for` what has to happen before it begins.
    """

    vm: str
    name: str
    state: str
    source: str
    destination: str | None
    host: str | None
    how: str | None
    wave: int | None
    memory: int
    copy_disks: bool
    estimate: float
    why: str
    operation: str | None
    doing: str
    waits_for: str
    code: str
    message: str
    causes: tuple[CauseResource, ...]


class HostAfterResource(Value, frozen=True, kw_only=True):
    """How full a host will be, as shares of what it may promise."""

    host: str
    vms: int
    memory: float
    vcpus: float
    disk: float
    memory_before: float


class HostLossResource(Value, frozen=True, kw_only=True):
    """VMs that would find no other place if this host were lost after the plan."""

    host: str
    vms: tuple[str, ...]


class TouchResource(Value, frozen=True, kw_only=True):
    """An event since the plan that touches what it decided."""

    position: int
    kind: str
    subject: str
    actor: str
    reason: str
    detail: str


class DrainDetail(DrainResource, frozen=True, kw_only=True):
    """A drain with everything about it. `touched` makes a plan stale; `losses` and `on_local_disks` say what one more
    host loss after it would cost."""

    lines: tuple[DrainVm, ...]
    after: tuple[HostAfterResource, ...]
    losses: tuple[HostLossResource, ...]
    on_local_disks: int
    max_parallel: int | None
    copy_disks: bool
    limit: float | None
    kept: int
    touched: tuple[TouchResource, ...] = ()


class BudgetResource(Value, frozen=True, kw_only=True):
    """A budget as people see it: `vms` is how many it covers, `away` which of them are not running or on the move."""

    id: str
    name: str
    selector: Mapping[str, str]
    max_unavailable: int
    vms: int
    away: tuple[str, ...]
    created_at: datetime | None
    version: int


def drain_resource(fleet: Fleet, drain: Drain) -> DrainResource:
    """A drain that was planned."""
    assert drain.plan is not None
    state: str = drain.outcome or ("ending" if drain.ending else drain.state)
    return DrainResource(
        id=drain.id,
        purpose=drain.plan.purpose,
        state=state,
        hosts=tuple(_host(fleet, host) for host in drain.plan.hosts),
        vms=dict(sorted(Counter(_states(drain)).items())),
        waves=max((move.wave for move in drain.plan.moves), default=0),
        estimate=drain.plan.seconds,
        survivable=drain.plan.survival.survivable,
        on_blocked=drain.options.on_blocked,
        actor=drain.actor,
        reason=drain.reason,
        parent=drain.parent,
        position=drain.plan.position,
        planned_at=drain.planned_at,
        started_at=drain.started_at,
        deadline=drain.deadline,
        ended_at=drain.ended_at,
        version=drain.version,
    )


def drain_detail(
    fleet: Fleet,
    drain: Drain,
    waits: Mapping[VmId, str] | None = None,
    touched: Sequence[TouchResource] = (),
) -> DrainDetail:
    """A drain with a line for each VM, in the order of the waves; those that are blocked or unplanned come last."""
    assert drain.plan is not None
    plan = drain.plan
    lines = [_line(fleet, drain, move, waits or {}) for move in plan.moves]
    planned = {move.vm for move in plan.moves}
    lines += [_blocked(fleet, each) for each in plan.blocked if each.vm not in planned | drain.entries.keys()]
    lines += [_entry(fleet, each) for each in drain.entries.values() if each.vm not in planned]
    return DrainDetail(
        **asdict(drain_resource(fleet, drain)),
        lines=tuple(lines),
        after=tuple(
            HostAfterResource(
                host=each.name,
                vms=each.vms,
                memory=each.memory,
                vcpus=each.vcpus,
                disk=each.disk,
                memory_before=each.memory_before,
            )
            for each in plan.after
        ),
        losses=tuple(HostLossResource(host=each.name, vms=each.vms) for each in plan.survival.losses),
        on_local_disks=plan.survival.on_local_disks,
        max_parallel=drain.options.max_parallel,
        copy_disks=drain.options.copy_disks,
        limit=drain.options.deadline,
        kept=plan.kept,
        touched=tuple(touched),
    )


def budget_resource(fleet: Fleet, budget: Budget) -> BudgetResource:
    """A budget of the fleet."""
    group = [vm for vm in fleet.vms.values() if vm.deleted_at is None and vm.spec is not None and budget.covers(vm)]
    return BudgetResource(
        id=budget.id,
        name=budget.name,
        selector=budget.selector,
        max_unavailable=budget.max_unavailable,
        vms=len(group),
        away=tuple(sorted(vm.name for vm in group if unavailable(vm))),
        created_at=budget.created_at,
        version=budget.version,
    )


def _states(drain: Drain) -> list[str]:
    assert drain.plan is not None
    found = [_state(drain, move) for move in drain.plan.moves]
    planned = {move.vm for move in drain.plan.moves}
    found += ["blocked" for each in drain.plan.blocked if each.vm not in planned | drain.entries.keys()]
    return found + [each.result for each in drain.entries.values() if each.vm not in planned]


def _state(drain: Drain, move: Move) -> str:
    if move.vm in drain.entries:
        return drain.entries[move.vm].result
    if move.vm in drain.begun:
        return "moving"
    return "waiting" if drain.running else "planned"


def _line(fleet: Fleet, drain: Drain, move: Move, waits: Mapping[VmId, str]) -> DrainVm:
    entry, begun = drain.entries.get(move.vm), drain.begun.get(move.vm)
    operation = begun.operation if begun else entry.operation if entry else None
    destination = _destination(move, entry, begun)
    return DrainVm(
        vm=move.vm,
        name=_name(fleet, move.vm, move.name),
        state=_state(drain, move),
        source=_host(fleet, move.source),
        destination=None if destination is None else _host(fleet, destination),
        host=_host(fleet, entry.host) if entry and entry.host else _where(fleet, move),
        how=begun.how if begun else entry.how if entry and entry.how else move.how,
        wave=move.wave,
        memory=move.memory,
        copy_disks=move.copy_disks,
        estimate=move.estimate,
        why=move.why,
        operation=operation,
        doing=_doing(fleet, move, begun),
        waits_for="" if begun or entry else waits.get(move.vm, ""),
        code=entry.code if entry else "",
        message=entry.message if entry else "",
        causes=_causes(entry.causes if entry else ()),
    )


def _destination(move: Move, entry: Entry | None, begun: Begun | None) -> HostId | None:
    if begun is not None:
        return begun.destination
    if entry is not None and entry.result == "moved":
        return entry.host
    return move.destination


def _where(fleet: Fleet, move: Move) -> str:
    vm = fleet.vms.get(move.vm)
    return _host(fleet, move.source if vm is None or vm.host is None else vm.host)


def _doing(fleet: Fleet, move: Move, begun: Begun | None) -> str:
    """The label of the step under way."""
    vm = fleet.vms.get(move.vm)
    operation: Operation | None = None if begun is None or vm is None else vm.operations.get(begun.operation)
    if operation is None:
        return ""
    progress = operation.progress
    if progress.failed is not None or progress.cancel:
        return "taking it back"
    if progress.over:
        return "looking at both hosts"
    return operation.steps[progress.done].label if progress.done < len(operation.steps) else ""


def _blocked(fleet: Fleet, each: Blocked) -> DrainVm:
    return _bare(
        vm=each.vm,
        name=_name(fleet, each.vm, each.name),
        state="blocked",
        source=_host(fleet, each.source),
        host=_host(fleet, each.source),
        causes=_causes(each.causes),
        memory=_memory(fleet, each.vm),
    )


def _entry(fleet: Fleet, entry: Entry) -> DrainVm:
    return _bare(
        vm=entry.vm,
        name=_name(fleet, entry.vm, entry.name),
        state=entry.result,
        source=_host(fleet, entry.source),
        host=None if entry.host is None else _host(fleet, entry.host),
        code=entry.code,
        message=entry.message,
        operation=entry.operation,
        causes=_causes(entry.causes),
        memory=_memory(fleet, entry.vm),
    )


def _bare(
    *,
    vm: VmId,
    name: str,
    state: str,
    source: str,
    host: str | None,
    causes: tuple[CauseResource, ...],
    memory: int,
    code: str = "",
    message: str = "",
    operation: str | None = None,
) -> DrainVm:
    """A line for a VM that has no move."""
    return DrainVm(
        vm=vm,
        name=name,
        state=state,
        source=source,
        destination=None,
        host=host,
        how=None,
        wave=None,
        memory=memory,
        copy_disks=False,
        estimate=0.0,
        why="",
        operation=operation,
        doing="",
        waits_for="",
        code=code,
        message=message,
        causes=causes,
    )


def _causes(causes: Sequence[Cause]) -> tuple[CauseResource, ...]:
    return tuple(CauseResource(why=each.why, hosts=each.hosts, number=each.number) for each in causes)


def _memory(fleet: Fleet, id: VmId) -> int:
    vm = fleet.vms.get(id)
    return vm.spec.memory if vm is not None and vm.spec is not None else 0


def _host(fleet: Fleet, id: HostId) -> str:
    host = fleet.hosts.get(id)
    return id if host is None else host.name


def _name(fleet: Fleet, id: VmId, known: str) -> str:
    vm = fleet.vms.get(id)
    return known if vm is None or not vm.name else vm.name
