"""The live state: the log folded in memory, always a prefix of it, with a way to wait for it to move.

Must not decide and must not write. Own appends are applied at once, everybody else's as the follower brings
them; both go through the same door in position order.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import structlog

from vmorch.core.codec import Fact, Unreadable, decode
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded
from vmorch.log.interface import Log

logger = structlog.get_logger()

BATCH = 5000


class World:
    """The fleet as of the last position that this process has seen."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.fleet = Fleet()
        self.poisoned: dict[Stream, str] = {}
        """Streams with an event that cannot be read, and why. Nothing is decided on them."""
        self._ahead: dict[Position, list[Fact]] = {}
        self._watchers: dict[Stream, set[asyncio.Event]] = {}
        self._moved: set[asyncio.Event] = set()
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
        async for batch in self.log.follow(self.fleet.position):
            for record in batch:
                if record.position > self.fleet.position:
                    self._take(record)
            self._drain()

    def take_own(self, facts: list[Fact]) -> None:
        """Take facts that this process has just appended, without waiting for them to come back."""
        if facts and facts[-1].position > self.fleet.position:
            self._ahead[facts[0].position] = facts
            self._drain()

    def on_fact(self, listener: Callable[[Fact], None]) -> Callable[[], None]:
        """Call `listener` after each fact that is folded in, until what is returned is called. It must only note."""
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
        async for at in self.changes():
            if at >= position:
                return

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
            for listener in self._listeners:
                listener(fact)
        self._tell(fact.stream)

    def _tell(self, stream: Stream) -> None:
        for event in self._watchers.get(stream, ()):
            event.set()
        for event in self._moved:
            event.set()
