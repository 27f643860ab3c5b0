"""Postgres dies under load and comes back: what was acknowledged is there, once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from databases import Database, fresh_database, make_template
from logbook import an_append, assert_well_formed, everything, more_than, on, until

from vmorch.core.ids import Position, Stream
from vmorch.embedded import EmbeddedPostgres
from vmorch.log.errors import LogUnavailable
from vmorch.log.interface import Appended
from vmorch.log.store import EventLog

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
def mortal(service_directory: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(service_directory / f"mortal-{uuid4().hex[:8]}") as server:
        make_template(server)
        yield server


@pytest.fixture
def mortal_database(mortal: EmbeddedPostgres) -> Iterator[Database]:
    yield from fresh_database(mortal)


async def test_no_acknowledged_event_is_lost_or_doubled_when_postgres_is_killed(
    mortal: EmbeddedPostgres, mortal_database: Database
) -> None:
    log = await EventLog.open(mortal_database.app_url)
    acknowledged: dict[str, Appended] = {}
    unknown = 0
    followed: list[int] = []
    enough = asyncio.Event()

    async def caller(number: int) -> None:
        nonlocal unknown
        version = 0
        while not enough.is_set():
            request = f"{number}-{version}"
            try:
                answer = await log.append(an_append(on(f"vm/{number}", version), request=request))
            except LogUnavailable:
                unknown += 1
                await asyncio.sleep(0.02)
            else:
                acknowledged[request] = answer
                version += 1

    async def follow() -> None:
        async for events in log.follow(Position(0)):
            followed.extend(one.position for one in events)

    tasks = [asyncio.create_task(caller(number)) for number in range(16)]
    follower = asyncio.create_task(follow())
    for _ in range(3):
        await until(more_than(acknowledged, len(acknowledged) + 500))
        mortal.kill()
        await asyncio.sleep(0.1)
        mortal.start()
    await until(more_than(acknowledged, len(acknowledged) + 500))
    enough.set()
    await asyncio.gather(*tasks)
    assert unknown > 0
    events = await everything(log)
    await until(lambda: len(followed) >= len(events))
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    await log.close()
    assert followed == [one.position for one in events]
    assert_well_formed(events)
    assert {f"{one.stream.removeprefix('vm/')}-{one.version - 1}": one.position for one in events} == {
        request: answer.first for request, answer in acknowledged.items()
    }


async def test_an_idle_log_notices_a_restart_before_it_appends(
    mortal: EmbeddedPostgres, mortal_database: Database
) -> None:
    log = await EventLog.open(mortal_database.app_url)
    await log.append(an_append(on("vm/1", 0)))
    mortal.stop()
    with pytest.raises(LogUnavailable):
        await log.append(an_append(on("vm/1", 1)))
    with pytest.raises(LogUnavailable):
        await log.head()
    mortal.start()
    await log.append(an_append(on("vm/1", 1)))
    mortal.stop()
    mortal.start()
    await log.append(an_append(on("vm/1", 2)))
    assert len(await log.read_stream(Stream("vm/1"))) == 3
    await log.close()


async def test_a_log_that_is_away_cannot_be_opened(mortal: EmbeddedPostgres) -> None:
    url = mortal.url()
    mortal.stop()
    with pytest.raises(LogUnavailable) as unavailable:
        await EventLog.open(url)
    assert unavailable.value.code == "log-unavailable"
    mortal.start()
