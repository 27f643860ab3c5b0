"""A log of small partitions, what it answers, and the archives that they go to."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
from databases import Database
from sealing import SealedLog

from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded
from vmorch.engine.archiving import Archiving, Progress
from vmorch.log.interface import Log
from vmorch.log.partitions import Archive, Partition, Partitions
from vmorch.log.seals import Seals

INSTANT = timedelta(microseconds=1)


def silent(_stage: str, _position: int) -> None:
    """Progress that nobody looks at."""


@asynccontextmanager
async def archiving_of(
    database: Database, log: Log, origin: str, directory: Path, progress: Progress = silent
) -> AsyncIterator[tuple[Archiving, Partitions]]:
    """What the database's owner archives a log with."""
    seals = Seals(database.app_url)
    async with Partitions.open(database.owner_url) as partitions:
        yield Archiving(log, seals, partitions, origin, directory, progress), partitions
    await seals.close()


async def archive(log: SealedLog, directory: Path, until: int) -> list[Partition]:
    """Archive every partition that ends at a position or before."""
    async with archiving_of(log.database, log.log, log.keys.origin, directory) as (archiving, _):
        found = await archiving.candidates(Position(until))
        for each in found:
            await archiving.archive(each)
        return found


async def restore(log: SealedLog, directory: Path, *numbers: int) -> None:
    """Bring the archives of partitions back."""
    async with archiving_of(log.database, log.log, log.keys.origin, directory) as (archiving, partitions):
        for each in await partitions.archives():
            if each.number in numbers:
                await archiving.restore(each, directory)


async def archives(log: SealedLog) -> list[Archive]:
    async with Partitions.open(log.database.owner_url) as partitions:
        return await partitions.archives()


async def answers(log: Log, step: int = 7) -> list[object]:
    """What a log answers to every kind of question, about every part of it."""
    head = await log.head()
    found: list[object] = []
    for after in range(0, head + 3, step):
        for limit in (1, 2, step, 45, 1000):
            found.append(plain(await log.read(Position(after), limit)))
            for until in (after, after + 1, after + 30, head, head + 9):
                found.append(plain(await log.read(Position(after), limit, Position(until))))
    events = await log.read(Position(0), head)
    assert [each.position for each in events] == list(range(1, head + 1))
    for stream in [*dict.fromkeys(each.stream for each in events), Stream("vm/never")]:
        found.append(plain(await log.read_stream(stream)))
        for after_version in (1, 2, 5, 50):
            found.append(plain(await log.read_stream(stream, after_version)))
        for until in range(0, head + 3, step):
            found.append(plain(await log.read_stream(stream, until=Position(until))))
            found.append(plain(await log.read_stream(stream, 3, Position(until))))
    for each in events:
        for moment in (each.recorded_at - INSTANT, each.recorded_at, each.recorded_at + INSTANT):
            found.append(await log.position_at(moment))
    return found


def plain(events: Sequence[Recorded]) -> list[bytes]:
    """Events as bytes, so that nothing can differ unseen."""
    return [msgspec.json.encode(each) for each in events]
