"""The event log in Postgres, and in the archives that its old partitions went to.

One connection appends (group commit), a few read, one listens. All reading of events goes through here, so that nobody
else needs to know which of them are archived. Must not interpret events.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import LiteralString, Self

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import Append, Recorded
from vmorch.log.archives import Archives
from vmorch.log.batch import encode
from vmorch.log.committer import Committer
from vmorch.log.connections import Readers, Row
from vmorch.log.errors import LogUnavailable
from vmorch.log.hints import Hints
from vmorch.log.interface import Appended

_READ: LiteralString = (
    "SELECT position, stream, version, kind, schema, data, meta, recorded_at FROM vmorch.events"
    " WHERE position > %s AND position <= %s ORDER BY position LIMIT %s"
)
# The + 0 keeps two bounds of the position from looking like a narrow range, for which Postgres, planning for any range,
# would read the index of all positions beside that of the stream.
_READ_STREAM: LiteralString = (
    "SELECT position, stream, version, kind, schema, data, meta, recorded_at FROM vmorch.events"
    " WHERE stream = %s AND version > %s AND position + 0 <= %s"
    " AND position >= (SELECT first_position FROM vmorch.streams WHERE stream = %s) ORDER BY version"
)
_MARKED: LiteralString = "SELECT s.changes, e.* FROM vmorch.partitioning AS s LEFT JOIN ("
_FOREVER = 2**63 - 1
_PAGE = 1000
_HOT = 3000
"""Events per second appended here, from which on those who append and those who follow are in each other's way."""
_REST = 15
"""How many times as long as it worked a follower rests for each that follows, while so much is appended: the log must
not fall behind what is made of it, however many look."""
_WINDOW = 0.1
"""Seconds over which that is counted, at least: a few appends at once are no burst."""
_SPACING = 0.02


