"""The newest events as they were written here, so that those who follow the log need not ask Postgres for them.

Must not hold what was not answered as written, nor leave out what somebody else wrote in between.
"""

from collections import deque
from collections.abc import Iterator

from msgspec import Struct

from vmorch.core.ids import Position
from vmorch.core.records import Append, Recorded
from vmorch.log.interface import Appended

_EVENTS, _BYTES = 1000, 4 * 2**20


class _Part(Struct):
    append: Append
    appended: Appended
    events: int
    bytes: int
    recorded: list[Recorded] = []


class Tail:
    """What this process appended last without anybody else in between: at most a thousand events, or 4 MiB, unless one
    append alone holds more."""

    def __init__(self) -> None:
        self._parts: deque[_Part] = deque()
        self._events = self._bytes = 0

    def add(self, append: Append, appended: Appended, bytes: int) -> None:
        """It was written. To be called in the order of positions."""
        if self._parts and self._parts[-1].appended.last + 1 != appended.first:
            self._parts.clear()
            self._events = self._bytes = 0
        part = _Part(append, appended, appended.last - appended.first + 1, bytes)
        self._parts.append(part)
        self._events += part.events
        self._bytes += part.bytes
        while len(self._parts) > 1 and (self._events > _EVENTS or self._bytes > _BYTES):
            oldest = self._parts.popleft()
            self._events -= oldest.events
            self._bytes -= oldest.bytes

    def after(self, position: Position) -> list[Recorded]:
        """Every event that is here after `position`; none if the one that follows it is not here."""
        if not self._parts or not self._parts[0].appended.first - 1 <= position < self._parts[-1].appended.last:
            return []
        wanted = deque[_Part]()
        for part in reversed(self._parts):
            wanted.appendleft(part)
            if part.appended.first <= position + 1:
                break
        events = [each for part in wanted for each in _recorded(part)]
        return events[position + 1 - wanted[0].appended.first :]


def _recorded(part: _Part) -> list[Recorded]:
    # made when somebody asks for it, then for everybody: under a burst nobody does
    if not part.recorded:
        part.recorded = list(as_recorded(part.append, part.appended))
    return part.recorded


def as_recorded(append: Append, appended: Appended) -> Iterator[Recorded]:
    """The events of an append that was written there and then, as the log has them."""
    position = appended.first
    for of in append.streams:
        for version, event in enumerate(of.events, start=of.expected + 1):
            yield Recorded(
                position=position,
                stream=of.stream,
                version=version,
                kind=event.kind,
                schema=event.schema,
                data=event.data,
                meta=event.meta,
                recorded_at=appended.recorded_at,
            )
            position = Position(position + 1)
