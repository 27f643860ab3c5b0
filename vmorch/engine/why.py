"""Why something is as it is: the last event that changed it, and what that follows from, back to whoever began it.

Must not write, and must not show anything: it returns events.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from vmorch.core.aggregates.backup import Backup
from vmorch.core.aggregates.budget import Budget
from vmorch.core.aggregates.cluster import Cluster
from vmorch.core.aggregates.drain import Drain, DrainPlan
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.image import Image
from vmorch.core.aggregates.maintenance import Maintenance
from vmorch.core.aggregates.token import Token
from vmorch.core.aggregates.vm import Vm
from vmorch.core.aggregates.volume import Volume
from vmorch.core.backup_resources import backup_resource
from vmorch.core.causes import STARTED, cause_of, parent_among
from vmorch.core.codec import Unreadable, decode
from vmorch.core.drain_resources import budget_resource, drain_resource
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream, split_stream
from vmorch.core.maintenance_resources import maintenance_resource
from vmorch.core.records import Recorded
from vmorch.core.resources import cluster_resource, host_resource, image_resource, token_resource, vm_resource
from vmorch.core.spec import VmSpec
from vmorch.core.states import KINDS, state_of
from vmorch.core.volume_resources import volume_resource
from vmorch.log.interface import Log

AROUND = 100
"""Events on each side of one among which those of the same append lie."""
LONGEST = 1000
"""Events that a chain may have; a log in order has none that comes near."""

UNDERTAKINGS = ("drain", "maintenance")


class Change(Struct, frozen=True, kw_only=True):
    """The event that gave a field its value, and both values."""

    record: Recorded
    before: Any
    after: Any


async def chain(log: Log, record: Recorded) -> list[Recorded]:
    """The event and what it follows from, one after another, up to the one that somebody did of his own accord."""
    found = [record]
    seen = {record.position}
    while len(found) < LONGEST:
        above = await parent(log, found[-1])
        if above is None or above in seen:
            break
        named = await log.read(Position(above - 1), 1)
        if not named:
            break
        seen.add(above)
        found.append(named[0])
    return found


async def parent(log: Log, record: Recorded, near: Sequence[Recorded] = ()) -> Position | None:
    """The position of the event that one follows from; None if somebody did it of his own accord. What was read
    `near` it is looked at first."""
    cause = cause_of(record)
    if cause.causation is not None and 0 < cause.causation < record.position:
        return cause.causation
    if cause.operation is not None and record.kind != STARTED:
        first = Position(max(record.position - AROUND - 1, 0))
        found = parent_among(record, near) or parent_among(record, await log.read(first, 2 * AROUND + 1))
        if found is None:
            found = parent_among(record, await log.read_stream(record.stream, until=record.position))
        if found is not None:
            return found.position
    if cause.correlation is not None:
        for kind in UNDERTAKINGS:
            events = await log.read_stream(Stream(f"{kind}/{cause.correlation}"), until=record.position)
            before = [each for each in events if each.position < record.position]
            if before:
                return before[-1].position
    return None


async def last_change(log: Log, fleet: Fleet, at: Stream, field: str | None) -> Change:
    """The event that last changed a field (`power`, `spec.memory`) of a thing, or its last event without one.

    Raises Rejected `bad-request` for a field that such things do not have, `no-such-event` for a thing without events.
    """
    records = await log.read_stream(at)
    if not records:
        raise Rejected("no-such-event", f"the log holds nothing of {at}")
    if field is None:
        return Change(record=records[-1], before=None, after=None)
    then = Fleet()
    # what a thing shows of others is shown as they are now: only its own events are looked at
    then.hosts, then.images, then.vms = dict(fleet.hosts), dict(fleet.images), dict(fleet.vms)
    then.backups, then.drains = dict(fleet.backups), dict(fleet.drains)
    _forget(then, at)
    found: Change | None = None
    shown: Mapping[str, Any] = {}
    value: Any = None
    for record in records:
        try:
            then.apply(decode(record))
        except Unreadable:
            # nothing is known of it from here on
            break
        shown = _shown(then, at)
        now = _at(shown, field)
        if now != value:
            found = Change(record=record, before=value, after=now)
            value = now
    if field.split(".")[0] not in shown:
        raise Rejected("bad-request", f"{at} has no field {field!r}", hint=f"one of: {', '.join(sorted(shown))}")
    return found or Change(record=records[0], before=None, after=value)


def _forget(fleet: Fleet, at: Stream) -> None:
    kind, id = split_stream(at)
    if kind in KINDS:
        getattr(fleet, KINDS[kind][1]).pop(id, None)


def _shown(fleet: Fleet, at: Stream) -> Mapping[str, Any]:
    """The thing as the API shows it; nothing while it is not there yet."""
    resource: Struct | None = None
    match state_of(fleet, at):
        case Vm(spec=VmSpec()) as vm:
            resource = vm_resource(fleet, vm)
        case Host() as host:
            resource = host_resource(fleet, host)
        case Image() as image:
            resource = image_resource(image)
        case Volume() as volume:
            resource = volume_resource(fleet, volume)
        case Backup() as backup:
            resource = backup_resource(fleet, backup)
        case Token() as token:
            resource = token_resource(token)
        case Budget() as budget:
            resource = budget_resource(fleet, budget)
        case Drain(plan=DrainPlan()) as drain:
            resource = drain_resource(fleet, drain)
        case Maintenance(started_at=datetime()) as maintenance:
            resource = maintenance_resource(fleet, maintenance)
        case Cluster():
            resource = cluster_resource(fleet)
    found: dict[str, Any] = {} if resource is None else msgspec.to_builtins(resource)
    return found


def _at(shown: Mapping[str, Any], path: str) -> Any:
    value: Any = shown
    for word in path.split("."):
        value = value.get(word) if isinstance(value, Mapping) else None
    return value
