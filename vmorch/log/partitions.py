"""The log's partitions in the hands of the database's owner: taken out once their events are in a file, and put back.

Each is one transaction, by SQL functions that no login may call. Must not judge whether a file is right.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, LiteralString, Self

import psycopg
from msgspec import Struct
from psycopg import sql

from vmorch.audit.blocks import Block
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position
from vmorch.core.records import Recorded
from vmorch.log.errors import LogUnavailable

_REFUSALS = {
    "VM002": ("partition-in-use", "the newest events stay where they are"),
    "VM003": ("not-sealed", "vmorch audit status"),
    "VM004": ("log-tampered", "vmorch audit verify"),
    "55P03": ("partition-in-use", "repeat it when whoever reads the log for long, such as a dump, is done"),
}
"""What Postgres refuses by these states, as a code with a hint."""

_ARCHIVES: LiteralString = (
    "SELECT number, first, last, file, bytes, sha256, began_at, ended_at, archived_at"
    " FROM vmorch.archives ORDER BY first"
)
_BLOCKS: LiteralString = (
    "SELECT a.file, b.first, b.last, b.place, b.size, b.sha256 FROM vmorch.archive_blocks AS b"
    " JOIN vmorch.archives AS a ON a.number = b.archive WHERE a.number = %s ORDER BY b.last"
)


class Partition(Struct, frozen=True, kw_only=True):
    """A partition that is in Postgres; `size` is all the bytes that it takes there."""

    number: int
    first: Position
    last: Position
    size: int


class Archive(Struct, frozen=True, kw_only=True):
    """A partition that is in a file of `size` bytes."""

    number: int
    first: Position
    last: Position
    file: str
    size: int
    sha256: bytes
    began_at: datetime
    ended_at: datetime
    archived_at: datetime


class Copy:
    """Events on their way into a partition's table."""

    def __init__(self, copy: psycopg.AsyncCopy) -> None:
        self._copy = copy

    async def write(self, records: Sequence[Recorded]) -> None:
        for each in records:
            await self._copy.write_row(
                (
                    each.position,
                    each.stream,
                    each.version,
                    each.kind,
                    each.schema,
                    each.data.decode(),
                    each.meta.decode(),
                    each.recorded_at,
                )
            )


class Partitions:
    """One log's partitions. Only one process at a time has them open; others wait for it.

    Every method raises Rejected for what the log refuses, and LogUnavailable.
    """

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, owner_url: str) -> AsyncIterator[Self]:
        """Connect as the database's owner, and wait for one's turn."""
        try:
            connection = await psycopg.AsyncConnection.connect(
                owner_url, autocommit=True, connect_timeout=5, options="-c timezone=UTC", application_name="vmorch"
            )
        except psycopg.OperationalError as error:
            raise LogUnavailable(str(error).strip()) from error
        async with connection:
            with _told():
                await connection.execute("SET ROLE vmorch_owner")
                await connection.execute("SELECT pg_advisory_lock(hashtext('vmorch.archiving'))")
            yield cls(connection)

    async def present(self, until: Position) -> list[Partition]:
        """The partitions in Postgres that end at a position or before, in order."""
        rows = await self._rows(
            "SELECT p.number, greatest(p.low, 1), p.high - 1,"
            "       coalesce(pg_total_relation_size(to_regclass(format('vmorch.events_%%s', p.number))), 0)"
            "  FROM vmorch.partitions AS p"
            " WHERE p.high - 1 <= %s AND NOT EXISTS (SELECT FROM vmorch.archives AS a WHERE a.number = p.number)"
            " ORDER BY p.low",
            (until,),
        )
        return [Partition(number=number, first=first, last=last, size=size) for number, first, last, size in rows]

    async def archives(self) -> list[Archive]:
        """Every archive, in the order of their events."""
        rows = await self._rows(_ARCHIVES, ())
        return [Archive(**dict(zip(Archive.__struct_fields__, row, strict=True))) for row in rows]

    async def blocks(self, archive: Archive) -> list[Block]:
        """The blocks of an archive's file, in order."""
        rows = await self._rows(_BLOCKS, (archive.number,))
        return [Block(**dict(zip(Block.__struct_fields__, row, strict=True))) for row in rows]

    async def archive(
        self, partition: Partition, file: str, size: int, sha256: bytes, blocks: Sequence[Block]
    ) -> None:
        """Record that a partition's events are in a file, and take it out of the log: both or neither."""
        with _told():
            await self._connection.execute(
                "SELECT vmorch.archive(%s, %s, %s, %s, %s::bigint[], %s::bigint[], %s::int[], %s::bytea[])",
                (
                    partition.number,
                    file,
                    size,
                    sha256,
                    [each.last for each in blocks],
                    [each.place for each in blocks],
                    [each.size for each in blocks],
                    [each.sha256 for each in blocks],
                ),
            )

    @asynccontextmanager
    async def restoring(self, archive: Archive) -> AsyncIterator[Copy]:
        """Take in all events of an archive; the partition is back in the log when that ends well, else nothing was."""
        copy = sql.SQL(
            "COPY vmorch.{} (position, stream, version, kind, schema, data, meta, recorded_at) FROM STDIN"
        ).format(sql.Identifier(f"events_{archive.number}"))
        with _told():
            async with self._connection.transaction():
                await self._connection.execute("SELECT vmorch.begin_restore(%s)", (archive.number,))
                async with self._connection.cursor() as cursor, cursor.copy(copy) as sink:
                    yield Copy(sink)
                await self._connection.execute("SELECT vmorch.restore(%s)", (archive.number,))

    async def _rows(self, query: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        with _told():
            return await (await self._connection.execute(query, params)).fetchall()


@contextmanager
def _told() -> Iterator[None]:
    """What Postgres refuses, in our words."""
    try:
        yield
    except psycopg.Error as error:
        code, hint = _REFUSALS.get(error.sqlstate or "", ("", ""))
        if code:
            raise Rejected(code, error.diag.message_primary or str(error), hint=hint) from error
        if isinstance(error, psycopg.OperationalError):
            raise LogUnavailable(str(error).strip()) from error
        raise
