"""What every event log promises: in memory, and in the oldest and the newest Postgres we support."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from databases import Database, fresh_database, make_template
from logbook import a_clock, an_append, assert_well_formed, event, everything, name, on

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import Append, NewEvent, Recorded, StreamAppend
from vmorch.embedded import EmbeddedPostgres
from vmorch.log.errors import InvalidAppend, NameTaken, VersionConflict
from vmorch.log.interface import Log
from vmorch.log.memory import MemoryLog
from vmorch.log.store import EventLog

OLDEST = Path("/usr/lib/postgresql/15/bin")

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture(scope="session")
def oldest_postgres(service_directory: Path) -> Iterator[EmbeddedPostgres]:
    if not OLDEST.is_dir():
        pytest.skip("Postgres 15 is not installed")
    with EmbeddedPostgres(service_directory / "oldest", binaries=OLDEST) as server:
        make_template(server)
        yield server


@pytest.fixture
def oldest_database(oldest_postgres: EmbeddedPostgres) -> Iterator[Database]:
    yield from fresh_database(oldest_postgres)


@pytest.fixture(params=["memory", "newest", "oldest"])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[Log]:
    if request.param == "memory":
        yield MemoryLog("memory", a_clock())
        return
    database: Database = request.getfixturevalue("database" if request.param == "newest" else "oldest_database")
    opened = await EventLog.open(database.app_url)
    yield opened
    await opened.close()


async def test_an_event_comes_back_byte_for_byte(log: Log) -> None:
    sent = NewEvent(kind="vm-noted", schema=3, data='{"b" : 1.0, "b":"é\\u0000"}'.encode(), meta=b'{"z":0,"a":1e2}')
    answer = await log.append(
        an_append(StreamAppend(stream=Stream("vm/1"), expected=0, events=(sent,))),
    )
    assert await log.read(Position(0)) == [
        Recorded(
            position=Position(1),
            stream=Stream("vm/1"),
            version=1,
            kind=sent.kind,
            schema=3,
            data=sent.data,
            meta=sent.meta,
            recorded_at=answer.recorded_at,
        )
    ]


async def test_positions_count_from_one_over_all_streams(log: Log) -> None:
    assert await log.head() == 0
    first = await log.append(an_append(on("vm/1", 0, events=2)))
    second = await log.append(an_append(on("host/1", 0), on("vm/1", 2, events=3)))
    assert (first.first, first.last, second.first, second.last) == (1, 2, 3, 6)
    assert await log.head() == 6
    assert_well_formed(await everything(log))


async def test_an_append_at_another_version_writes_nothing(log: Log) -> None:
    await log.append(an_append(on("vm/1", 0, events=2)))
    for expected in (0, 1, 3):
        with pytest.raises(VersionConflict) as conflict:
            await log.append(an_append(on("vm/1", expected)))
        assert (conflict.value.stream, conflict.value.expected, conflict.value.actual) == ("vm/1", expected, 2)
    assert await log.head() == 2


async def test_one_outdated_stream_refuses_the_whole_append(log: Log) -> None:
    await log.append(an_append(on("host/1", 0)))
    with pytest.raises(VersionConflict) as conflict:
        await log.append(an_append(on("vm/1", 0), on("host/1", 0), claims=(name("web", "vm/1"),), request="r"))
    assert conflict.value.stream == "host/1"
    assert await log.read_stream(Stream("vm/1")) == []
    assert await log.request(RequestId("r")) is None
    await log.append(an_append(on("vm/2", 0), claims=(name("web", "vm/2"),)))


async def test_a_stream_without_events_guards_its_version(log: Log) -> None:
    await log.append(an_append(on("vm/1", 0), on("host/1", 0, events=0)))
    await log.append(an_append(on("host/1", 0)))
    with pytest.raises(VersionConflict):
        await log.append(an_append(on("vm/1", 1), on("host/1", 0, events=0)))


async def test_a_repeated_request_writes_nothing_and_answers_the_first(log: Log) -> None:
    first = await log.append(an_append(on("vm/1", 0, events=2), request="r"))
    await log.append(an_append(on("vm/1", 2)))
    again = await log.append(an_append(on("vm/1", 0, events=2), request="r"))
    assert again.repeated
    assert not first.repeated
    assert (again.first, again.last, again.recorded_at) == (first.first, first.last, first.recorded_at)
    assert await log.request(RequestId("r")) == (1, 2)
    assert await log.request(RequestId("unknown")) is None
    assert await log.head() == 3


async def test_a_refused_request_may_be_tried_again(log: Log) -> None:
    with pytest.raises(VersionConflict):
        await log.append(an_append(on("vm/1", 1), request="r"))
    assert not (await log.append(an_append(on("vm/1", 0), request="r"))).repeated


async def test_a_name_has_one_holder(log: Log) -> None:
    await log.append(an_append(on("vm/1", 0), claims=(name("web", "vm/1"),)))
    with pytest.raises(NameTaken) as taken:
        await log.append(an_append(on("vm/2", 0), claims=(name("db", "vm/2"), name("web", "vm/2"))))
    assert (taken.value.scope, taken.value.name, taken.value.holder) == ("vm", "web", "vm/1")
    await log.append(an_append(on("vm/3", 0), claims=(name("db", "vm/3"),)))
    await log.append(an_append(on("vm/1", 1), claims=(name("web", "vm/1"),)))


async def test_a_released_name_is_free_and_releases_come_first(log: Log) -> None:
    await log.append(an_append(on("vm/1", 0), claims=(name("web", "vm/1"),)))
    await log.append(an_append(on("vm/2", 0), releases=(name("web", "vm/1"),), claims=(name("web", "vm/2"),)))
    await log.append(an_append(on("vm/2", 1), releases=(name("web", "vm/1"),)))
    with pytest.raises(NameTaken) as taken:
        await log.append(an_append(on("vm/1", 1), claims=(name("web", "vm/1"),)))
    assert taken.value.holder == "vm/2"


async def test_one_append_cannot_claim_a_name_for_two_streams(log: Log) -> None:
    with pytest.raises(NameTaken):
        await log.append(an_append(on("vm/1", 0), on("vm/2", 0), claims=(name("web", "vm/1"), name("web", "vm/2"))))
    await log.append(an_append(on("vm/3", 0), claims=(name("web", "vm/3"),)))


async def test_appends_of_one_moment_are_judged_one_after_the_other(log: Log) -> None:
    answers = await asyncio.gather(
        log.append(an_append(on("vm/1", 0, events=2), request="a")),
        log.append(an_append(on("vm/1", 0))),
        log.append(an_append(on("vm/1", 2), claims=(name("web", "vm/1"),))),
        log.append(an_append(on("vm/2", 0), claims=(name("web", "vm/2"),))),
        log.append(an_append(on("vm/1", 0, events=2), request="a")),
        log.append(an_append(on("vm/1", 3), releases=(name("web", "vm/1"),))),
        log.append(an_append(on("vm/2", 0), claims=(name("web", "vm/2"),))),
        return_exceptions=True,
    )
    assert [
        type(one).__name__ if isinstance(one, BaseException) else (one.first, one.last, one.repeated) for one in answers
    ] == [(1, 2, False), "VersionConflict", (3, 3, False), "NameTaken", (1, 2, True), (4, 4, False), (5, 5, False)]
    assert_well_formed(await everything(log))


@pytest.mark.parametrize(
    "append",
    [
        an_append(),
        an_append(on("vm/1", 0, events=0)),
        an_append(on("vm/1", 0), on("vm/1", 1)),
        an_append(on("vm/1", -1)),
        an_append(on("vm\n1", 0)),
        an_append(on("", 0)),
        an_append(on("vm/\udc00", 0)),
        an_append(on("vm/1", 0), request="a\nb"),
        an_append(on("vm/1", 0), claims=(name("", "vm/1"),)),
        an_append(StreamAppend(stream=Stream("vm/1"), expected=0, events=(event(kind="a\nb"),))),
        an_append(StreamAppend(stream=Stream("vm/1"), expected=0, events=(event("a\nb"),))),
    ],
)
async def test_a_malformed_append_is_refused(log: Log, append: Append) -> None:
    with pytest.raises(InvalidAppend):
        await log.append(append)
    assert await log.head() == 0


async def test_a_read_ends_at_its_limit_and_at_its_position(log: Log) -> None:
    await log.append(an_append(on("vm/1", 0, events=10)))

    async def positions(after: int, limit: int = 1000, until: Position | None = None) -> list[int]:
        return [one.position for one in await log.read(Position(after), limit, until)]

    assert await positions(0) == list(range(1, 11))
    assert await positions(4, limit=3) == [5, 6, 7]
    assert await positions(4, until=Position(6)) == [5, 6]
    assert await positions(10) == []


async def test_a_stream_is_read_as_it_was(log: Log) -> None:
    await log.append(an_append(on("vm/1", 0, events=2)))
    await log.append(an_append(on("vm/2", 0, events=2)))
    await log.append(an_append(on("vm/1", 2, events=2)))

    async def places(after_version: int = 0, until: Position | None = None) -> list[tuple[int, int]]:
        events = await log.read_stream(Stream("vm/1"), after_version, until)
        return [(one.version, one.position) for one in events]

    assert await places() == [(1, 1), (2, 2), (3, 5), (4, 6)]
    assert await places(after_version=3) == [(4, 6)]
    assert await places(until=Position(5)) == [(1, 1), (2, 2), (3, 5)]
    assert await log.read_stream(Stream("vm/9")) == []


async def test_a_moment_maps_to_the_last_position_recorded_by_then(log: Log) -> None:
    answers = [await log.append(an_append(on(f"vm/{number}", 0, events=3))) for number in range(5)]
    instant = timedelta(microseconds=1)
    assert await log.position_at(answers[0].recorded_at - instant) == 0
    for answer, following in pairwise(answers):
        if answer.recorded_at < following.recorded_at:
            assert await log.position_at(answer.recorded_at) == answer.last
            assert await log.position_at(following.recorded_at - instant) == answer.last
    assert await log.position_at(answers[-1].recorded_at + timedelta(days=1)) == 15


async def test_a_follower_gets_what_was_and_what_comes(log: Log) -> None:
    await log.append(an_append(on("vm/1", 0, events=3)))
    seen: list[int] = []

    async def follow() -> None:
        async for events in log.follow(Position(1)):
            assert events
            seen.extend(one.position for one in events)
            if seen[-1] == 8:
                return

    following = asyncio.create_task(follow())
    for version in range(3, 8):
        await log.append(an_append(on("vm/1", version)))
        await asyncio.sleep(0)
    await asyncio.wait_for(following, 20)
    assert seen == [2, 3, 4, 5, 6, 7, 8]
