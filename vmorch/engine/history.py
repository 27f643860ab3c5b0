"""The past as fleets: the same fold as the present's, stopped earlier, begun at a checkpoint of the state where there
is one.

Must not write and must not decide. What it gives out is shared: callers read it and never apply anything to it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime

from vmorch.core.aggregates.image import ImageAdded, ImageRemoved
from vmorch.core.aggregates.vm import Vm, VmCreated
from vmorch.core.codec import Unreadable, decode
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, Position, Stream, stream
from vmorch.core.moments import moment
from vmorch.core.operations.rename import VmRenamed
from vmorch.core.records import Recorded
from vmorch.core.states import put, read_frame, read_row, restore
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
    """A fleet of the past, and the streams that it could not read to their end."""

    def __init__(self, fleet: Fleet, poisoned: dict[Stream, str]) -> None:
        self.fleet = fleet
        self.poisoned = poisoned

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
        return Past(self.fleet.copy(), dict(self.poisoned))


class History:
    """Answers for any moment of one log. Every method raises LogUnavailable."""

    def __init__(self, log: Log, states: StateStore | None) -> None:
        self.log = log
        self.states = states
        self._kept: OrderedDict[Position, Past] = OrderedDict()
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

    async def past(self, at: Position) -> Past:
        """Everything as of a position, with what could not be read."""
        async with self._turn:
            found = self._kept.get(at)
            if found is None:
                found = await self._folded(at)
                self._kept[at] = found
            self._kept.move_to_end(at)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return found

    async def _folded(self, at: Position) -> Past:
        near = max((kept for kept in self._kept if kept <= at), default=None)
        mark = None if self.states is None else await self.states.newest(at)
        if near is not None and (mark is None or near >= mark.position):
            past = self._kept[near].copy()
        elif mark is not None:
            past = await self.at_mark(mark)
        else:
            past = Past(Fleet(), {})
        await self.advance(past, at)
        return past

    async def at_mark(self, mark: Mark) -> Past:
        """The fleet in a checkpoint."""
        assert self.states is not None
        rows = await self.states.states(mark.position)
        frame = read_frame(mark.frame)
        return Past(restore(mark.position, frame, map(read_row, rows)), dict(frame.poisoned))

    async def advance(self, past: Past, until: Position) -> None:
        """Fold on up to a position."""
        with uncollected():
            while past.fleet.position < until:
                past.take(await self.log.read(past.fleet.position, BATCH, until))
                # a long fold must not starve the loop that everything else runs on
                await asyncio.sleep(0)

    async def things(self, streams: list[Stream], position: Position) -> Past:
        """Some things alone as of a position; a fleet that holds nothing else."""
        return await self._things(streams, position)

    async def around_vm(self, ref: str, position: Position) -> Fleet:
        """As much of the fleet as a VM refers to: itself by name, id or beginning of its id, hosts, images.

        It takes as long on a long log as on a short one, and with many VMs as with few.
        """
        mark = None if self.states is None else await self.states.newest(position)
        if self.states is None or mark is None or position in self._kept:
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


def _hosts(vm: Vm) -> set[HostId]:
    found = {step.host for operation in vm.operations.values() for step in operation.steps} | vm.traces
    if vm.host is not None:
        found = found | {vm.host}
    if vm.frozen is not None:
        found = found | {vm.frozen.source, vm.frozen.destination}
    return set(found)
