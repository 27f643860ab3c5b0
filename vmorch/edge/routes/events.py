"""The log as it is: pages of it, single events, and its growing end.

Events are shown as they were stored, in the schema they were stored in. Must not interpret them: what one version
cannot read, another wrote, and an audit must see it all the same.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from fnmatch import fnmatchcase

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response

from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet, name_held
from vmorch.core.ids import Position, Stream, split_stream
from vmorch.core.records import Recorded
from vmorch.core.resources import EventResource
from vmorch.edge import answers, requests, streams
from vmorch.edge.calls import Call, Services
from vmorch.edge.routes.reading import position_of
from vmorch.engine.why import parent

_SCANNED = 20_000
"""Events after which a request answers with what it has found, if it has found any, and a cursor."""
_BATCH = 1000


class _Meta(Struct, frozen=True):
    actor: str = ""
    reason: str = ""
    request: str | None = None
    operation: str | None = None
    causation: int | None = None
    correlation: str | None = None


_read_meta = msgspec.json.Decoder(_Meta).decode


class Wanted(Struct, frozen=True, kw_only=True):
    """Which events are asked for; None asks for nothing in particular. `kind` is a glob."""

    stream: Stream | None = None
    kind: str | None = None
    actor: str | None = None
    operation: str | None = None
    correlation: str | None = None

    def admits(self, record: Recorded) -> bool:
        """Whether an event is one of them."""
        if self.stream is not None and record.stream != self.stream:
            return False
        if self.kind is not None and not fnmatchcase(record.kind, self.kind):
            return False
        if self.actor is None and self.operation is None and self.correlation is None:
            return True
        meta = _read_meta(record.meta)
        return (
            self.actor in (None, meta.actor)
            and self.operation in (None, meta.operation)
            and self.correlation in (None, meta.correlation)
        )


def event_resource(
    fleet: Fleet, record: Recorded, parent: Position | UnsetType | None = UNSET
) -> EventResource:
    """An event as it was stored, with the name that its subject has now."""
    meta = _read_meta(record.meta)
    return EventResource(
        position=record.position,
        time=record.recorded_at,
        kind=record.kind,
        schema=record.schema,
        subject=record.stream,
        subject_name=named(fleet, record.stream),
        version=record.version,
        actor=meta.actor,
        reason=meta.reason,
        operation=meta.operation,
        causation=meta.causation,
        correlation=meta.correlation,
        request=meta.request,
        data=msgspec.Raw(record.data),
        parent=parent,
    )


def named(fleet: Fleet, at: Stream) -> str:
    """The name that a stream's subject has now, or else its id."""
    return name_held(fleet, at) or split_stream(at)[1]


async def list_events(call: Call) -> Response:
    wanted, limit = _wanted(call), requests.limit(call.request)
    log = call.services.log
    head = await log.head()
    after, until = await _range(call, head)
    found: list[Recorded]
    next: Position | None
    if wanted.stream is not None:
        events = await log.read_stream(wanted.stream, until=until)
        found = [each for each in events if each.position > after and wanted.admits(each)]
        next = found[limit - 1].position if len(found) > limit else None
        found = found[:limit]
    else:
        found, next = await _scan(call.services, wanted, after, until, limit)
    parents: list[Position | UnsetType | None] = [UNSET for _ in found]
    if requests.flag(call.request, "causes"):
        parents = [await parent(log, each, found) for each in found]
    docs = [
        answers.encode(event_resource(call.fleet, each, above)) for each, above in zip(found, parents, strict=True)
    ]
    at = answers.at_position(head, call.fleet.recorded_at if call.fleet.position == head else None)
    return answers.listing("Event", docs, at, None if next is None else str(next))


async def _range(call: Call, head: Position) -> tuple[Position, Position]:
    """The positions after the first and up to the second."""
    log = call.services.log
    after = requests.position(call.request, "after") or Position(0)
    since, until = requests.moment(call.request, "since"), requests.moment(call.request, "until")
    last = min(head, await position_of(call))
    if since is not None:
        # position_at counts events at the moment itself, which belong to "since" it
        after = max(after, await log.position_at(since - timedelta(microseconds=1)))
    if until is not None:
        last = min(last, await log.position_at(until))
    return after, last


async def _scan(
    services: Services, wanted: Wanted, after: Position, until: Position, limit: int
) -> tuple[list[Recorded], Position | None]:
    found: list[Recorded] = []
    scanned = 0
    while after < until:
        batch = await services.log.read(after, _BATCH, until)
        if not batch:
            return found, None
        for record in batch:
            if wanted.admits(record):
                found.append(record)
                if len(found) == limit:
                    return found, record.position if record.position < until else None
        after = batch[-1].position
        scanned += len(batch)
        if found and scanned >= _SCANNED and after < until:
            return found, after
    return found, None


async def show_event(call: Call) -> Response:
    position = requests.whole_number(call.path("position"), "position")
    found = await call.services.log.read(Position(position - 1), 1) if position else []
    if not found:
        raise Rejected("no-such-event", f"the log holds no event at {position}")
    above = await parent(call.services.log, found[0]) if requests.flag(call.request, "causes") else UNSET
    event = event_resource(call.fleet, found[0], above)
    return answers.single("Event", event, answers.as_of(call.fleet))


async def tail_events(call: Call) -> Response:
    wanted = _wanted(call)
    last = call.request.headers.get("Last-Event-ID")
    after = requests.position(call.request, "after")
    if last is not None:
        after = Position(requests.whole_number(last, "Last-Event-ID"))
    if after is None:
        after = await call.services.log.head()
    causes = requests.flag(call.request, "causes") is True
    # once the stream is open, what cannot be read could only be waited for
    await call.services.log.read(after, 1)
    return streams.response(_tail(call.services, wanted, after, causes=causes))


async def _tail(services: Services, wanted: Wanted, after: Position, *, causes: bool) -> AsyncIterator[bytes]:
    batches = streams.lively(services.log.follow(after), services.stopping, services.settings.keepalive)
    async with aclosing(batches):
        async for batch in batches:
            if batch is None:
                yield streams.KEEPALIVE
                continue
            for record in batch:
                if wanted.admits(record):
                    above = await parent(services.log, record, batch) if causes else UNSET
                    event = event_resource(services.control.fleet, record, above)
                    yield streams.message(answers.encode(event), event="event", id=record.position)


def _wanted(call: Call) -> Wanted:
    given = call.request.query_params
    at = Stream(given["stream"]) if "stream" in given else None
    if "subject" in given:
        at = subject_stream(call.fleet, given["subject"])
    return Wanted(
        stream=at,
        kind=given.get("kind"),
        actor=given.get("actor"),
        operation=given.get("operation"),
        correlation=given.get("correlation"),
    )


def subject_stream(fleet: Fleet, subject: str) -> Stream:
    """The stream of `vm/NAME` and the like; an id names things that are gone as well. Raises Rejected."""
    kind, name = split_stream(subject)
    at = Stream(subject)
    if at in fleet.versions:
        return at
    return fleet.find(kind, name)
