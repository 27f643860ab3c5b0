"""A maintenance: hosts that are emptied, worked on and returned to service, group by group, until the first failure.

Around the operator's work lie the host's own hooks, and after it a look at whether the host is what it was. Must not
move VMs: drains do, one for each group, and this names them.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.drain import AtOnce, OnBlocked, Within
from vmorch.core.errors import Rejected
from vmorch.core.ids import DrainId, HostId
from vmorch.core.messages import Command, Event, message
from vmorch.core.spec import HostFacts, Name
from vmorch.core.value import Value

Phase = Literal[
    "waiting", "draining", "preparing", "open", "finishing", "checking", "returning", "done", "failed", "undone"
]
"""Where a host is: its group's turn has not come; its VMs leave; its hook runs; the operator works; its other hook
runs; it is looked at; VMs come back; it is in service again, or stays out of it, or was returned unworked."""
SETTLED: frozenset[Phase] = frozenset({"done", "failed", "undone"})
AWAY: frozenset[Phase] = frozenset({"preparing", "open", "finishing", "checking"})
"""Phases in which the host may be off or restarting without anybody having to wonder."""

Outcome = Literal["done", "failed", "cancelled", "deadline"]
Errand = Literal["before", "after", "probe"]
"""What a host is asked to do: run its hook before the work, the one after it, and show that its libvirt answers."""


class MaintenanceOptions(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How an operator wants it. `at_once`: how many hosts a group may have; `bring_back`: VMs that moved return."""

    deadline: Within | None = None
    max_parallel: AtOnce | None = None
    at_once: int = 1
    on_blocked: OnBlocked = "refuse"
    bring_back: bool = False


class Station(Value, frozen=True, kw_only=True):
    """How far a host is. `facts` are what it said of itself before; `errand` is what it was asked for and has not
    answered yet."""

    phase: Phase = "waiting"
    since: datetime | None = None
    facts: HostFacts | None = None
    drain: DrainId | None = None
    errand: Errand | None = None
    attempt: int = 0
    asked_at: datetime | None = None
    broken: bool = False
    """Its last errand failed, as `code` and `message` say."""
    probed: bool = False
    code: str = ""
    message: str = ""


class Maintenance(Value, frozen=True, kw_only=True):
    """A maintenance, folded from its stream."""

    id: str
    version: int = 0
    hosts: tuple[HostId, ...] = ()
    groups: tuple[tuple[HostId, ...], ...] = ()
    """As they were foreseen at the start; each is chosen anew when its turn comes."""
    options: MaintenanceOptions = MaintenanceOptions()
    stations: Mapping[HostId, Station] = {}
    actor: str = ""
    reason: str = ""
    started_at: datetime | None = None
    deadline: datetime | None = None
    ending: Literal["", "cancelled"] = ""
    bring_back: bool = False
    ended_at: datetime | None = None
    outcome: Outcome | None = None

    @property
    def running(self) -> bool:
        return self.started_at is not None and self.outcome is None

    def at(self, host: HostId, station: Station) -> "Maintenance":
        """The same with a host at another station."""
        return replace(self, stations={**self.stations, host: station})


class MaintenanceEvent(Event, frozen=True, kw_only=True):
    """A fact about one maintenance."""

    subject: ClassVar[str] = "maintenance"

    def apply(self, maintenance: Maintenance, at: datetime) -> Maintenance:
        """The maintenance after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("maintenance.started")
class MaintenanceStarted(MaintenanceEvent, frozen=True, kw_only=True):
    """These hosts are emptied, worked on and returned to service, in about these groups."""

    hosts: tuple[HostId, ...]
    groups: tuple[tuple[HostId, ...], ...]
    options: MaintenanceOptions
    deadline: datetime | None = None
    actor: str = ""
    reason: str = ""

    def apply(self, maintenance: Maintenance, at: datetime) -> Maintenance:
        return replace(
            maintenance,
            hosts=self.hosts,
            groups=self.groups,
            options=self.options,
            deadline=self.deadline,
            actor=self.actor,
            reason=self.reason,
            bring_back=self.options.bring_back,
            started_at=at,
            stations={host: Station(since=at) for host in self.hosts},
        )


@message("maintenance.group-begun")
class GroupBegun(MaintenanceEvent, frozen=True, kw_only=True):
    """These hosts are being emptied by that drain, which began with the same append."""

    hosts: tuple[HostId, ...]
    drain: DrainId
    facts: Mapping[HostId, HostFacts] = {}

    def apply(self, maintenance: Maintenance, at: datetime) -> Maintenance:
        begun = {
            host: Station(phase="draining", since=at, drain=self.drain, facts=self.facts.get(host))
            for host in self.hosts
        }
        return replace(maintenance, stations={**maintenance.stations, **begun})


class StationEvent(MaintenanceEvent, frozen=True, kw_only=True):
    """A fact about one host of a maintenance."""

    host: HostId

    def apply(self, maintenance: Maintenance, at: datetime) -> Maintenance:
        station = maintenance.stations.get(self.host, Station())
        return maintenance.at(self.host, self.move(station, at))

    def move(self, station: Station, at: datetime) -> Station:
        """Where the host is after this fact."""
        raise NotImplementedError(self.kind)


@message("maintenance.errand-given")
class ErrandGiven(StationEvent, frozen=True, kw_only=True):
    """The host is asked to run a hook, or to show that its libvirt answers; each once in a maintenance."""

    errand: Errand

    def move(self, station: Station, at: datetime) -> Station:
        phase: Phase = {"before": "preparing", "after": "finishing", "probe": "checking"}[self.errand]  # type: ignore[assignment]
        since = station.since if station.phase == phase else at
        attempt = station.attempt + 1
        return replace(
            station, phase=phase, since=since, errand=self.errand, attempt=attempt, asked_at=at, broken=False
        )


@message("maintenance.errand-done")
class ErrandDone(StationEvent, frozen=True, kw_only=True):
    """The host did what it was asked for. After the first hook it is the operator's."""

    errand: Errand

    def move(self, station: Station, at: datetime) -> Station:
        if station.errand != self.errand:
            return station
        cleared = replace(station, errand=None)
        match self.errand:
            case "before":
                return replace(cleared, phase="open", since=at)
            case "after":
                return replace(cleared, phase="checking", since=at)
            case _:
                return replace(cleared, probed=True)


