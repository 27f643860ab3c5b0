"""What differs between two moments, and which events made it so: the log folded from the one to the other.

Must not write. A stream that cannot be read stands still, as everywhere.
"""

from collections.abc import AsyncIterator, Mapping

from vmorch.core.aggregates.vm import Vm
from vmorch.core.codec import Unreadable, decode
from vmorch.core.differences import Difference, Tracing
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream, split_stream
from vmorch.core.records import Recorded
from vmorch.core.states import state_of
from vmorch.engine.history import BATCH, History


async def differences(
    history: History, before: Position, after: Position, subject: str | None, labels: Mapping[str, str]
) -> list[Difference]:
    """What differs between two positions: of one thing (`vm/web`), of the VMs with these labels at either end, or of
    everything. Raises Rejected `bad-request` if `after` lies before `before`, and `no-such-...` for a subject that
    existed at neither end."""
    if after < before:
        raise Rejected("bad-request", f"@{before} lies after @{after}", hint="name the earlier moment first")
    if subject is not None:
        at = await _subject(history, subject, before, after)
        past = await history.things([at], before)
        tracing = Tracing(past.fleet, frozenset([at]))
        await _fold(tracing, dict(past.poisoned), _of_one(history, at, past.fleet.version(at), after))
        return tracing.differences()
    past = (await history.past(before)).copy()
    started = past.fleet.copy()
    tracing = Tracing(past.fleet)
    await _fold(tracing, past.poisoned, _of_all(history, before, after))
    found = tracing.differences()
    if not labels:
        return found
    return [each for each in found if any(_labelled(fleet, each.subject, labels) for fleet in (started, past.fleet))]


async def _fold(tracing: Tracing, poisoned: dict[Stream, str], batches: AsyncIterator[list[Recorded]]) -> None:
    async for batch in batches:
        for record in batch:
            if record.stream not in poisoned:
                try:
                    tracing.apply(decode(record))
                except Unreadable as error:
                    poisoned[record.stream] = str(error)


async def _of_one(history: History, at: Stream, version: int, until: Position) -> AsyncIterator[list[Recorded]]:
    yield await history.log.read_stream(at, version, until)


async def _of_all(history: History, after: Position, until: Position) -> AsyncIterator[list[Recorded]]:
    while after < until:
        batch = await history.log.read(after, BATCH, until)
        yield batch
        after = batch[-1].position


def _labelled(fleet: Fleet, at: Stream, labels: Mapping[str, str]) -> bool:
    vm = state_of(fleet, at)
    return isinstance(vm, Vm) and all(vm.labels.get(key) == value for key, value in labels.items())


async def _subject(history: History, subject: str, before: Position, after: Position) -> Stream:
    """The stream that a subject names at the later moment, or else at the earlier one."""
    kind, ref = split_stream(subject)
    try:
        return await _named(history, kind, ref, after)
    except Rejected as refusal:
        if refusal.code in ("ambiguous-name", "bad-request"):
            raise
        return await _named(history, kind, ref, before)


async def _named(history: History, kind: str, ref: str, at: Position) -> Stream:
    fleet = await (history.around_vm(ref, at) if kind == "vm" else history.fleet(at))
    if state_of(fleet, Stream(f"{kind}/{ref}")) is not None:
        return Stream(f"{kind}/{ref}")
    return fleet.find(kind, ref)
