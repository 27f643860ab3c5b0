"""From an operator's word to all that is appended when a maintenance is begun, a host's work done, or all undone.

Must not append; from its start on, a maintenance is driven by its policy.
"""

from datetime import datetime, timedelta

from vmorch.core.aggregates import maintenance as maintenances
from vmorch.core.aggregates.drain import DrainOptions, DrainPlan
from vmorch.core.aggregates.maintenance import (
    CancelMaintenance,
    Maintenance,
    MaintenanceCancelled,
    MaintenanceOptions,
    MaintenanceStarted,
    StartMaintenance,
)
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, stream
from vmorch.core.operation import Change, change
from vmorch.core.planning.admission import Who
from vmorch.core.planning.drain import plan_drain
from vmorch.core.planning.draining import end_moves
from vmorch.core.planning.maintaining import foreseen
from vmorch.core.planning.undertakings import NAMED, check_idle
from vmorch.core.planning.view import view_of
from vmorch.core.value import Value


class Foresight(Value, frozen=True, kw_only=True):
    """A group of hosts that would be away together, and how it would be emptied now."""

    hosts: tuple[HostId, ...]
    plan: DrainPlan


def foresee(fleet: Fleet, command: StartMaintenance) -> tuple[Foresight, ...]:
    """The groups of a maintenance as they can be told now. Raises Rejected `no-such-host`."""
    view, options = view_of(fleet), DrainOptions(max_parallel=command.max_parallel, on_blocked=command.on_blocked)
    groups = foreseen(view, _hosts(fleet, command), command.at_once, options)
    return tuple(Foresight(hosts=group, plan=plan_drain(view, group, options)) for group in groups)


def admit_maintenance(
    fleet: Fleet, command: StartMaintenance, id: str, who: Who, now: datetime
) -> tuple[Change, ...]:
    """The beginning of a maintenance. Raises Rejected `no-such-host`, `draining`, `in-maintenance`, and `drain-blocked`
    if a VM of any of the hosts cannot be moved as the cluster is now."""
    asked = _hosts(fleet, command)
    for host in asked:
        check_idle(fleet, fleet.hosts[host])
    groups = foresee(fleet, command)
    blocked = {each.name: [cause.text() for cause in each.causes] for group in groups for each in group.plan.blocked}
    if blocked and command.on_blocked in ("refuse", "abort"):
        count = "1 VM" if len(blocked) == 1 else f"{len(blocked)} VMs"
        raise Rejected(
            "drain-blocked",
            f"{count} could not be moved, so nothing was begun",
            hint="--on-blocked skip leaves them where they are; --on-blocked stop shuts them down",
            facts=dict(list(blocked.items())[:NAMED]),
        )
    deadline = None if command.deadline is None else now + timedelta(seconds=command.deadline)
    options = MaintenanceOptions(
        deadline=command.deadline,
        max_parallel=command.max_parallel,
        at_once=command.at_once,
        on_blocked=command.on_blocked,
        bring_back=command.bring_back,
    )
    started = MaintenanceStarted(
        hosts=asked,
        groups=tuple(group.hosts for group in groups),
        options=options,
        deadline=deadline,
        actor=who.actor,
        reason=who.reason,
    )
    return (change(stream("maintenance", id), started),)


def admit_work_done(fleet: Fleet, ref: str) -> tuple[Change, ...]:
    """The operator's word that a host can return. Raises Rejected `no-such-host`, `no-such-maintenance`, `not-open`."""
    host = fleet.find_host(ref)
    found = fleet.maintained(host.id)
    if found is None:
        raise Rejected(
            "no-such-maintenance", f"{host.name} is in no maintenance", hint="vmorch host maintenance list"
        )
    events = maintenances.work_done(found, host.id, host.name)
    return tuple(change(stream("maintenance", found.id), event) for event in events)


def admit_undoing(
    fleet: Fleet, maintenance: Maintenance, command: CancelMaintenance, now: datetime
) -> tuple[Change, ...]:
    """What ends a maintenance and returns its hosts. Raises Rejected `already-over` or `already-so`."""
    if not maintenance.running:
        raise Rejected("already-over", f"maintenance {maintenance.id} is over", hint="vmorch host maintenance list")
    if maintenance.ending:
        raise Rejected("already-so", f"maintenance {maintenance.id} is being cancelled already")
    found = [change(stream("maintenance", maintenance.id), MaintenanceCancelled(bring_back=command.bring_back))]
    for drain in fleet.drains.values():
        ours = drain.running and drain.parent == maintenance.id and drain.ending not in ("cancelled", "deadline")
        if ours and drain.plan is not None and drain.plan.purpose == "drain":
            found += end_moves(fleet, drain, "cancelled", now)
    return tuple(found)


def _hosts(fleet: Fleet, command: StartMaintenance) -> tuple[HostId, ...]:
    return tuple(dict.fromkeys(fleet.find_host(ref).id for ref in command.hosts))
