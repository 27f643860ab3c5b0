"""The event log in memory, for simulation: the same promises, nothing on disk.

It is also the plain statement of what the SQL function does, and both run the same contract tests.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from datetime import datetime

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import Append, NameClaim, Recorded
from vmorch.log.batch import encode
from vmorch.log.errors import NameTaken, VersionConflict
from vmorch.log.interface import Appended
from vmorch.log.tail import as_recorded


class MemoryLog:
    """A log that lasts as long as the object. `clock` tells the time of recording."""

    def __init__(self, incarnation: str, clock: Callable[[], datetime]) -> None:
        self.incarnation = incarnation
        self._clock = clock
        self._events: list[Recorded] = []
        self._times: list[datetime] = []
        self._streams: dict[Stream, list[Recorded]] = {}
        self._requests: dict[RequestId, tuple[Position, Position]] = {}
        self._names: dict[tuple[str, str], Stream] = {}
        self._grown = asyncio.Event()

    async def append(self, append: Append) -> Appended:
        encode(append)
        if append.request is not None and append.request in self._requests:
            first, last = self._requests[append.request]
            return Appended(first=first, last=last, recorded_at=self._times[last - 1], repeated=True)
        for part in append.streams:
            actual = len(self._streams.get(part.stream, ()))
            if actual != part.expected:
                raise VersionConflict(part.stream, part.expected, actual)
        names = self._renamed(append)
        now = max([self._clock(), *self._times[-1:]])
        before = len(self._events)
        last = Position(before + sum(len(part.events) for part in append.streams))
        appended = Appended(first=Position(before + 1), last=last, recorded_at=now, repeated=False)
        for each in as_recorded(append, appended):
            self._events.append(each)
            self._times.append(now)
            self._streams.setdefault(each.stream, []).append(each)
        self._names = names
        if append.request is not None:
            self._requests[append.request] = (appended.first, last)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
        return appended

    async def head(self) -> Position:
        return Position(len(self._events))

    async def read(self, after: Position, limit: int = 1000, until: Position | None = None) -> list[Recorded]:
        end = len(self._events) if until is None else min(until, len(self._events))
        return self._events[after : min(end, after + limit)]

    async def read_stream(
        self, stream: Stream, after_version: int = 0, until: Position | None = None
    ) -> list[Recorded]:
        events = self._streams.get(stream, [])[after_version:]
        return [event for event in events if until is None or event.position <= until]

    async def follow(
        self, after: Position, urgent: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[list[Recorded]]:
        while True:
            grown = self._grown
            events = await self.read(after)
            if events:
                after = events[-1].position
                yield events
            else:
                await grown.wait()

    async def request(self, request: RequestId) -> tuple[Position, Position] | None:
        return self._requests.get(request)

    async def position_at(self, moment: datetime) -> Position:
        return Position(bisect_right(self._times, moment))

    async def missing(self) -> list[str]:
        return []

    def _renamed(self, append: Append) -> dict[tuple[str, str], Stream]:
        names = dict(self._names)
        for released in append.releases:
            if names.get(_key(released)) == released.stream:
                del names[_key(released)]
        for claim in append.claims:
            holder = names.setdefault(_key(claim), claim.stream)
            if holder != claim.stream:
                raise NameTaken(claim.scope, claim.name, holder)
        return names


def _key(claim: NameClaim) -> tuple[str, str]:
    return claim.scope, claim.name