@message("maintenance.errand-failed")
class ErrandFailed(StationEvent, frozen=True, kw_only=True):
    """The host did not do what it was asked for; `message` holds its own words."""

    errand: Errand
    code: str
    message: str

    def move(self, station: Station, at: datetime) -> Station:
        if station.errand != self.errand:
            return station
        return replace(station, errand=None, broken=True, code=self.code, message=self.message)


@message("maintenance.host-failed")
class HostFailed(StationEvent, frozen=True, kw_only=True):
    """The host stays out of service; `message` names what went wrong. No further group begins."""

    code: str
    message: str

    def move(self, station: Station, at: datetime) -> Station:
        return replace(station, phase="failed", since=at, errand=None, code=self.code, message=self.message)


@message("maintenance.host-returning")
class HostReturning(StationEvent, frozen=True, kw_only=True):
    """The host is in service again, and that drain brings VMs back to it."""

    drain: DrainId

    def move(self, station: Station, at: datetime) -> Station:
        return replace(station, phase="returning", since=at, drain=self.drain, errand=None)


@message("maintenance.host-returned")
class HostReturned(StationEvent, frozen=True, kw_only=True):
    """The host is through: in service again. `undone`: without having been worked on to the end."""

    undone: bool = False
    message: str = ""

    def move(self, station: Station, at: datetime) -> Station:
        phase: Phase = "undone" if self.undone else "done"
        return replace(station, phase=phase, since=at, errand=None, code="", message=self.message)


@message("maintenance.cancel-requested")
class MaintenanceCancelled(MaintenanceEvent, frozen=True, kw_only=True):
    """No further group begins, and hosts that are out of service return to it."""

    bring_back: bool = False

    def apply(self, maintenance: Maintenance, at: datetime) -> Maintenance:
        return replace(maintenance, ending="cancelled", bring_back=self.bring_back)


@message("maintenance.ended")
class MaintenanceEnded(MaintenanceEvent, frozen=True, kw_only=True):
    """It is over. `left` tells of hosts that are neither through nor failed what they were waiting for."""

    outcome: Outcome
    left: Mapping[HostId, str] = {}

    def apply(self, maintenance: Maintenance, at: datetime) -> Maintenance:
        stations = {
            host: replace(station, message=self.left.get(host, station.message))
            for host, station in maintenance.stations.items()
        }
        return replace(maintenance, outcome=self.outcome, ended_at=at, stations=stations)


@message("maintenance.start")
class StartMaintenance(Command, frozen=True, kw_only=True):
    """These hosts go through maintenance, in groups that are safe together."""

    verb = "maintenance"
    summary = "Take hosts out of service for work, and return them"

    hosts: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1000, description="names of hosts")]
    deadline: Within | None = None
    max_parallel: AtOnce | None = None
    at_once: Annotated[int, Meta(ge=1, le=50, description="hosts out of service at once")] = 1
    on_blocked: OnBlocked = "refuse"
    bring_back: Annotated[bool, Meta(description="move VMs back to their hosts afterwards")] = False


@message("maintenance.cancel")
class CancelMaintenance(Command, frozen=True, kw_only=True):
    """Hosts that are out of service return to it, and no others leave it."""

    verb = "cancel"
    summary = "Undo a maintenance"

    bring_back: Annotated[bool, Meta(description="move VMs back to their hosts")] = False


def work_done(maintenance: Maintenance, host: HostId, name: str) -> list[MaintenanceEvent]:
    """The operator's word that his work on a host is done. Raises Rejected `not-open`."""
    station = maintenance.stations[host]
    if station.phase != "open":
        raise Rejected(
            "not-open", f"{name} is {station.phase}, not open for work", hint="vmorch host maintenance list"
        )
    return [ErrandGiven(host=host, errand="after")]
