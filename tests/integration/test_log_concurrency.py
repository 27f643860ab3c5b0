"""Many writers at once: nothing skipped, doubled, lost or misnumbered, and nobody harmed by another's fate."""

import asyncio
import os
import sys
from pathlib import Path

import psycopg
import pytest
from databases import Database
from logbook import an_append, assert_well_formed, everything, more_than, on, until

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import NewEvent, Recorded, StreamAppend
from vmorch.log import hints
from vmorch.log.batch import columns, encode
from vmorch.log.errors import InvalidAppend, LogUnavailable, VersionConflict
from vmorch.log.store import EventLog

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

WRITER = Path(__file__).with_name("log_writer.py")
ROOT = Path(__file__).parents[2]


async def a_writer(url: str, name: str, appends: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(WRITER), url, name, str(appends)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def append_uncommitted(connection: psycopg.AsyncConnection, part: StreamAppend) -> None:
    """Call the log's function in a transaction that stays open."""
    params = [column.decode() for column in columns([encode(an_append(part))])]
    holes = ", ".join(["%s"] * len(params))
    await connection.execute(f"SELECT vmorch.append({holes})", params)


async def test_eight_writer_processes_and_two_followers_agree(database: Database, event_log: EventLog) -> None:
    late: list[int] = []
    early: list[int] = []

    async def follow(log: EventLog, seen: list[int]) -> None:
        async for events in log.follow(Position(0)):
            seen.extend(one.position for one in events)

    other = await EventLog.open(database.app_url)
    followers = [asyncio.create_task(follow(event_log, early)), asyncio.create_task(follow(other, late))]
    writers = [await a_writer(database.app_url, f"w{number}", appends=25) for number in range(8)]
    # a ninth writer calls the function and dawdles before its commit, again and again
    stalled = 0
    while any(writer.returncode is None for writer in writers[:1]):
        async with await psycopg.AsyncConnection.connect(database.app_url) as dawdler:
            await append_uncommitted(dawdler, on(f"stalled/{stalled}", 0))
            await asyncio.sleep(0.05)
            if stalled % 2:
                await dawdler.rollback()
        stalled += 1
        if stalled == 6:
            break
    promised = set()
    for writer in writers:
        output, _ = await writer.communicate()
        assert writer.returncode == 0
        for line in output.decode().splitlines():
            stream, version, position = line.split()
            promised.add((stream, int(version), int(position)))
    head = await event_log.head()
    await until(lambda: early[-1:] == [head] and late[-1:] == [head])
    for follower in followers:
        follower.cancel()
    await asyncio.gather(*followers, return_exceptions=True)
    await other.close()
    assert early == late == list(range(1, head + 1))
    events = await everything(event_log)
    assert_well_formed(events)
    kept = {(one.stream, one.version, one.position) for one in events if not one.stream.startswith("stalled/")}
    assert kept == promised


async def test_a_writer_stalled_before_its_commit_hides_no_event_behind_it(
    database: Database, event_log: EventLog
) -> None:
    async with await psycopg.AsyncConnection.connect(database.app_url) as stalled:
        await append_uncommitted(stalled, on("vm/1", 0))
        waiting = asyncio.create_task(event_log.append(an_append(on("vm/2", 0))))
        assert (await asyncio.wait([waiting], timeout=0.3))[1] == {waiting}
        assert await event_log.read(Position(0)) == []
        await stalled.commit()
        assert (await waiting).first == 2
    assert [one.stream for one in await event_log.read(Position(0))] == ["vm/1", "vm/2"]


async def test_a_rolled_back_append_leaves_no_gap(database: Database, event_log: EventLog) -> None:
    async with await psycopg.AsyncConnection.connect(database.app_url) as undecided:
        await append_uncommitted(undecided, on("vm/1", 0, events=3))
        await undecided.rollback()
    assert (await event_log.append(an_append(on("vm/1", 0)))).first == 1


async def test_a_cancelled_caller_does_not_harm_the_others(event_log: EventLog) -> None:
    callers = [asyncio.create_task(event_log.append(an_append(on(f"vm/{number}", 0)))) for number in range(30)]
    await asyncio.sleep(0)
    for caller in callers[::3]:
        caller.cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    stored = {one.stream: one.position for one in await everything(event_log)}
    for number, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            assert number % 3 == 0
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert stored[Stream(f"vm/{number}")] == answer.first
    assert_well_formed(await everything(event_log))


async def test_one_append_that_is_no_json_does_not_harm_the_others(event_log: EventLog) -> None:
    broken = NewEvent(kind="vm-noted", schema=1, data=b"{not json", meta=b"{}")
    appends = [
        an_append(on("vm/1", 0)),
        an_append(StreamAppend(stream=Stream("vm/2"), expected=0, events=(broken,))),
        an_append(on("vm/3", 0)),
    ]
    answers = await asyncio.gather(*map(event_log.append, appends), return_exceptions=True)
    assert [isinstance(one, InvalidAppend) for one in answers] == [False, True, False]
    assert [one.stream for one in await everything(event_log)] == ["vm/1", "vm/3"]


async def test_of_many_callers_at_one_version_exactly_one_wins(event_log: EventLog) -> None:
    answers = await asyncio.gather(
        *(event_log.append(an_append(on("vm/1", 0), on(f"host/{number}", 0))) for number in range(50)),
        return_exceptions=True,
    )
    assert sum(isinstance(one, VersionConflict) for one in answers) == 49
    assert await event_log.head() == 2


async def test_the_same_request_from_two_servers_is_written_once(database: Database, event_log: EventLog) -> None:
    other = await EventLog.open(database.app_url)
    append = an_append(on("vm/1", 0, events=2), request="r")
    answers = await asyncio.gather(*(log.append(append) for log in (event_log, other) * 10))
    assert {(one.first, one.last) for one in answers} == {(1, 2)}
    assert sum(not one.repeated for one in answers) == 1
    assert await event_log.request(RequestId("r")) == (1, 2)
    await other.close()


async def test_a_follower_hears_of_another_servers_commit_before_its_next_poll(
    database: Database, event_log: EventLog
) -> None:
    other = await EventLog.open(database.app_url)
    heard: list[float] = []
    clock = asyncio.get_running_loop().time

    async def follow() -> None:
        async for _ in event_log.follow(Position(0)):
            heard.append(clock())

    follower = asyncio.create_task(follow())
    delays = []
    for version in range(5):
        await other.append(an_append(on("vm/1", version)))
        committed = clock()
        await until(more_than(heard, version))
        delays.append(heard[version] - committed)
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    await other.close()
    # the first may come by the poll, because listening begins with following
    assert sorted(delays)[2] < 0.5


async def test_what_another_server_told_while_a_follower_was_busy_is_not_waited_for(
    database: Database, event_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, heard = await EventLog.open(database.app_url), event_log._hints
    following = event_log.follow(Position(0))
    coming = asyncio.ensure_future(anext(following))
    version = 0
    while not heard.told:
        await other.append(an_append(on("vm/theirs", version)))
        version += 1
        await asyncio.sleep(0.05)
    at = (await coming)[-1].position
    while at < version:
        at = (await anext(following))[-1].position
    monkeypatch.setattr(hints, "_POLL", 60.0)
    before = heard.told
    mine = await event_log.append(an_append(on("vm/mine", 0)))
    theirs = await other.append(an_append(on("vm/theirs", version)))
    await until(lambda: heard.told > before)
    async with asyncio.timeout(10):
        assert [one.position for one in await anext(following)] == [mine.first]
        assert [one.position for one in await anext(following)] == [theirs.first]
    await other.close()


@pytest.mark.parametrize("urgent", [False, True])
async def test_a_follower_gets_everything_in_order_after_a_burst_that_it_rested_in(
    event_log: EventLog, urgent: bool
) -> None:
    bursts, seen = 20, list[int]()

    async def follow() -> None:
        async for events in event_log.follow(Position(0), lambda: urgent):
            seen.extend(one.position for one in events)

    follower = asyncio.create_task(follow())
    for number in range(bursts):
        await event_log.append(an_append(on(f"vm/{number}", 0, events=1500)))
    await until(more_than(seen, bursts * 1500 - 1))
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    assert seen == list(range(1, bursts * 1500 + 1))


async def test_a_closed_log_refuses_and_has_written_what_it_was_given(database: Database) -> None:
    log = await EventLog.open(database.app_url)
    callers = [asyncio.create_task(log.append(an_append(on(f"vm/{number}", 0)))) for number in range(5)]
    await asyncio.sleep(0)
    await log.close()
    assert [(await caller).first for caller in callers] == [1, 2, 3, 4, 5]
    with pytest.raises(LogUnavailable):
        await log.append(an_append(on("vm/9", 0)))


async def test_what_followers_get_from_memory_is_what_the_log_holds(database: Database, event_log: EventLog) -> None:
    other = await EventLog.open(database.app_url)
    seen: dict[str, list[Recorded]] = {"here": [], "there": []}

    async def follow(log: EventLog, name: str) -> None:
        async for events in log.follow(Position(0)):
            seen[name] += events

    followers = [asyncio.create_task(follow(event_log, "here")), asyncio.create_task(follow(other, "there"))]
    for number in range(40):
        writer = other if number % 7 == 3 else event_log
        await writer.append(an_append(on(f"vm/{number}", 0, events=3, note="é"), on("host/1", number)))
    await until(lambda: all(len(each) == 160 for each in seen.values()))
    for follower in followers:
        follower.cancel()
    await asyncio.gather(*followers, return_exceptions=True)
    await other.close()
    held = await everything(event_log)
    assert seen["here"] == seen["there"] == held
    assert [each.recorded_at.isoformat() for each in seen["here"]] == [each.recorded_at.isoformat() for each in held]
