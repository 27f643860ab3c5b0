"""The archives of a log, for whoever has the database owner's URL: old partitions to files, and back.

A server may run meanwhile, and goes on answering for what is archived. Must be run where the directory of archives is,
as a user whose files the servers can read.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from vmorch.config import Config
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position
from vmorch.core.moments import moment
from vmorch.engine.archiving import Archiving, Progress
from vmorch.engine.logkeys import log_origin
from vmorch.log.partitions import Archive, Partition, Partitions
from vmorch.log.seals import Seals
from vmorch.log.store import EventLog

_AGO = re.compile(r"[0-9][0-9.a-z]*")
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


async def archive(config: Config, before: str, progress: Progress, *, dry_run: bool) -> list[Partition]:
    """Archive every partition whose events were all recorded before a moment; which ones.

    Raises Rejected `bad-moment`, `future-moment`, `partition-in-use`, `not-sealed`, `log-tampered`; OSError, LogError.
    """
    async with _archiving(config, progress) as (log, archiving, _):
        found = moment(f"-{before}" if _AGO.fullmatch(before) else before, datetime.now(UTC))
        if isinstance(found, datetime):
            until = await log.position_at(found)
        else:
            until = await log.head() if found is None else Position(found - 1)
        partitions = await archiving.candidates(until)
        for each in partitions if not dry_run else []:
            await archiving.archive(each)
        return partitions


async def archives(config: Config) -> list[tuple[Archive, bool]]:
    """Every archive, and whether its file is there with the size that it had. Raises LogError."""
    async with Partitions.open(_owner_url(config)) as partitions:
        return [(each, _is_there(config.archives_dir / each.file, each.size)) for each in await partitions.archives()]


async def restore(config: Config, which: str, progress: Progress) -> list[Archive]:
    """Put the archive in a file, or all that hold any of the positions FIRST-LAST, back into the log.

    Raises Rejected `no-such-archive`, `log-tampered`; ArchiveMissing, ArchiveDamaged, LogError.
    """
    async with _archiving(config, progress) as (_, archiving, partitions):
        known, bounds = await partitions.archives(), _RANGE.fullmatch(which)
        if bounds is not None:
            first, last = int(bounds[1]), int(bounds[2])
            found = [each for each in known if each.first <= last and each.last >= first]
        else:
            found = [each for each in known if each.file == Path(which).name]
        if not found:
            raise Rejected("no-such-archive", f"no archive is {which}", hint="vmorch server archive list")
        # a bare name is that of a file among the others
        named = bounds is None and Path(which).name != which
        for each in found:
            await archiving.restore(each, Path(which).parent if named else config.archives_dir)
        return found


@asynccontextmanager
async def _archiving(config: Config, progress: Progress) -> AsyncIterator[tuple[EventLog, Archiving, Partitions]]:
    async with Partitions.open(_owner_url(config)) as partitions:
        log = await EventLog.open(config.database.url, config.archives_dir)
        seals = Seals(config.database.url)
        try:
            origin = log_origin(config.server.cluster, log.incarnation)
            yield log, Archiving(log, seals, partitions, origin, config.archives_dir, progress), partitions
        finally:
            await seals.close()
            await log.close()


def _owner_url(config: Config) -> str:
    if config.database.owner_url is None:
        raise Rejected(
            "forbidden", "only the database's owner may do that", hint="name [database] owner_url in the settings"
        )
    return config.database.owner_url


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