class EventLog:
    """The log at one database. Use it on one event loop; any number of processes may have one open.

    Every method raises `LogUnavailable` while Postgres is away and works again when it is back.
    """

    def __init__(
        self, incarnation: str, readers: Readers, archives: Archives, hints: Hints, committer: Committer
    ) -> None:
        self.incarnation = incarnation
        self._readers = readers
        self._archives = archives
        self._hints = hints
        self._committer = committer
        self._followers = 0
        self._archived = Position(0)
        """No hole in Postgres was met after this position, so that it is asked first."""

    @classmethod
    async def open(cls, url: str, archives: Path | None = None) -> Self:
        """Connect as a member of `vmorch_app` to a database with the current schema. `archives` is the directory that
        its archived partitions lie in."""
        readers = Readers(url)
        [(incarnation,)] = await readers.fetch("SELECT incarnation FROM vmorch.log_head")
        hints = Hints(url)
        log = cls(incarnation, readers, Archives(url, archives), hints, Committer(url, hints.committed))
        await log.ensure_partitions()
        return log

    async def close(self) -> None:
        """Write what was handed in before, then disconnect."""
        await self._committer.close()
        await self._hints.close()
        await self._archives.close()
        await self._readers.close()

    async def append(self, append: Append) -> Appended:
        """As `Log.append`. A caller that is cancelled does not know whether its append was written."""
        return await self._committer.submit(encode(append))

    async def ensure_partitions(self) -> int:
        """Keep two partitions ahead; the number made. To be called now and then."""
        [(made,)] = await self._readers.fetch("SELECT vmorch.ensure_partitions()")
        return int(made)

    async def head(self) -> Position:
        [(position,)] = await self._readers.fetch("SELECT position FROM vmorch.log_head")
        return Position(position)

    async def read(self, after: Position, limit: int = 1000, until: Position | None = None) -> list[Recorded]:
        end = Position(_FOREVER) if until is None else until
        if after < self._archived:
            return await self._read_old(after, limit, end)
        events = recorded(await self._readers.fetch(_READ, (after, end, limit)))
        last = events[-1].position if events else after
        # positions have no gaps, and the newest events are never archived: this is all there is
        if last - after == len(events) and (until is None or len(events) == limit or last >= until):
            return events
        return await self._read_old(after, limit, end)

    async def read_stream(
        self, stream: Stream, after_version: int = 0, until: Position | None = None
    ) -> list[Recorded]:
        until = Position(_FOREVER) if until is None else until
        params = (stream, after_version, until, stream)
        while True:
            changes, events = await marked(self._readers, _READ_STREAM, params, "version")
            if not changes:
                return events
            then, old = await self._archives.of_stream(stream, after_version, until)
            if then == changes:
                return sorted([*old, *events], key=attrgetter("version"))

    async def follow(
        self, after: Position, urgent: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[list[Recorded]]:
        self._followers += 1
        try:
            async for events in self._following(after, urgent):
                yield events
        finally:
            self._followers -= 1

    async def _following(self, after: Position, urgent: Callable[[], bool]) -> AsyncIterator[list[Recorded]]:
        clock = asyncio.get_running_loop().time
        since, before = clock(), self._committer.written
        asked = -1
        while True:
            seen, told = self._hints.count, self._hints.told
            began = clock()
            own = events = self._committer.tail.after(after)
            if not own:
                try:
                    events = await self.read(after, _PAGE)
                    asked = told
                except LogUnavailable:
                    events = []
            if events:
                after = events[-1].position
                yield events
                worked, passed = clock() - began, clock() - since
                written = self._committer.written - before
                if passed > _WINDOW:
                    since, before = clock(), self._committer.written
                if written > _HOT * max(passed, _WINDOW):
                    await self._rest(_REST * self._followers * worked, urgent)
            if not events or (own and asked == told):
                # nobody else told of an append since Postgres was asked
                await self._hints.wait(seen)

    async def _rest(self, longest: float, urgent: Callable[[], bool]) -> None:
        """Leave the processor to those who append, for as long as they go on like that."""
        clock = asyncio.get_running_loop().time
        end = clock() + longest
        while clock() < end and not urgent():
            began, written = clock(), self._committer.written
            await asyncio.sleep(_SPACING)
            if self._committer.written - written <= _HOT * (clock() - began):
                return

    async def request(self, request: RequestId) -> tuple[Position, Position] | None:
        rows = await self._readers.fetch(
            "SELECT first_position, last_position FROM vmorch.requests WHERE request_id = %s", (request,)
        )
        return (Position(rows[0][0]), Position(rows[0][1])) if rows else None

    async def position_at(self, moment: datetime) -> Position:
        while True:
            [(position, archived)] = await self._readers.fetch(
                "SELECT position, archived FROM vmorch.position_around(%s)", (moment,)
            )
            found = Position(position) if archived is None else await self._archives.position_at(archived, moment)
            if found is not None:
                return found

    async def missing(self) -> list[str]:
        return await self._archives.missing()

    async def _read_old(self, after: Position, limit: int, until: Position) -> list[Recorded]:
        """As `read`, where some events may be archived."""
        while True:
            found: list[Recorded] = []
            at, moments = after, set[int]()
            while at < until and len(found) < limit:
                changes, archived = await self._archives.following(at, until)
                moments.add(changes)
                first, last = archived or (until + 1, until)
                left = limit - len(found)
                if at + 1 < first:
                    end = Position(min(first - 1, until))
                    changes, events = await marked(self._readers, _READ, (at, end, left), "position")
                else:
                    self._archived = max(self._archived, last)
                    end = Position(min(last, until, at + left))
                    changes, events = await self._archives.between(at, end)
                moments.add(changes)
                found += events
                at = end
            # an archive that was made or brought back between two of the questions: ask again
            if len(moments) <= 1:
                return found


async def marked(
    readers: Readers, query: LiteralString, params: Sequence[object], order: LiteralString
) -> tuple[int, list[Recorded]]:
    """The events that a query selects, and how often any were archived or brought back by then."""
    rows = await readers.fetch(_MARKED + query + ") AS e ON true ORDER BY e." + order, params)
    return rows[0][0], recorded([row[1:] for row in rows if row[1] is not None])


def recorded(rows: list[Row]) -> list[Recorded]:
    """Events from their columns in the order of the table."""
    return [
        Recorded(
            position=position,
            stream=stream,
            version=version,
            kind=kind,
            schema=schema,
            data=data,
            meta=meta,
            recorded_at=recorded_at,
        )
        for position, stream, version, kind, schema, data, meta, recorded_at in rows
    ]
