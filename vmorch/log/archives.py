"""The archived parts of a log, event by event: which file holds them is in Postgres, the events are in the file.

Only the blocks that are asked for are read, and each is believed by the hash of its bytes alone. Must not write, and
must not answer "nothing" for what it cannot read.
"""

import asyncio
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import LiteralString

from vmorch.audit.blocks import BadBlock, Block, records_in
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded
from vmorch.log.connections import Readers, Row
from vmorch.log.errors import ArchiveDamaged, ArchiveMissing

_BETWEEN: LiteralString = (
    "SELECT s.changes, f.* FROM vmorch.partitioning AS s LEFT JOIN"
    " (SELECT a.file, b.first, b.last, b.place, b.size, b.sha256"
    "    FROM vmorch.archive_blocks AS b JOIN vmorch.archives AS a ON a.number = b.archive"
    # no block is longer, so that the index on their ends serves both bounds
    "   WHERE b.last > %s AND b.last < %s::bigint + 1000 AND b.first <= %s) AS f ON true ORDER BY f.last"
)
_FOLLOWING: LiteralString = (
    "SELECT s.changes, f.first, f.last FROM vmorch.partitioning AS s LEFT JOIN (SELECT first, last"
    " FROM vmorch.archives WHERE last > %s AND first <= %s ORDER BY last LIMIT 1) AS f ON true"
)
_OF_STREAM: LiteralString = (
    "SELECT s.changes, f.* FROM vmorch.partitioning AS s LEFT JOIN"
    " (SELECT a.file, b.first, b.last, b.place, b.size, b.sha256"
    "    FROM vmorch.archive_streams AS t CROSS JOIN LATERAL unnest(t.blocks, t.versions) AS u(last, version)"
    "    JOIN vmorch.archive_blocks AS b ON b.last = u.last JOIN vmorch.archives AS a ON a.number = b.archive"
    "   WHERE t.stream = %s AND u.version > %s AND b.first <= %s) AS f ON true ORDER BY f.last"
)
_AT: LiteralString = (
    "SELECT a.file, b.first, b.last, b.place, b.size, b.sha256"
    "  FROM vmorch.archive_blocks AS b JOIN vmorch.archives AS a ON a.number = b.archive"
    " WHERE b.archive = %s AND b.began_at <= %s ORDER BY b.last DESC LIMIT 1"
)

_PAGED = 5_000
_REMEMBERED = 20_000
"""Events that are kept in memory: the newest blocks that were read, and single streams out of blocks."""


class Archives:
    """The archives of the log at one database, in one directory. Every method raises `LogUnavailable`; for a file that
    is not there or not what was written, the kinds of it that say so.

    With blocks comes a number: if it is the one that came with the events of Postgres, both are of one moment.
    """

    def __init__(self, url: str, directory: Path | None = None) -> None:
        self._readers = Readers(url)
        self._directory = directory
        self._pages = _Kept(_PAGED)
        self._streams = _Kept(_REMEMBERED)

    async def close(self) -> None:
        """Disconnect."""
        await self._readers.close()

    async def missing(self) -> list[str]:
        """What is wrong with the files: one that is not there, or that has not the size it was written with."""
        rows = await self._readers.fetch("SELECT file, bytes FROM vmorch.archives ORDER BY first")
        found = await asyncio.to_thread(lambda: [_trouble(self._directory, file, size) for file, size in rows])
        return [each for each in found if each]

    async def following(self, after: Position, until: Position) -> tuple[int, tuple[Position, Position] | None]:
        """The first archived part that holds any of the events after `after` up to `until`: its first and last."""
        [(changes, first, last)] = await self._readers.fetch(_FOLLOWING, (after, until))
        return changes, None if first is None else (first, last)

    async def between(self, after: Position, until: Position) -> tuple[int, list[Recorded]]:
        """The archived events after `after` up to `until`, in order."""
        changes, blocks = _blocks(await self._readers.fetch(_BETWEEN, (after, until, until)))
        found: list[Recorded] = []
        for block in blocks:
            found += (await self._block(block))[max(after + 1 - block.first, 0) : until + 1 - block.first]
        return changes, found

    async def of_stream(self, stream: Stream, after_version: int, until: Position) -> tuple[int, list[Recorded]]:
        """The archived events of one stream after `after_version`, up to position `until`, by version."""
        changes, blocks = _blocks(await self._readers.fetch(_OF_STREAM, (stream, after_version, until)))
        found: list[Recorded] = []
        for block in blocks:
            key = (block.sha256, stream)
            events = self._streams.get(key)
            if events is None:
                events = [each for each in await self._block(block) if each.stream == stream]
                self._streams.put(key, events)
            found += [each for each in events if each.version > after_version and each.position <= until]
        return changes, found

    async def position_at(self, number: int, moment: datetime) -> Position | None:
        """The last position of an archive that was recorded at or before a moment; None if it holds none such."""
        rows = await self._readers.fetch(_AT, (number, moment))
        if not rows:
            return None
        events = await self._block(_block(rows[0]))
        return max(each.position for each in events if each.recorded_at <= moment)

    async def _block(self, block: Block) -> list[Recorded]:
        key = (block.sha256, "")
        events = self._pages.get(key)
        if events is None:
            events = await asyncio.to_thread(read_block, self._directory, block)
            self._pages.put(key, events)
        return events


def _trouble(directory: Path | None, file: str, size: int) -> str:
    if directory is None:
        return str(ArchiveMissing(file, None))
    try:
        known = (directory / file).stat().st_size
    except OSError as error:
        return str(ArchiveMissing(file, str(directory), error.strerror or str(error)))
    return "" if known == size else f"the archive {file} has {known} bytes, and was written with {size}"


def read_block(directory: Path | None, block: Block) -> list[Recorded]:
    """The events of a block. Raises `ArchiveMissing`, `ArchiveDamaged`."""
    if directory is None:
        raise ArchiveMissing(block.file, None)
    try:
        with (directory / block.file).open("rb") as file:
            file.seek(block.place)
            packed = file.read(block.size)
    except OSError as error:
        raise ArchiveMissing(block.file, str(directory), error.strerror or str(error)) from error
    try:
        return records_in(block, packed)
    except BadBlock as error:
        raise ArchiveDamaged(str(directory / block.file), block.first, block.last) from error


class _Kept:
    """Lists of events that were used last, as many as hold so many events together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._lists: OrderedDict[tuple[bytes, str], list[Recorded]] = OrderedDict()

    def get(self, key: tuple[bytes, str]) -> list[Recorded] | None:
        found = self._lists.get(key)
        if found is not None:
            self._lists.move_to_end(key)
        return found

    def put(self, key: tuple[bytes, str], events: list[Recorded]) -> None:
        if key not in self._lists:
            self._lists[key] = events
            self._count += len(events)
        while self._count > self._most and len(self._lists) > 1:
            self._count -= len(self._lists.popitem(last=False)[1])


def _blocks(rows: list[Row]) -> tuple[int, list[Block]]:
    return rows[0][0], [_block(row[1:]) for row in rows if row[1] is not None]


def _block(row: Row) -> Block:
    file, first, last, place, size, sha256 = row
    return Block(file=file, first=first, last=last, place=place, size=size, sha256=sha256)
