"""Who did what, when, why, and how it ended, from the log alone.

Must not write, and must not interpret what was done: it returns acts.
"""

from fnmatch import fnmatchcase

from msgspec import Struct

from vmorch.core.acts import Act, Acts
from vmorch.core.aggregates.vm import OperationFinished
from vmorch.core.codec import Unreadable, decode
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId, OperationId, Position, Stream, split_stream
from vmorch.core.resources import operation_resource
from vmorch.engine.history import BATCH, History

UNDER_WAY = "running"
DONE = "done"
"""What is complete with the events that it consists of."""


class Wanted(Struct, frozen=True, kw_only=True):
    """The acts after a position up to another; `actor` is a glob, `stream` what they were done to."""

    after: Position
    until: Position
    actor: str | None = None
    stream: Stream | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """How an act ended as far as is known: `done`, `running`, or the outcome of its operation or undertaking."""

    state: str
    code: str = ""
    message: str = ""


class Report(Struct, frozen=True):
    """Acts with their outcomes, in log order, and the position to go on after; None at the end."""

    acts: list[tuple[Act, Outcome]]
    next: Position | None


class Reporter:
    """Makes reports on one log. Every method raises LogUnavailable."""

    def __init__(self, history: History, fleet: Fleet) -> None:
        self._log = history.log
        self._history = history
        self._fleet = fleet
        self._ended: dict[Stream, dict[OperationId, Outcome]] = {}

    async def report(self, wanted: Wanted, limit: int) -> Report:
        """At most `limit` acts."""
        found, next = await self._acts(wanted, limit)
        return Report([(act, await self._outcome(act)) for act in found], next)

    async def _acts(self, wanted: Wanted, limit: int) -> tuple[list[Act], Position | None]:
        acts, found = Acts(), list[Act]()
        after = wanted.after
        while after < wanted.until:
            if wanted.stream is None:
                batch = await self._log.read(after, BATCH, wanted.until)
            else:
                events = await self._log.read_stream(wanted.stream, until=wanted.until)
                batch = [each for each in events if each.position > after]
            for record in batch:
                act = acts.take(record)
                if act is not None and _admits(wanted, act):
                    found.append(act)
                    if len(found) == limit:
                        # an act that began is looked at again with the next page
                        return found, Position(record.position - 1)
            if wanted.stream is not None or not batch:
                break
            after = batch[-1].position
        act = acts.end()
        if act is not None and _admits(wanted, act):
            found.append(act)
        return found, None

    async def _outcome(self, act: Act) -> Outcome:
        kind, id = split_stream(act.subject)
        if act.operation is not None:
            return await self._of_operation(act.subject, act.operation)
        if kind in ("drain", "maintenance"):
            return await self._of_undertaking(act.subject, id)
        return Outcome(state=DONE)

    async def _of_operation(self, at: Stream, operation: OperationId) -> Outcome:
        known = self._fleet.operation(operation)
        if known is not None:
            shown = operation_resource(self._fleet, *known)
            return Outcome(state=shown.state, code=shown.code, message=shown.message)
        if at not in self._ended:
            self._ended[at] = await self._endings(at)
        return self._ended[at].get(operation, Outcome(state=UNDER_WAY))

    async def _endings(self, at: Stream) -> dict[OperationId, Outcome]:
        found = {}
        for record in await self._log.read_stream(at):
            if record.kind == OperationFinished.kind:
                try:
                    event = decode(record).event
                except Unreadable:
                    continue
                assert isinstance(event, OperationFinished)
                found[event.operation] = Outcome(state=event.outcome, code=event.code, message=event.message)
        return found

    async def _of_undertaking(self, at: Stream, id: str) -> Outcome:
        state = _state(self._fleet, id)
        if state is None:
            past = await self._history.things([at], await self._log.head())
            state = _state(past.fleet, id)
        return Outcome(state=state or DONE)


def _state(fleet: Fleet, id: str) -> str | None:
    """How far a drain or a maintenance is; None if the fleet does not know it."""
    drain, maintenance = fleet.drains.get(DrainId(id)), fleet.maintenances.get(id)
    if drain is not None:
        return drain.outcome or drain.state
    if maintenance is not None:
        return maintenance.outcome or UNDER_WAY
    return None


def _admits(wanted: Wanted, act: Act) -> bool:
    return wanted.actor is None or fnmatchcase(act.actor, wanted.actor)
