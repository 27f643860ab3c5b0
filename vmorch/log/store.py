"""The event log in Postgres.

One connection appends (group commit), a few read, one listens. Must not interpret events.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Self

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import Append, Recorded
from vmorch.log.batch import encode
from vmorch.log.committer import Committer
from vmorch.log.connections import Readers, Row
from vmorch.log.errors import LogUnavailable
from vmorch.log.hints import Hints
from vmorch.log.interface import Appended

_READ = (
    "SELECT position, stream, version, kind, schema, data, meta, recorded_at FROM vmorch.events"
    " WHERE position > %s AND position <= %s ORDER BY position LIMIT %s"
)
_READ_STREAM = (
    "SELECT position, stream, version, kind, schema, data, meta, recorded_at FROM vmorch.events"
    " WHERE stream = %s AND version > %s AND position <= %s"
    " AND position >= (SELECT first_position FROM vmorch.streams WHERE stream = %s) ORDER BY version"
)
_FOREVER = 2**63 - 1
_PAGE = 1000


class EventLog:
    """The log at one database. Use it on one event loop; any number of processes may have one open.

    Every method raises `LogUnavailable` while Postgres is away and works again when it is back.
    """

    def __init__(self, incarnation: str, readers: Readers, hints: Hints, committer: Committer) -> None:
        self.incarnation = incarnation
        self._readers = readers
        self._hints = hints
        self._committer = committer

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect as a member of `vmorch_app` to a database with the current schema."""
        readers = Readers(url)
        [(incarnation,)] = await readers.fetch("SELECT incarnation FROM vmorch.log_head")
        hints = Hints(url)
        log = cls(incarnation, readers, hints, Committer(url, hints.committed))
        await log.ensure_partitions()
        return log

    async def close(self) -> None:
        """Write what was handed in before, then disconnect."""
        await self._committer.close()
        await self._hints.close()
        await self._readers.close()

    async def append(self, append: Append) -> Appended:
        """As `Log.append`. A caller that is cancelled does not know whether its append was written."""
        return await self._committer.submit(encode(append))

    async def ensure_partitions(self) -> int:
        """Keep two partitions of 10 million positions ahead; the number made. To be called now and then."""
        [(made,)] = await self._readers.fetch("SELECT vmorch.ensure_partitions()")
        return int(made)

    async def head(self) -> Position:
        [(position,)] = await self._readers.fetch("SELECT position FROM vmorch.log_head")
        return Position(position)

    async def read(self, after: Position, limit: int = 1000, until: Position | None = None) -> list[Recorded]:
        rows = await self._readers.fetch(_READ, (after, _FOREVER if until is None else until, limit))
        return _recorded(rows)

    async def read_stream(
        self, stream: Stream, after_version: int = 0, until: Position | None = None
    ) -> list[Recorded]:
        until = Position(_FOREVER) if until is None else until
        rows = await self._readers.fetch(_READ_STREAM, (stream, after_version, until, stream))
        return _recorded(rows)

    async def follow(self, after: Position) -> AsyncIterator[list[Recorded]]:
        while True:
            seen = self._hints.count
            try:
                events = await self.read(after, _PAGE)
            except LogUnavailable:
                events = []
            if events:
                after = events[-1].position
                yield events
            else:
                await self._hints.wait(seen)

    async def request(self, request: RequestId) -> tuple[Position, Position] | None:
        rows = await self._readers.fetch(
            "SELECT first_position, last_position FROM vmorch.requests WHERE request_id = %s", (request,)
        )
        return (Position(rows[0][0]), Position(rows[0][1])) if rows else None

    async def position_at(self, moment: datetime) -> Position:
        [(position,)] = await self._readers.fetch("SELECT vmorch.position_at(%s)", (moment,))
        return Position(position)


def _recorded(rows: list[Row]) -> list[Recorded]:
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
