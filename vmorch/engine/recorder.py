"""From decided changes to one append: expected versions, name claims, request id, and who did it.

The one place that knows which version a decision was made on. Must not decide.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from vmorch.core.aggregates.vm import OperationEvent, OperationFinished
from vmorch.core.codec import Fact, decode, encode, unpack_event
from vmorch.core.errors import Rejected
from vmorch.core.fleet import names_touched
from vmorch.core.ids import OperationId, Position, RequestId, SessionId, Stream, split_stream
from vmorch.core.messages import Event, Meta
from vmorch.core.operation import Change
from vmorch.core.records import Append, StreamAppend
from vmorch.engine.caller import Caller
from vmorch.engine.effects import Clock
from vmorch.engine.world import World
from vmorch.log.errors import NameTaken, VersionConflict
from vmorch.log.interface import Appended

ATTEMPTS = 100
"""How often a decision is made anew because somebody else appended first."""

T = TypeVar("T")

Said = dict[Stream, list[tuple[Event, Meta]]]
"""What is appended to each stream, and what is to be known beside it."""


def fingerprint(actor: str, verb: str, subject: str, body: Any) -> str:
    """The same for a repeated request, different for any other."""
    return hashlib.sha256(msgspec.json.encode([actor, verb, subject, body], order="deterministic")).hexdigest()[:32]


class Recorder:
    """Appends what was decided on the world, and decides anew while others are faster."""

    def __init__(self, world: World, clock: Clock) -> None:
        self.world = world
        self.clock = clock

    def meta(
        self,
        *,
        actor: str,
        reason: str = "",
        request: RequestId | None = None,
        operation: OperationId | None = None,
        causation: Position | None = None,
        session: SessionId | None = None,
        traceparent: str | None = None,
        fingerprint: str | None = None,
        correlation: str | None = None,
    ) -> Meta:
        """Meta of events that happen now. `correlation` names a larger undertaking than the operation or request."""
        return Meta(
            actor=actor,
            occurred_at=self.clock.now(),
            reason=reason,
            request=request,
            operation=operation,
            causation=causation,
            correlation=correlation or operation or request,
            session=session,
            traceparent=traceparent,
            fingerprint=fingerprint,
        )

    def meta_of(
        self,
        caller: Caller,
        *,
        operation: OperationId | None = None,
        print: str | None = None,
        correlation: str | None = None,
    ) -> Meta:
        """Meta of events that a caller's request causes."""
        return self.meta(
            actor=caller.actor,
            reason=caller.reason,
            request=caller.request,
            operation=operation,
            traceparent=caller.traceparent,
            fingerprint=print,
            correlation=correlation,
        )

    async def repeated(self, caller: Caller, print: str) -> list[Fact] | None:
        """What the same request caused before, if it was recorded. Raises Rejected `request-reused`."""
        if caller.request is None:
            return None
        return await self._recall(caller.request, print)

    async def once(
        self, decide: Callable[[], tuple[Iterable[Change], T]], meta: Callable[[T], Meta], caller: Caller, print: str
    ) -> list[Fact]:
        """The facts that the caller's request caused: recorded now as `decide` says, or before by the same request.

        The log itself knows a repeat, so that nobody else waits for the question. Raises Rejected (`request-reused` if
        the request was another one), LogUnavailable.
        """
        try:
            facts, _ = await self.record(decide, meta, claim=True)
        except Rejected:
            # what a repeat is refused for may be what the first one did
            before = await self.repeated(caller, print)
            if before is None:
                raise
            return before
        return facts or await self.repeated(caller, print) or []

    async def record(
        self, decide: Callable[[], tuple[Iterable[Change], T]], meta: Callable[[T], Meta], claim: bool = False
    ) -> tuple[list[Fact], T]:
        """Append what `decide` returns, calling it again while its world was out of date.

        Returns the facts as recorded and what came with the decision. With `claim` the request id in the meta is
        claimed too; if a concurrent twin was first, its facts are returned. Raises Rejected, LogUnavailable.
        """
        for attempt in range(ATTEMPTS):
            seen = self.world.fleet.position
            changes, decided = decide()
            chosen = tuple(changes)
            if not chosen:
                return [], decided
            about = meta(decided)
            for change in chosen:
                if change.stream in self.world.poisoned:
                    raise Rejected("internal-error", f"{change.stream} holds an unreadable event")
            append, events = self._append(chosen, about, claim=claim)
            try:
                appended = await self.world.log.append(append)
            except VersionConflict:
                # what this process appended first is in the world already; asking the log before each new attempt
                # takes so long that under load newcomers overtake for ever
                if self.world.fleet.position == seen or attempt % 2:
                    await self.world.reach(await self.world.log.head())
                continue
            except NameTaken as error:
                raise Rejected("name-taken", f"a {error.scope} called {error.name} exists") from error
            if appended.repeated:
                assert about.request is not None
                return await self._recall(about.request, about.fingerprint or "") or [], decided
            facts = _facts(append, events, appended)
            self.world.take_own(facts)
            await self.world.reach(appended.last)
            return facts, decided
        raise Rejected("version-conflict", f"others were faster {ATTEMPTS} times in a row")

    def _append(self, changes: tuple[Change, ...], meta: Meta, *, claim: bool) -> tuple[Append, Said]:
        fleet = self.world.fleet
        said: Said = {}
        under: OperationId | None = None
        ending: Meta | None = None
        for each in changes:
            event = unpack_event(each.event)
            if isinstance(event, OperationEvent):
                under = event.operation
                ending = self._ending(event, meta)
            # what is told with a step or an end follows from it, but for what a host shows beside its answer
            of = None if event.unasked else under
            if ending is not None and of is not None:
                # it follows from the answer before it, whose position is not known yet
                about = self._about(each.stream, ending, of)
            else:
                about = self._cause(each.stream, self._about(each.stream, meta, of), of)
            said.setdefault(each.stream, []).append((event, about))
        claims, releases = names_touched(fleet, changes)
        streams = tuple(
            StreamAppend(
                stream=stream,
                expected=fleet.version(stream),
                events=tuple(encode(event, about) for event, about in found),
            )
            for stream, found in said.items()
        )
        request = meta.request if claim else None
        return Append(streams=streams, claims=claims, releases=releases, request=request), said

    def _ending(self, event: OperationEvent, meta: Meta) -> Meta | None:
        """Of an end that is recorded with a host's answer: the host's word, but the act of who asked for it."""
        found = self.world.fleet.operation(event.operation)
        if meta.session is None or found is None or not isinstance(event, OperationFinished):
            return None
        _, asked = found
        return msgspec.structs.replace(
            meta, actor=asked.actor, reason=asked.reason, operation=asked.id, correlation=asked.id, session=None
        )

    def _about(self, at: Stream, meta: Meta, of: OperationId | None) -> Meta:
        """What belongs to a maintenance, or to an operation, perhaps of a drain, says so, whoever told of it."""
        kind, id = split_stream(at)
        if kind == "maintenance":
            return meta if meta.correlation else msgspec.structs.replace(meta, correlation=id)
        operation = of or meta.operation
        if operation is None:
            return meta
        correlation = self.world.fleet.cause(operation) or meta.correlation or operation
        return msgspec.structs.replace(meta, operation=operation, correlation=correlation)

    def _cause(self, at: Stream, meta: Meta, operation: OperationId | None) -> Meta:
        """What vmorch or a host does on account of an operation or undertaking follows from the last that happened in
        it. What a caller asks for is his own act, and so is what a host shows unasked."""
        if meta.fingerprint is not None or meta.causation is not None:
            return meta
        kind, id = split_stream(at)
        undertaking = id if kind in ("drain", "maintenance") else None
        found = self.world.latest(operation, meta.operation, undertaking, meta.correlation)
        return meta if found is None else msgspec.structs.replace(meta, causation=found)

    async def _recall(self, request: RequestId, print: str) -> list[Fact] | None:
        span = await self.world.log.request(request)
        if span is None:
            return None
        first, last = span
        await self.world.reach(last)
        facts = [decode(record) for record in await self.world.log.read(Position(first - 1), last - first + 1, last)]
        if facts and facts[0].meta.fingerprint != print:
            raise Rejected("request-reused", f"request id {request} was used for another request")
        return facts


def subject_of(facts: list[Fact], kind: str) -> str:
    """The id of the first stream of a kind among facts."""
    return next(split_stream(fact.stream)[1] for fact in facts if split_stream(fact.stream)[0] == kind)


def _facts(append: Append, said: Said, appended: Appended) -> list[Fact]:
    facts: list[Fact] = []
    position = appended.first
    for each in append.streams:
        for offset, (event, meta) in enumerate(said[each.stream], start=1):
            facts.append(
                Fact(
                    position=position,
                    stream=each.stream,
                    version=each.expected + offset,
                    event=event,
                    meta=meta,
                    recorded_at=appended.recorded_at,
                )
            )
            position = Position(position + 1)
    return facts

