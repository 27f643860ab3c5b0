"""From an operator's word to everything that is appended when a drain is planned, started, given up or undone.

A plan that is carried out at once and one that was stored before go the same way. Must not append, and must not move
anything: from its start on, a drain is driven by its policy.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from vmorch.core.aggregates import host as hosts
from vmorch.core.aggregates.budget import Budget, BudgetCreated, CreateBudget
from vmorch.core.aggregates.drain import (
    ActivateHost,
    ApplyPlan,
    Drain,
    DrainOptions,
    DrainPlan,
    DrainPlanned,
    DrainStarted,
    PlanDrain,
    check_planned,
)
from vmorch.core.aggregates.host import Host
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId, HostId, stream
from vmorch.core.operation import Change, change
from vmorch.core.planning.admission import Who
from vmorch.core.planning.drain import plan_drain, plan_return, shutdowns
from vmorch.core.planning.draining import end_moves
from vmorch.core.planning.staleness import Touch
from vmorch.core.planning.view import view_of

NAMED = 20
"""How many VMs or events a refusal names at most."""


def admit_plan(fleet: Fleet, command: PlanDrain, id: DrainId, who: Who, now: datetime) -> tuple[Change, ...]:
    """A new plan, and with `start` its beginning. Raises Rejected `no-such-host`, `draining`, `drain-blocked`."""
    found = [fleet.find_host(ref) for ref in command.hosts]
    options = DrainOptions(
        deadline=command.deadline,
        max_parallel=command.max_parallel,
        copy_disks=command.copy_disks,
        on_blocked=command.on_blocked,
    )
    plan = plan_drain(view_of(fleet), tuple(dict.fromkeys(host.id for host in found)), options)
    planned = change(stream("drain", id), DrainPlanned(plan=plan, options=options))
    return (planned, *(start(fleet, id, plan, options, who, now) if command.start else ()))


def admit_apply(
    fleet: Fleet, drain: Drain, command: ApplyPlan, touches: Sequence[Touch], who: Who, now: datetime
) -> tuple[Change, ...]:
    """The beginning of a stored plan. Raises Rejected `plan-stale` with the events that touch it unless it shall be
    rebased, and what a start can raise."""
    plan = check_planned(drain)
    options = DrainOptions(
        deadline=command.deadline or drain.options.deadline,
        max_parallel=command.max_parallel or drain.options.max_parallel,
        copy_disks=drain.options.copy_disks,
        on_blocked=command.on_blocked or drain.options.on_blocked,
    )
    found: list[Change] = []
    if command.rebase:
        view = view_of(fleet)
        gone = [id for id in plan.hosts if id not in {host.id for host in view.hosts}]
        if gone:
            raise Rejected("no-such-host", f"{len(gone)} hosts of the plan are no longer part of the cluster")
        plan = plan_drain(view, plan.hosts, options, before=plan)
        found.append(change(stream("drain", drain.id), DrainPlanned(plan=plan, options=options)))
    elif touches:
        raise stale(drain.id, touches)
    return (*found, *start(fleet, drain.id, plan, options, who, now))


def stale(id: DrainId, touches: Sequence[Touch]) -> Rejected:
    """The refusal of a plan that the cluster has moved away from."""
    count = "1 later event touches" if len(touches) == 1 else f"{len(touches)} later events touch"
    return Rejected(
        "plan-stale",
        f"plan {id} is stale: {count} what it decided",
        hint=f"vmorch plan apply {id} --rebase",
        facts={str(touch.position): touch.text() for touch in touches[:NAMED]},
    )


def start(
    fleet: Fleet,
    id: DrainId,
    plan: DrainPlan,
    options: DrainOptions,
    who: Who,
    now: datetime,
    within: str | None = None,
) -> tuple[Change, ...]:
    """What begins a plan: all its hosts are closed with the same append, before anything moves. `within` names the
    maintenance that it is a part of.

    Raises Rejected `draining` or `in-maintenance` if that holds for one of them already, `drain-blocked` if nothing
    shall begin.
    """
    for host in plan.hosts:
        check_idle(fleet, fleet.hosts[host], within)
    if plan.blocked and options.on_blocked in ("refuse", "abort"):
        names = {each.name: [cause.text() for cause in each.causes] for each in plan.blocked[:NAMED]}
        count = "1 VM" if len(plan.blocked) == 1 else f"{len(plan.blocked)} VMs"
        raise Rejected(
            "drain-blocked",
            f"{count} cannot be moved, so nothing was begun",
            hint="--on-blocked skip moves the rest; --on-blocked stop shuts them down as well",
            facts=names,
        )
    also = shutdowns(view_of(fleet), plan) if options.on_blocked == "stop" else ()
    deadline = None if options.deadline is None else now + timedelta(seconds=options.deadline)
    started = DrainStarted(options=options, deadline=deadline, also=also, actor=who.actor, reason=who.reason)
    closing = [
        change(stream("host", host), event)
        for host in plan.hosts
        if fleet.hosts[host].cordoned is None
        for event in hosts.cordon(fleet.hosts[host], f"drain {id}")
    ]
    return (*closing, change(stream("drain", id), started))


def admit_cancel(fleet: Fleet, drain: Drain, now: datetime) -> tuple[Change, ...]:
    """What ends a drain: nothing begins any more, and what is under way is asked to stop. Raises Rejected
    `already-over` or `already-so`."""
    if drain.state == "planned":
        raise Rejected("already-over", f"drain {drain.id} was never begun", hint=f"vmorch plan discard {drain.id}")
    if not drain.running:
        raise Rejected("already-over", f"drain {drain.id} is over", hint=f"vmorch drain describe {drain.id}")
    if drain.ending in ("cancelled", "deadline"):
        raise Rejected("already-so", f"drain {drain.id} is ending already", hint=f"vmorch drain watch {drain.id}")
    return end_moves(fleet, drain, "cancelled", now)


def admit_activate(
    fleet: Fleet, host: Host, command: ActivateHost, id: DrainId, who: Who, now: datetime
) -> tuple[Change, ...]:
    """What returns a host to service, and with `bring_back` begins the return of what its last drain moved away.

    Raises Rejected `draining`, `in-maintenance`, `already-so`, `nothing-to-bring-back`.
    """
    check_idle(fleet, host)
    opening = [] if host.cordoned is None else [change(stream("host", host.id), each) for each in hosts.uncordon(host)]
    if not command.bring_back:
        if not opening:
            raise Rejected("already-so", f"{host.name} is in service")
        return tuple(opening)
    last = last_drain(fleet, host.id)
    options = DrainOptions(on_blocked="skip")
    plan = None if last is None else plan_return(view_of(fleet), host.id, last, options)
    if plan is None or not (plan.moves or plan.blocked):
        if not opening:
            raise Rejected("nothing-to-bring-back", f"no drain has moved a VM away from {host.name} that could return")
        return tuple(opening)
    at = stream("drain", id)
    started = DrainStarted(options=options, actor=who.actor, reason=who.reason)
    return (*opening, change(at, DrainPlanned(plan=plan, options=options)), change(at, started))


def last_drain(fleet: Fleet, host: HostId) -> Drain | None:
    """The drain of this host that was over last."""
    over = [
        drain
        for drain in fleet.drains.values()
        if drain.state == "over" and drain.plan and drain.plan.purpose == "drain" and host in drain.plan.hosts
    ]
    return max(over, key=lambda drain: (drain.started_at is not None, drain.started_at, drain.id), default=None)


def check_idle(fleet: Fleet, host: Host, within: str | None = None) -> None:
    """Raises Rejected `draining` while a drain of the host, or a return to it, is under way, and `in-maintenance` while
    a maintenance of it is that is not `within`."""
    maintenance = fleet.maintained(host.id)
    if maintenance is not None and maintenance.id != within:
        phase = maintenance.stations[host.id].phase
        raise Rejected(
            "in-maintenance",
            f"{host.name} is {phase} in maintenance {maintenance.id}",
            hint=f"vmorch host maintenance describe {maintenance.id}, or cancel it",
            facts={"maintenance": maintenance.id},
        )
    for drain in fleet.drains.values():
        if drain.running and drain.plan is not None and host.id in drain.plan.hosts:
            word = "drained" if drain.plan.purpose == "drain" else "filled again"
            raise Rejected(
                "draining",
                f"{host.name} is being {word} by {drain.id}",
                hint=f"vmorch drain watch {drain.id}, or vmorch drain cancel {drain.id}",
                facts={"drain": drain.id},
            )


def admit_budget(fleet: Fleet, command: CreateBudget, id: str) -> tuple[Change, ...]:
    """A new budget. Raises Rejected `name-taken`."""
    if any(budget.name == command.name and not budget.deleted for budget in fleet.budgets.values()):
        raise Rejected("name-taken", f"a budget called {command.name} exists", hint="vmorch budget list")
    made = BudgetCreated(name=command.name, selector=command.selector, max_unavailable=command.max_unavailable)
    return (change(stream("budget", id), made),)


def group_of(fleet: Fleet, budget: Budget) -> tuple[str, ...]:
    """Names of the VMs that a budget covers."""
    living = (vm for vm in fleet.vms.values() if vm.deleted_at is None and vm.spec is not None)
    return tuple(sorted(vm.name for vm in living if budget.covers(vm)))
