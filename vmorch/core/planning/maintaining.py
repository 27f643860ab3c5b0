"""What to do now for a maintenance under way: which hosts go on, which group begins, and when it is over.

A group is what can be out of service together: all its VMs have a place, and the cluster could lose one more host then.
Every phase but the operator's own has a limit, and that one has the deadline. Must not plan moves: that is drains'.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from msgspec.structs import replace

from vmorch.core.aggregates import host as hosts
from vmorch.core.aggregates.drain import Drain, DrainOptions, DrainPlan, DrainPlanned, DrainStarted
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.maintenance import (
    SETTLED,
    ErrandGiven,
    GroupBegun,
    HostFailed,
    HostReturned,
    HostReturning,
    Maintenance,
    MaintenanceEnded,
    MaintenanceEvent,
    Outcome,
    Station,
)
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId, HostId, OperationId, stream
from vmorch.core.operation import Change, change
from vmorch.core.planning.acts import Act, Answer, Because, Later
from vmorch.core.planning.admission import Who
from vmorch.core.planning.drain import plan_drain, plan_return
from vmorch.core.planning.draining import end_moves
from vmorch.core.planning.health import ailments
from vmorch.core.planning.undertakings import start
from vmorch.core.planning.view import ClusterView, view_of
from vmorch.core.value import Value

HOOKING = timedelta(minutes=15)
"""How long a host has to come back, if it is away, and to run its hook."""
AGAIN = timedelta(seconds=5)
"""How long after a libvirt that did not answer it is asked again."""
CHECKING = timedelta(minutes=10)
"""How long a host has to become what it was."""


class Waiting(Value, frozen=True, kw_only=True):
    """What a host's way through a maintenance waits for."""

    host: HostId
    on: str


class Maintaining(Value, frozen=True, kw_only=True):
    """The answer. `again` is when to ask again, if nothing happens before."""

    acts: tuple[Act, ...] = ()
    waits: tuple[Waiting, ...] = ()
    again: datetime | None = None


