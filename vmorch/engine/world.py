"""The live state: the log folded in memory, always a prefix of it, with a way to wait for it to move.

Must not decide and must not write. Own appends are applied at once, everybody else's as the follower brings
them; both go through the same door in position order.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import structlog

from vmorch.core.aggregates.vm import OperationEvent, OperationStarted
from vmorch.core.codec import Fact, Unreadable, decode
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream, split_stream
from vmorch.core.records import Recorded
from vmorch.log.interface import Log

logger = structlog.get_logger()

BATCH = 5000
REMEMBERED = 10_000
"""Operations and other undertakings whose last event is known without looking for it in the log."""


class World:
    """The fleet as of the last position that this process has seen."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.fleet = Fleet()
        self.poisoned: dict[Stream, str] = {}
        """Streams with an event that cannot be read, and why. Nothing is decided on them."""
        self._latest: dict[str, Position] = {}
        self._ahead: dict[Position, list[Fact]] = {}
        self._watchers: dict[Stream, set[asyncio.Event]] = {}
        self._moved: set[asyncio.Event] = set()
        self._awaited = 0
        self._listeners: list[Callable[[Fact], None]] = []

    async def load(self) -> None:
        """Fold everything that is in the log now."""
        head = await self.log.head()
        while self.fleet.position < head:
            batch = await self.log.read(self.fleet.position, BATCH, head)
            for record in batch:
                self._take(record)
            # a long fold must not starve the loop that everything else runs on
            await asyncio.sleep(0)

    async def follow(self) -> None:
        """Take every later event, for ever."""
        async for batch in self.log.follow(self.fleet.position, lambda: self._awaited > 0):
            for record in batch:
                if record.position > self.fleet.position:
                    self._take(record)
            self._drain()

    def take_own(self, facts: list[Fact]) -> None:
        """Take facts that this process has just appended, without waiting for them to come back."""
        if facts and facts[-1].position > self.fleet.position:
            self._ahead[facts[0].position] = facts
            self._drain()

    def latest(self, *undertakings: str | None) -> Position | None:
        """Where the last event lies of the first of these operations, drains or maintenances of which one is known."""
        for each in undertakings:
            if each is not None and each in self._latest:
                return self._latest[each]
        return None

    def on_fact(self, listener: Callable[[Fact], None]) -> Callable[[], None]:
        """Call `listener` after each fact that is folded in, until what is returned is called. It must only note it or
        begin a task for it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @contextmanager
    def watch(self, *streams: Stream) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of the streams moves; the watcher clears it."""
        event = asyncio.Event()
        for stream in streams:
            self._watchers.setdefault(stream, set()).add(event)
        try:
            yield event
        finally:
            for stream in streams:
                watchers = self._watchers.get(stream, set())
                watchers.discard(event)
                if not watchers:
                    self._watchers.pop(stream, None)

    async def reach(self, position: Position) -> None:
        """Return once everything up to `position` is folded in."""
        if self.fleet.position >= position:
            return
        self._awaited += 1
        try:
            async for at in self.changes():
                if at >= position:
                    return
        finally:
            self._awaited -= 1

    async def changes(self) -> AsyncGenerator[Position, None]:
        """The position now, then again whenever it has moved."""
        event = asyncio.Event()
        self._moved.add(event)
        try:
            while True:
                event.clear()
                yield self.fleet.position
                await event.wait()
        finally:
            self._moved.discard(event)

    def _drain(self) -> None:
        for first in sorted(self._ahead):
            facts = self._ahead[first]
            if first > self.fleet.position + 1:
                return
            del self._ahead[first]
            for fact in facts:
                if fact.position == self.fleet.position + 1:
                    self._apply(fact)

    def _take(self, record: Recorded) -> None:
        try:
            fact = decode(record)
        except Unreadable as error:
            self.poisoned.setdefault(record.stream, f"{record.position}: {error}")
            logger.error("unreadable event", position=record.position, stream=record.stream, why=str(error))
            self.fleet.skip(record.stream, record.version, record.position, record.recorded_at)
            self._tell(record.stream)
            return
        self._apply(fact)

    def _apply(self, fact: Fact) -> None:
        if fact.stream in self.poisoned:
            self.fleet.skip(fact.stream, fact.version, fact.position, fact.recorded_at)
        else:
            self.fleet.apply(fact)
            self._remember(fact)
            for listener in self._listeners:
                listener(fact)
        self._tell(fact.stream)

    def _remember(self, fact: Fact) -> None:
        kind, id = split_stream(fact.stream)
        operation = fact.event.operation if isinstance(fact.event, OperationStarted | OperationEvent) else None
        for each in (operation, id if kind in ("drain", "maintenance") else None):
            if each is not None:
                # those that moved last are kept, so that a long life needs no more memory than a short one
                self._latest.pop(each, None)
                self._latest[each] = fact.position
        if len(self._latest) > REMEMBERED:
            del self._latest[next(iter(self._latest))]

    def _tell(self, stream: Stream) -> None:
        for event in self._watchers.get(stream, ()):
            event.set()
        for event in self._moved:
            event.set()
