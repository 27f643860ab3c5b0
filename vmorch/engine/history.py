"""The past as fleets: the same fold as the present's, stopped earlier, begun at a checkpoint of the state where there
is one.

Must not write and must not decide. What it gives out is shared: callers read it and never apply anything to it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime

import msgspec
from msgspec import Struct

from vmorch.core.aggregates.image import ImageAdded, ImageRemoved
from vmorch.core.aggregates.vm import OperationStarted, Vm, VmCreated
from vmorch.core.codec import Unreadable, decode
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, OperationId, Position, Stream, VmId, split_stream, stream
from vmorch.core.moments import moment
from vmorch.core.operations.rename import VmRenamed
from vmorch.core.records import Recorded
from vmorch.core.states import Held, put, read_frame, read_row, remembering, restore
from vmorch.log.errors import LogUnavailable
from vmorch.log.folding import uncollected
from vmorch.log.interface import Log
from vmorch.log.state_store import Mark, StateStore

KEPT = 6
"""How many whole fleets of the past are kept in memory: whoever pages through one moment folds once."""
BATCH = 1000
"""Events that are folded before others get their turn."""

_NAMING = (VmCreated.kind, VmRenamed.kind)
_OF_IMAGES = (ImageAdded.kind, ImageRemoved.kind)


class Past:
    """A fleet of the past, and the streams that it could not read to their end. The VMs in `lacks` have none of the
    operations that were over in the checkpoint at `mark`."""

    def __init__(self, fleet: Fleet, poisoned: dict[Stream, str]) -> None:
        self.fleet = fleet
        self.poisoned = poisoned
        self.lacks: set[Stream] = set()
        self.mark = fleet.position

    def take(self, records: Iterable[Recorded]) -> None:
        """Fold in what follows; a stream stands still at an event that cannot be read, as it does in the present."""
        for record in records:
            if record.stream not in self.poisoned:
                try:
                    self.fleet.apply(decode(record))
                    continue
                except Unreadable as error:
                    self.poisoned[record.stream] = f"{record.position}: {error}"
            self.fleet.skip(record.stream, record.version, record.position, record.recorded_at)

    def copy(self) -> "Past":
        """The same, unaffected by what this one takes later."""
        other = Past(self.fleet.copy(), dict(self.poisoned))
        other.lacks, other.mark = set(self.lacks), self.mark
        return other

    def recalls(self, records: Iterable[Recorded]) -> list[Stream]:
        """The VMs whose operations that are over have to be known before these events are folded: what is said of an
        operation after its end can still change its VM."""
        started: set[OperationId] = set()
        found: dict[Stream, None] = {}
        for record in records:
            operation = _operation_of(record) if record.stream in self.lacks else None
            if operation is None or operation in started or operation in self.fleet.operations:
                continue
            if record.kind == OperationStarted.kind:
                started.add(operation)
            else:
                found[record.stream] = None
        return list(found)


class History:
    """Answers for any moment of one log. Every method raises LogUnavailable."""

    def __init__(self, log: Log, states: StateStore | None) -> None:
        self.log = log
        self.states = states
        self._kept: OrderedDict[tuple[Position, bool], Past] = OrderedDict()
        self._turn = asyncio.Lock()

    async def position(self, text: str, now: datetime) -> Position:
        """The position of a moment. Raises Rejected `bad-moment` or `future-moment`."""
        found = moment(text, now)
        if isinstance(found, datetime):
            return await self.log.position_at(found)
        head = await self.log.head()
        if found is not None and found > head:
            raise Rejected("future-moment", f"the log ends at @{head}", hint=f"ask for a position up to @{head}")
        return head if found is None else found

    async def fleet(self, at: Position) -> Fleet:
        """Everything as of a position."""
        return (await self.past(at)).fleet

    async def standing(self, at: Position) -> Fleet:
        """The same without operations that are over, of which VMs may lack any: as much as lists of all but operations
        and drains need, and many times as quick."""
        return (await self._past(at, whole=False)).fleet

    async def past(self, at: Position) -> Past:
        """Everything as of a position, with what could not be read."""
        return await self._past(at, whole=True)

    async def _past(self, at: Position, *, whole: bool) -> Past:
        async with self._turn:
            key = (at, whole or (at, True) in self._kept)
            found = self._kept.get(key)
            if found is None:
                found = await self._folded(at, whole)
                self._kept[key] = found
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return found

    async def _folded(self, at: Position, whole: bool) -> Past:
        near = max((kept for kept in self._kept if kept[0] <= at and kept[1] >= whole), default=None)
        mark = None if self.states is None else await self.states.newest(at)
        if near is not None and (mark is None or near[0] >= mark.position):
            past = self._kept[near].copy()
        elif mark is not None:
            past = await self.at_mark(mark, whole=whole)
        else:
            past = Past(Fleet(), {})
        await self.advance(past, at)
        return past

    async def at_mark(self, mark: Mark, *, whole: bool = True) -> Past:
        """The fleet in a checkpoint, `whole` or without operations that are over."""
        assert self.states is not None
        rows = await (self.states.states(mark.position) if whole else self.states.standing(mark.position))
        frame = read_frame(mark.frame)
        with uncollected():
            fleet = restore(mark.position, frame, map(read_row, rows))
        past = Past(fleet, dict(frame.poisoned))
        if not whole:
            past.lacks.update(stream("vm", vm) for vm in fleet.vms)
        return past

    async def advance(self, past: Past, until: Position) -> None:
        """Fold on up to a position."""
        with uncollected():
            while past.fleet.position < until:
                records = await self.log.read(past.fleet.position, BATCH, until)
                if recalled := past.recalls(records):
                    await self._recall(past, recalled)
                past.take(records)
                # a long fold must not starve the loop that everything else runs on
                await asyncio.sleep(0)

    async def _recall(self, past: Past, streams: list[Stream]) -> None:
        assert self.states is not None
        rows = await self.states.states(past.mark, streams)
        if len(rows) < len(streams):
            raise LogUnavailable(f"the checkpoint of the state at @{past.mark} is gone")
        for row in rows:
            vm = past.fleet.vms.get(VmId(split_stream(row.stream)[1]))
            if vm is not None:
                put(past.fleet, Held(row.stream, vm.name, remembering(vm, row)))
        past.lacks.difference_update(streams)

    async def things(self, streams: list[Stream], position: Position) -> Past:
        """Some things alone as of a position; a fleet that holds nothing else."""
        return await self._things(streams, position)

    async def around_vm(self, ref: str, position: Position) -> Fleet:
        """As much of the fleet as a VM refers to: itself by name, id or beginning of its id, hosts, images.

        It takes as long on a long log as on a short one, and with many VMs as with few.
        """
        mark = None if self.states is None else await self.states.newest(position)
        if self.states is None or mark is None or (position, True) in self._kept:
            return await self.fleet(position)
        called = await self.states.called(mark.position, "vm", ref)
        window = await self.states.window(mark.position, position, _OF_IMAGES, _NAMING, ref)
        streams = {row.stream for row in called} | {each.stream for each in window if each.kind in _NAMING}
        past = await self._things(sorted(streams), position, mark)
        for row in await self.states.of_kind(mark.position, "image"):
            put(past.fleet, read_row(row))
        past.take(each for each in window if each.kind in _OF_IMAGES)
        hosts = {stream("host", host) for vm in past.fleet.vms.values() for host in _hosts(vm)}
        await self._add(past, sorted(hosts), position, mark)
        return await self._at(past.fleet, position)

    async def _things(self, streams: list[Stream], position: Position, mark: Mark | None = None) -> Past:
        if mark is None and self.states is not None:
            mark = await self.states.newest(position)
        past = Past(Fleet(), {} if mark is None else dict(read_frame(mark.frame).poisoned))
        await self._add(past, streams, position, mark)
        await self._at(past.fleet, position)
        return past

    async def _add(self, past: Past, streams: list[Stream], position: Position, mark: Mark | None) -> None:
        if self.states is not None and mark is not None and streams:
            for row in await self.states.states(mark.position, streams):
                put(past.fleet, read_row(row))
        for each in streams:
            past.take(await self.log.read_stream(each, past.fleet.version(each), position))

    async def _at(self, fleet: Fleet, position: Position) -> Fleet:
        fleet.position = position
        fleet.recorded_at = None
        if position:
            [last] = await self.log.read(Position(position - 1), 1)
            fleet.recorded_at = last.recorded_at
        return fleet


class _Named(Struct, frozen=True):
    operation: str | None = None


_read_named = msgspec.json.Decoder(_Named).decode


def _operation_of(record: Recorded) -> OperationId | None:
    """The operation that an event is about, as far as that can be read."""
    try:
        found = _read_named(record.data).operation
    except msgspec.MsgspecError:
        return None
    return None if found is None else OperationId(found)


def _hosts(vm: Vm) -> set[HostId]:
    found = {step.host for operation in vm.operations.values() for step in operation.steps} | vm.traces
    if vm.host is not None:
        found = found | {vm.host}
    if vm.frozen is not None:
        found = found | {vm.frozen.source, vm.frozen.destination}
    return set(found)