class MaintenanceAct(Act, frozen=True):
    """An act for a maintenance under way. It is wanted as long as asking anew gives it again."""

    maintenance: str

    @property
    def subject(self) -> str:
        return stream("maintenance", self.maintenance)

    def because(self, fleet: Fleet) -> Because:
        found = fleet.maintenances[self.maintenance]
        return Because(reason=found.reason, correlation=found.id)

    def changes(self, fleet: Fleet, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        found = fleet.maintenances.get(self.maintenance)
        if found is None or not found.running or self not in maintaining(fleet, found, now).acts:
            return ()
        return self.decided(fleet, found, now, operation)

    def decided(
        self, fleet: Fleet, maintenance: Maintenance, now: datetime, operation: OperationId
    ) -> tuple[Change, ...]:
        """Everything to append on exactly this state. `operation` is an id that nobody has yet."""
        raise NotImplementedError


class BeginGroup(MaintenanceAct, frozen=True):
    """Empty the next hosts that are safe to be away together."""

    def decided(
        self, fleet: Fleet, maintenance: Maintenance, now: datetime, operation: OperationId
    ) -> tuple[Change, ...]:
        remaining = [host for host in maintenance.hosts if maintenance.stations[host].phase == "waiting"]
        view, asked = view_of(fleet), _drain_options(maintenance)
        known = {host.id for host in view.hosts}
        gone = [host for host in remaining if host not in known]
        if gone:
            return _said(maintenance, HostFailed(host=gone[0], code="no-such-host", message="it was retired"))
        group = safe_together(view, remaining, maintenance.options.at_once, asked)
        id, who = DrainId(operation), Who(actor="system", reason=maintenance.reason)
        plan = plan_drain(view, group, asked)
        facts = {host: found for host in group if (found := fleet.hosts[host].facts) is not None}
        try:
            begun = start(fleet, id, plan, asked, who, now, within=maintenance.id)
        except Rejected as refusal:
            causes = [f"{name}: {'; '.join(why)}" for name, why in refusal.facts.items() if isinstance(why, list)]
            message = "; ".join([refusal.reason, *causes])
            failed = [HostFailed(host=host, code=refusal.code, message=message) for host in group]
            return _said(maintenance, *failed)
        planned = DrainPlanned(plan=plan, options=asked, parent=maintenance.id)
        group_begun = GroupBegun(hosts=tuple(group), drain=id, facts=facts)
        return (*_said(maintenance, group_begun), change(stream("drain", id), planned), *begun)


class GiveErrand(MaintenanceAct, frozen=True):
    """Ask a host to run a hook, or to show that its libvirt answers."""

    event: ErrandGiven

    def decided(
        self, fleet: Fleet, maintenance: Maintenance, now: datetime, operation: OperationId
    ) -> tuple[Change, ...]:
        return _said(maintenance, self.event)


class FailHost(MaintenanceAct, frozen=True):
    """Leave a host out of service."""

    event: HostFailed

    def decided(
        self, fleet: Fleet, maintenance: Maintenance, now: datetime, operation: OperationId
    ) -> tuple[Change, ...]:
        return _said(maintenance, self.event)


class ReturnHost(MaintenanceAct, frozen=True):
    """Put a host into service again, and begin to bring back what is to come back."""

    host: HostId
    undone: bool

    def decided(
        self, fleet: Fleet, maintenance: Maintenance, now: datetime, operation: OperationId
    ) -> tuple[Change, ...]:
        host = fleet.hosts[self.host]
        opening = [change(stream("host", host.id), each) for each in _opened(host)]
        plan = _returning(fleet, maintenance, host)
        if plan is None or not plan.moves:
            through = HostReturned(host=self.host, undone=self.undone)
            return (*opening, *_said(maintenance, through))
        at, options = stream("drain", DrainId(operation)), DrainOptions(on_blocked="skip")
        started = DrainStarted(options=options, actor="system", reason=maintenance.reason)
        return (
            *opening,
            *_said(maintenance, HostReturning(host=self.host, drain=DrainId(operation))),
            change(at, DrainPlanned(plan=plan, options=options, parent=maintenance.id)),
            change(at, started),
        )


class CloseHost(MaintenanceAct, frozen=True):
    """Take down that a host is through."""

    event: HostReturned

    def decided(
        self, fleet: Fleet, maintenance: Maintenance, now: datetime, operation: OperationId
    ) -> tuple[Change, ...]:
        return _said(maintenance, self.event)


class EndMaintenance(MaintenanceAct, frozen=True):
    """Everything that will be done is done, or its time is over."""

    outcome: Outcome

    def decided(
        self, fleet: Fleet, maintenance: Maintenance, now: datetime, operation: OperationId
    ) -> tuple[Change, ...]:
        waits = {wait.host: wait.on for wait in _Round(fleet, maintenance, now).answer().waits}
        left = {
            host: f"{station.phase}: it waited for {waits[host]}" if host in waits else f"{station.phase}: not begun"
            for host, station in maintenance.stations.items()
            if station.phase not in SETTLED
        }
        ended = _said(maintenance, MaintenanceEnded(outcome=self.outcome, left=left))
        running = [drain for drain in fleet.drains.values() if drain.running and drain.parent == maintenance.id]
        stopped = [each for drain in running for each in end_moves(fleet, drain, "deadline", now)]
        return (*ended, *stopped)


def policy(fleet: Fleet, now: datetime) -> list[Answer]:
    """What to do now for all maintenances."""
    found: list[Answer] = []
    for maintenance in fleet.maintenances.values():
        if maintenance.running:
            answer = maintaining(fleet, maintenance, now)
            found += answer.acts
            if answer.again is not None:
                found.append(Later(answer.again))
    return found


def maintaining(fleet: Fleet, maintenance: Maintenance, now: datetime) -> Maintaining:
    """What to do now for a maintenance that is running."""
    if maintenance.deadline is not None and now >= maintenance.deadline and not maintenance.ending:
        return Maintaining(acts=(EndMaintenance(maintenance.id, "deadline"),))
    return _Round(fleet, maintenance, now).answer()


def safe_together(
    view: ClusterView, remaining: Sequence[HostId], at_once: int, options: DrainOptions
) -> list[HostId]:
    """The first of these hosts, and as many of the others as can be away with it: every VM that must move has a place,
    and where one more host could be lost without the others away, it can with them."""
    group = list(remaining[:1])
    if not group or at_once <= 1:
        return group
    alone = plan_drain(view, group, options)
    for host in remaining[1:]:
        if len(group) >= at_once:
            break
        together = plan_drain(view, [*group, host], options)
        single = plan_drain(view, [host], options)
        worse = len(together.blocked) > len(alone.blocked) + len(single.blocked)
        if worse or (alone.survival.survivable and not together.survival.survivable):
            continue
        group.append(host)
        alone = together
    return group


def foreseen(
    view: ClusterView, asked: Sequence[HostId], at_once: int, options: DrainOptions
) -> tuple[tuple[HostId, ...], ...]:
    """The groups, as far as they can be told now: as if each began with the cluster as it is."""
    remaining, groups = list(asked), []
    while remaining:
        group = safe_together(view, remaining, at_once, options)
        groups.append(tuple(group))
        remaining = [host for host in remaining if host not in group]
    return tuple(groups)


class _Round:
    """One look at a maintenance."""

    def __init__(self, fleet: Fleet, maintenance: Maintenance, now: datetime) -> None:
        self.fleet, self.maintenance, self.now = fleet, maintenance, now
        self.acts: list[Act] = []
        self.waits: list[Waiting] = []
        self.again = [] if maintenance.deadline is None else [maintenance.deadline]

    def answer(self) -> Maintaining:
        for host in self.maintenance.hosts:
            station = self.maintenance.stations[host]
            if station.phase not in SETTLED and station.phase != "waiting":
                self._host(self.fleet.hosts[host], station)
        if not self.acts and not self.waits:
            self.acts.append(self._next())
        again = min(self.again) if self.again else None
        return Maintaining(acts=tuple(self.acts), waits=tuple(self.waits), again=again)

    def _next(self) -> Act:
        """All hosts that were begun are settled: another group, or the end."""
        stations = self.maintenance.stations.values()
        if self.maintenance.ending:
            return EndMaintenance(self.maintenance.id, "cancelled")
        if any(station.phase == "failed" for station in stations):
            return EndMaintenance(self.maintenance.id, "failed")
        if any(station.phase == "waiting" for station in stations):
            return BeginGroup(self.maintenance.id)
        return EndMaintenance(self.maintenance.id, "done")

    def _host(self, host: Host, station: Station) -> None:
        if host.retired:
            self._fail(host, "no-such-host", "it was retired")
            return
        match station.phase:
            case "draining":
                self._draining(host, station)
            case "preparing" | "finishing":
                self._errand(host, station, HOOKING)
            case "open":
                self._open(host)
            case "checking":
                self._checking(host, station)
            case "returning":
                self._returning(host, station)

    def _draining(self, host: Host, station: Station) -> None:
        drain = self._drain(station)
        if drain is not None and drain.running:
            self._wait(host, f"drain {drain.id}")
            return
        if self.maintenance.ending:
            self.acts.append(ReturnHost(self.maintenance.id, host.id, True))
            return
        stayed = tuple(_stayed(drain, host, tolerant=self.maintenance.options.on_blocked == "skip"))
        if drain is None or drain.outcome not in ("done", "incomplete") or stayed:
            code = "drain-ended" if drain is None or not stayed else "drain-incomplete"
            why = "; ".join(stayed) or f"its drain ended as {drain.outcome if drain else 'unknown'}"
            self._fail(host, code, why)
            return
        self._give(host, ErrandGiven(host=host.id, errand="before"))

    def _errand(self, host: Host, station: Station, limit: timedelta) -> None:
        assert station.since is not None
        until = station.since + limit
        if station.broken:
            if self.maintenance.ending:
                self.acts.append(ReturnHost(self.maintenance.id, host.id, True))
            else:
                self._fail(host, station.code, station.message)
        elif self.now < until:
            away = ", which is unreachable" if host.agent != "connected" else ""
            self._wait(host, f"{host.name}{away}: its hook {station.errand}-maintenance")
            self.again.append(until)
        elif self.maintenance.ending:
            self.acts.append(ReturnHost(self.maintenance.id, host.id, True))
        else:
            self._fail(host, "host-silent", f"its hook {station.errand}-maintenance gave no answer in time")

    def _open(self, host: Host) -> None:
        if self.maintenance.ending:
            self._give(host, ErrandGiven(host=host.id, errand="after"))
        else:
            self._wait(host, f"the operator: vmorch host maintenance done {host.name}")

    def _checking(self, host: Host, station: Station) -> None:
        assert station.since is not None
        if self.maintenance.ending:
            self.acts.append(ReturnHost(self.maintenance.id, host.id, True))
            return
        found = ailments(host, station.facts)
        if not found and station.probed:
            self.acts.append(ReturnHost(self.maintenance.id, host.id, False))
            return
        if not found and station.errand is None and self._may_ask(station):
            self._give(host, ErrandGiven(host=host.id, errand="probe"))
            return
        wanted = "; ".join(found) or (station.message if station.broken else "") or "its libvirt has not answered"
        until = station.since + CHECKING
        if self.now >= until:
            self._fail(host, "host-ailing", wanted)
            return
        self._wait(host, f"{host.name} to be well: {wanted}")
        self.again.append(until)

    def _may_ask(self, station: Station) -> bool:
        """Whether it is time to ask again a host whose libvirt did not answer."""
        if not station.broken or station.asked_at is None:
            return True
        again = station.asked_at + AGAIN
        if self.now < again:
            self.again.append(again)
        return self.now >= again

    def _returning(self, host: Host, station: Station) -> None:
        drain = self._drain(station)
        if drain is not None and drain.running:
            self._wait(host, f"drain {drain.id}, which brings VMs back")
            return
        entries = () if drain is None else drain.entries.values()
        short = [each for each in entries if each.result in ("failed", "blocked", "left")]
        message = f"{len(short)} VMs did not come back: vmorch drain describe {station.drain}" if short else ""
        undone = bool(self.maintenance.ending)
        self.acts.append(
            CloseHost(self.maintenance.id, HostReturned(host=host.id, undone=undone, message=message))
        )

    def _drain(self, station: Station) -> Drain | None:
        return None if station.drain is None else self.fleet.drains.get(station.drain)

    def _wait(self, host: Host, on: str) -> None:
        self.waits.append(Waiting(host=host.id, on=on))

    def _give(self, host: Host, event: ErrandGiven) -> None:
        self.acts.append(GiveErrand(self.maintenance.id, event))

    def _fail(self, host: Host, code: str, message: str) -> None:
        self.acts.append(FailHost(self.maintenance.id, HostFailed(host=host.id, code=code, message=message)))


def _stayed(drain: Drain | None, host: Host, *, tolerant: bool) -> Iterator[str]:
    """VMs for which a host cannot be worked on: those that a drain did not take away well, and why."""
    for entry in drain.entries.values() if drain is not None else ():
        if entry.source != host.id or entry.result not in ("failed", "blocked", "left"):
            continue
        if tolerant and entry.result == "blocked":
            continue
        why = entry.message or "; ".join(cause.text() for cause in entry.causes) or entry.code
        yield f"{entry.name} {entry.result}: {why}"


def _returning(fleet: Fleet, maintenance: Maintenance, host: Host) -> DrainPlan | None:
    """What comes back to a host: all that left it if that is wanted, else what was stopped for it."""
    station = maintenance.stations[host.id]
    drain = None if station.drain is None else fleet.drains.get(station.drain)
    if drain is None:
        return None
    if not maintenance.bring_back:
        stopped = {vm: entry for vm, entry in drain.entries.items() if entry.result == "stopped"}
        drain = replace(drain, entries=stopped)
    return plan_return(view_of(fleet), host.id, drain, DrainOptions(on_blocked="skip"))


def _opened(host: Host) -> list[hosts.HostEvent]:
    return [] if host.cordoned is None else hosts.uncordon(host)


def _drain_options(maintenance: Maintenance) -> DrainOptions:
    asked = maintenance.options
    return DrainOptions(max_parallel=asked.max_parallel, on_blocked=asked.on_blocked)


def _said(maintenance: Maintenance, *events: MaintenanceEvent) -> tuple[Change, ...]:
    return tuple(change(stream("maintenance", maintenance.id), event) for event in events)
