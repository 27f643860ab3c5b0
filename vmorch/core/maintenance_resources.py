"""What people and programs read about maintenances. Additive within v1."""

from collections.abc import Mapping
from datetime import datetime

from vmorch.core.aggregates.maintenance import Maintenance
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId
from vmorch.core.value import Value


class StationResource(Value, frozen=True, kw_only=True):
    """How far one host is. `waits_for` is what has to happen next; `code` and `message` tell why it failed."""

    host: str
    phase: str
    since: datetime | None
    drain: str | None
    waits_for: str
    code: str
    message: str


class MaintenanceResource(Value, frozen=True, kw_only=True):
    """A maintenance as people see it. `state` is running, cancelling or its outcome; `groups` are those foreseen at its
    start."""

    id: str
    state: str
    hosts: tuple[StationResource, ...]
    groups: tuple[tuple[str, ...], ...]
    at_once: int
    bring_back: bool
    on_blocked: str
    actor: str
    reason: str
    started_at: datetime | None
    deadline: datetime | None
    ended_at: datetime | None
    version: int


class GroupResource(Value, frozen=True, kw_only=True):
    """Hosts that would be away together: VMs that leave them, those that cannot, and about how long that takes."""

    hosts: tuple[str, ...]
    moves: int
    blocked: Mapping[str, tuple[str, ...]]
    estimate: float
    survivable: bool


def maintenance_resource(
    fleet: Fleet, maintenance: Maintenance, waits: Mapping[HostId, str] | None = None
) -> MaintenanceResource:
    """A maintenance that was started."""
    state = maintenance.outcome or ("cancelling" if maintenance.ending else "running")
    return MaintenanceResource(
        id=maintenance.id,
        state=state,
        hosts=tuple(
            StationResource(
                host=_name(fleet, host),
                phase=station.phase,
                since=station.since,
                drain=station.drain,
                waits_for=(waits or {}).get(host, ""),
                code=station.code,
                message=station.message,
            )
            for host, station in maintenance.stations.items()
        ),
        groups=tuple(tuple(_name(fleet, host) for host in group) for group in maintenance.groups),
        at_once=maintenance.options.at_once,
        bring_back=maintenance.bring_back,
        on_blocked=maintenance.options.on_blocked,
        actor=maintenance.actor,
        reason=maintenance.reason,
        started_at=maintenance.started_at,
        deadline=maintenance.deadline,
        ended_at=maintenance.ended_at,
        version=maintenance.version,
    )


def _name(fleet: Fleet, id: HostId) -> str:
    host = fleet.hosts.get(id)
    return id if host is None else host.name
