"""Archived partitions: every answer is what it was, nothing is lost on the way, and what is missing is named."""

import asyncio
import gzip
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from archived import answers, archive, archives, restore
from databases import Database
from logbook import an_append, everything, on
from sealing import SealedLog, sealed_log, server_of

from vmorch.audit.verification import verify
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import NewEvent, StreamAppend
from vmorch.log.archives import Archives
from vmorch.log.errors import ArchiveDamaged, ArchiveMissing, LogUnavailable
from vmorch.log.schema import partition_by
from vmorch.log.store import EventLog

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

HERE = Path(__file__).parent
WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"
SPOILT = "set_byte(leaves, 5, 255 - get_byte(leaves, 5))"
SIZE = 20
HEAD = 87


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "archives"


@pytest.fixture
async def log(database: Database, directory: Path) -> AsyncIterator[SealedLog]:
    """A sealed log of HEAD events in partitions of SIZE positions; some streams go through all of them."""
    partition_by(database.owner_url, SIZE)
    async with sealed_log(database, directory) as server:
        await server.grow(3, 1)
        for turn in range(20):
            host = on(f"host/{turn % 3}", turn // 3)
            await server.log.append(an_append(on("vm/long", turn), host, request=f"r{turn}"))
            await server.log.ensure_partitions()
            await server.append(2)
            if turn % 3 == 2:
                await server.sealer.seal()
        await server.log.append(an_append(StreamAppend(stream=Stream("vm/büro"), expected=0, events=(ODD, ODD))))
        await server.sealer.seal()
        assert await server.log.head() == HEAD
        yield server


ODD = NewEvent(kind="vm-noted", schema=3, data='{"b" : 1.0,  "b":"é\\u0000"}'.encode(), meta=b'{"z":0,"a":1e2}')


async def test_every_read_answers_as_before(log: SealedLog, database: Database, directory: Path) -> None:
    before = await answers(log.log)
    assert [(each.first, each.last) for each in await archive(log, directory, 60)] == [(1, 19), (20, 39), (40, 59)]
    assert await answers(log.log) == before, "by a process that had not heard of it"
    other = await EventLog.open(database.app_url, directory)
    assert await answers(other) == before
    assert await other.request(RequestId("r4")) == await log.log.request(RequestId("r4"))
    await other.close()
    with psycopg.connect(database.owner_url) as connection:
        assert connection.execute("SELECT min(position) FROM vmorch.events").fetchone() == (60,)


async def test_any_partition_may_come_back(log: SealedLog, directory: Path) -> None:
    before = await answers(log.log, 13)
    await archive(log, directory, 80)
    for number in (1, 3, 0, 2):
        await restore(log, directory, number)
        assert number not in [each.number for each in await archives(log)]
        assert await answers(log.log, 13) == before
    await archive(log, directory, 40)
    assert await answers(log.log, 13) == before


async def test_a_follower_goes_from_an_archive_into_the_log(log: SealedLog, directory: Path) -> None:
    await archive(log, directory, 60)
    seen: list[int] = []
    async for events in log.log.follow(Position(4)):
        seen += [each.position for each in events]
        if seen[-1] == HEAD:
            break
    assert seen == list(range(5, HEAD + 1))


async def test_reading_goes_on_while_partitions_go_and_come(log: SealedLog, directory: Path) -> None:
    whole = await everything(log.log)
    stream = await log.log.read_stream(Stream("vm/long"))
    done = asyncio.Event()

    async def read() -> int:
        times = 0
        while not done.is_set():
            assert await log.log.read(Position(0)) == whole
            assert await log.log.read_stream(Stream("vm/long")) == stream
            assert await log.log.position_at(whole[33].recorded_at) >= whole[33].position
            times += 1
        return times

    reading = asyncio.create_task(read())
    for _ in range(3):
        await archive(log, directory, 60)
        await restore(log, directory, 0, 2)
        await restore(log, directory, 1)
    done.set()
    assert await reading > 3


async def test_an_archive_is_an_export_that_proves_itself(log: SealedLog, directory: Path) -> None:
    await archive(log, directory, 40)
    for each, part in zip(await archives(log), (False, True), strict=True):
        packed = (directory / each.file).read_bytes()
        assert len(packed) == each.size
        verdict = verify(gzip.decompress(packed).splitlines(keepends=True), [await log.key()], part=part)
        assert verdict.sound, verdict.findings
        assert (verdict.after + 1, verdict.until) == (each.first, each.last)
        assert (directory / each.file).stat().st_mode & 0o777 == 0o600


async def test_a_partition_is_the_same_file_whenever_it_is_archived(log: SealedLog, directory: Path) -> None:
    await archive(log, directory, 39)
    first = await archives(log)
    await restore(log, directory, 0, 1)
    await log.grow(7, 5)
    await archive(log, directory, 39)
    assert [(each.file, each.sha256) for each in await archives(log)] == [(each.file, each.sha256) for each in first]


async def test_an_export_over_archives_and_the_log_is_the_one_from_before(log: SealedLog, directory: Path) -> None:
    before = await log.export()
    await archive(log, directory, 60)
    assert await log.export() == before
    verdict = await log.verdict()
    assert verdict.sound, verdict.findings
    assert verdict.events == HEAD


async def test_sealing_goes_on_when_what_was_sealed_last_is_archived(
    log: SealedLog, database: Database, directory: Path
) -> None:
    await log.append(SIZE)
    await log.sealer.seal()
    last = await log.seals.last()
    assert last is not None
    assert last.after < 99 < last.size
    await archive(log, directory, 99)
    async with server_of(database, log.directory, directory) as other:
        other.streams = log.streams
        await other.grow(5)
    assert (await log.verdict()).sound


async def test_a_partition_of_several_blocks_is_read_in_part(database: Database, directory: Path) -> None:
    partition_by(database.owner_url, 2500)
    async with sealed_log(database, directory) as log:
        await log.grow(2700)
        await archive(log, directory, 2499)
        whole = await everything(log.log)
        assert [each.position for each in whole] == list(range(1, 2702))
        [found] = await archives(log)
        # the last block is spoilt, and whoever does not need it does not notice
        path = directory / found.file
        packed = bytearray(path.read_bytes())
        packed[-700] ^= 1
        path.write_bytes(packed)
        other = await EventLog.open(database.app_url, directory)
        assert await other.read(Position(0), 2000) == whole[:2000]
        assert await other.read_stream(whole[1500].stream) == [one for one in whole if one.stream == whole[1500].stream]
        with pytest.raises(ArchiveDamaged):
            await other.read(Position(0), 2700)
        await other.close()


async def test_positions_need_more_than_32_bits(log: SealedLog, database: Database, directory: Path) -> None:
    await archive(log, directory, 19)
    found = Archives(database.app_url, directory)
    assert await found.between(Position(2**31 - 500), Position(2**31 - 400)) == (1, [])
    await found.close()


async def test_a_file_that_is_not_there_is_named(log: SealedLog, database: Database, directory: Path) -> None:
    moment = (await log.log.read(Position(24), 1))[0].recorded_at
    await archive(log, directory, 40)
    second = (await archives(log))[1].file
    (directory / second).rename(directory / "elsewhere")
    other = await EventLog.open(database.app_url, directory)
    for asked in (
        other.read(Position(24), 1),
        other.read(Position(0), 30),
        other.read(Position(24), 100, Position(26)),
        other.read_stream(Stream("vm/long")),
        other.position_at(moment),
    ):
        with pytest.raises(ArchiveMissing) as missing:
            await asked
        assert missing.value.code == "archive-missing"
        assert second in str(missing.value)
        assert str(directory) in str(missing.value)
    assert [each.position for each in await other.read(Position(0), 19)] == list(range(1, 20))
    assert len(await other.read(Position(39), 5)) == 5
    (directory / "elsewhere").rename(directory / second)
    assert len(await other.read(Position(0), 100)) == HEAD, "and answers again once it is back"
    await other.close()


async def test_a_log_that_was_told_of_no_directory_says_so(
    log: SealedLog, database: Database, directory: Path
) -> None:
    await archive(log, directory, 40)
    other = await EventLog.open(database.app_url)
    with pytest.raises(ArchiveMissing, match="no directory of archives is named"):
        await other.read(Position(0))
    await other.close()


async def test_a_damaged_file_is_never_believed(log: SealedLog, directory: Path, database: Database) -> None:
    await archive(log, directory, 19)
    [found] = await archives(log)
    path = directory / found.file
    intact = path.read_bytes()
    changed = gzip.decompress(intact).replace(b'"note":"of 1"', b'"note":"of 7"')
    for spoilt in (intact[: len(intact) // 2], intact[1:], b"", gzip.compress(changed)):
        path.write_bytes(spoilt)
        other = await EventLog.open(database.app_url, directory)
        with pytest.raises(ArchiveDamaged) as damaged:
            await other.read(Position(0))
        assert damaged.value.code == "archive-damaged"
        assert isinstance(damaged.value, LogUnavailable), "so that whoever follows the log waits for the file"
        await other.close()
        with pytest.raises(ArchiveDamaged):
            await restore(log, directory, 0)
    path.write_bytes(intact)
    await restore(log, directory, 0)


async def test_the_newest_events_are_not_archived(log: SealedLog, directory: Path) -> None:
    with pytest.raises(Rejected) as refused:
        await archive(log, directory, 99)
    assert refused.value.code == "partition-in-use"
    await log.grow(12)
    assert await log.log.head() == 99
    with pytest.raises(Rejected, match="from 80 to 99 are the newest"):
        await archive(log, directory, 99)
    assert await archives(log) == []


async def test_what_is_not_sealed_is_not_archived(log: SealedLog, directory: Path) -> None:
    await log.append(SIZE)
    with pytest.raises(Rejected) as refused:
        await archive(log, directory, 99)
    assert refused.value.code == "not-sealed"
    assert await archives(log) == []


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE vmorch.events SET data = '{}' WHERE position = 30",
        "DELETE FROM vmorch.events WHERE position = 30",
        f"UPDATE vmorch.seals SET leaves = {SPOILT} WHERE after < 30 AND size >= 30",
    ],
)
async def test_what_is_not_what_was_sealed_stays_where_it_is(log: SealedLog, directory: Path, attack: str) -> None:
    log.attack(attack)
    with pytest.raises(Rejected) as refused:
        await archive(log, directory, 39)
    assert refused.value.code == "log-tampered"
    assert [each.number for each in await archives(log)] == [0]
    assert names(directory) == {each.file for each in await archives(log)}


async def test_an_archive_whose_events_are_not_what_was_sealed_does_not_come_back(
    log: SealedLog, directory: Path
) -> None:
    await archive(log, directory, 19)
    log.attack(f"UPDATE vmorch.seals SET leaves = {SPOILT} WHERE after < 5 AND size >= 5")
    with pytest.raises(Rejected) as refused:
        await restore(log, directory, 0)
    assert refused.value.code == "log-tampered"
    assert [each.number for each in await archives(log)] == [0]


async def test_the_database_checks_for_itself_what_goes_and_what_comes(log: SealedLog, directory: Path) -> None:
    """The functions are the last guard against a program that is wrong."""
    hash = "decode(repeat('00', 32), 'hex')"
    blocks = f"ARRAY[0]::bigint[], ARRAY[1], ARRAY[{hash}]"
    with psycopg.connect(log.database.owner_url, autocommit=True) as owner:
        for number, lasts, state in ((4, "99", "VM002"), (0, "18", "22000"), (0, "", "22000")):
            with pytest.raises(psycopg.Error) as refused:
                owner.execute(
                    f"SELECT vmorch.archive({number}, 'f', 1, {hash}, ARRAY[{lasts}]::bigint[], {blocks})"
                )
            assert refused.value.sqlstate == state
        owner.execute("DELETE FROM vmorch.seals WHERE size > 30")
        with pytest.raises(psycopg.Error) as refused:
            owner.execute(f"SELECT vmorch.archive(1, 'f', 1, {hash}, ARRAY[39]::bigint[], {blocks})")
        assert refused.value.sqlstate == "VM003"
        await archive(log, directory, 19)
        with owner.transaction(force_rollback=True):
            owner.execute("SELECT vmorch.begin_restore(0)")
            with pytest.raises(psycopg.Error) as refused:
                owner.execute("SELECT vmorch.restore(0)")
        assert refused.value.sqlstate == "VM004"


@pytest.mark.parametrize(
    ("stage", "at"),
    [("writing", 0), ("writing", 19), ("proving", 19), ("recording", 19), ("archived", 19), ("recording", 39)],
)
async def test_whoever_is_killed_loses_nothing_and_a_repeat_finishes(
    log: SealedLog, directory: Path, stage: str, at: int
) -> None:
    before = await answers(log.log, 29)
    assert await archiver(log, directory, stage, at) == 9
    assert await answers(log.log, 29) == before
    assert await archiver(log, directory, "none", 0) == 0
    assert await answers(log.log, 29) == before
    assert names(directory) == {each.file for each in await archives(log)}
    assert len(names(directory)) == 2


@pytest.mark.parametrize(("stage", "at"), [("restoring", 19), ("restored", 19), ("restoring", 39)])
async def test_whoever_is_killed_while_bringing_back_loses_nothing(
    log: SealedLog, directory: Path, stage: str, at: int
) -> None:
    before = await answers(log.log, 29)
    await archive(log, directory, 39)
    assert await archiver(log, directory, stage, at) == 9
    assert await answers(log.log, 29) == before
    await restore(log, directory, 0, 1)
    assert await archives(log) == []
    assert await answers(log.log, 29) == before


async def test_an_archiver_that_is_killed_in_the_middle_of_the_exchange_changes_nothing(
    log: SealedLog, directory: Path, database: Database
) -> None:
    before = await answers(log.log, 29)
    with psycopg.connect(database.app_url) as reader:
        # whoever reads holds the partition in its place
        reader.execute("SELECT count(*) FROM vmorch.events")
        process = await started(log, directory, "none", 0)
        with psycopg.connect(database.owner_url, autocommit=True) as owner:
            async with asyncio.timeout(30):
                while not owner.execute(WAITING).fetchone():  # noqa: ASYNC110  it waits in another process
                    await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
    assert await answers(log.log, 29) == before
    assert await archiver(log, directory, "none", 0) == 0
    assert await answers(log.log, 29) == before


async def test_a_reader_who_does_not_end_is_not_waited_for_long(
    log: SealedLog, directory: Path, database: Database
) -> None:
    with psycopg.connect(database.app_url) as reader:
        reader.execute("SELECT count(*) FROM vmorch.events")
        with pytest.raises(Rejected) as refused:
            await archive(log, directory, 19)
        assert refused.value.code == "partition-in-use"
        await log.append(1)
    assert await archives(log) == []
    await archive(log, directory, 19)


async def test_appends_go_on_while_a_long_reader_is_waited_for(
    log: SealedLog, directory: Path, database: Database
) -> None:
    with psycopg.connect(database.app_url) as reader:
        reader.execute("SELECT count(*) FROM vmorch.events")
        archiving = asyncio.create_task(archive(log, directory, 19))
        async with asyncio.timeout(30):
            for _ in range(3):
                await log.append(1)
                await asyncio.sleep(0.7)
        assert not archiving.done()
    assert [each.number for each in await archiving] == [0]


def names(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}


async def started(log: SealedLog, directory: Path, stage: str, at: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "log_archiver.py"), log.database.app_url, log.database.owner_url, str(directory),
        log.keys.origin, "39", stage, str(at), stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


async def archiver(log: SealedLog, directory: Path, stage: str, at: int) -> int:
    return await (await started(log, directory, stage, at)).wait()
