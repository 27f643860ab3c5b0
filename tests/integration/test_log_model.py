"""The SQL function against the plain model, with appends that hypothesis thinks up.

A batch must be judged exactly as if its appends had come one by one.
"""

import asyncio
from datetime import UTC, datetime

import psycopg
import pytest
from databases import Database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logbook import a_clock, an_append, assert_well_formed, everything

from vmorch.core.ids import Stream
from vmorch.core.records import Append, NameClaim, NewEvent, Recorded, StreamAppend
from vmorch.log.errors import LogError
from vmorch.log.interface import Appended, Log
from vmorch.log.memory import MemoryLog
from vmorch.log.store import EventLog

pytestmark = pytest.mark.postgres

STREAMS = [Stream("vm/1"), Stream("vm/2"), Stream("host/1")]
events = st.lists(
    st.builds(
        NewEvent, kind=st.sampled_from(["a", "b"]), schema=st.integers(1, 3), data=st.just(b"{}"), meta=st.just(b"0")
    ),
    max_size=3,
).map(tuple)
parts = st.builds(
    StreamAppend, stream=st.sampled_from(STREAMS), expected=st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4]), events=events
)
names = st.lists(
    st.builds(NameClaim, scope=st.just("vm"), name=st.sampled_from(["web", "db"]), stream=st.sampled_from(STREAMS)),
    max_size=2,
).map(tuple)
appends = st.builds(
    lambda parts, claims, releases, request: an_append(*parts, claims=claims, releases=releases, request=request),
    st.lists(parts, min_size=1, max_size=3),
    names,
    st.one_of(st.just(()), names),
    st.one_of(st.none(), st.sampled_from(["r1", "r2", "r3"])),
)


def outcome(answer: object) -> object:
    if isinstance(answer, Appended):
        return answer.first, answer.last, answer.repeated
    assert isinstance(answer, LogError), answer
    return type(answer), str(answer)


def content(events: list[Recorded]) -> list[object]:
    return [(one.position, one.stream, one.version, one.kind, one.schema, one.data, one.meta) for one in events]


async def judge(log: Log, batches: list[list[Append]]) -> tuple[list[object], list[Recorded]]:
    answers: list[object] = []
    for batch in batches:
        answers += map(outcome, await asyncio.gather(*map(log.append, batch), return_exceptions=True))
    return answers, await everything(log)


@given(batches=st.lists(st.lists(appends, min_size=1, max_size=12), min_size=1, max_size=5))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_is_judged_as_if_its_appends_came_one_by_one(database: Database, batches: list[list[Append]]) -> None:
    async def compare() -> None:
        async with await psycopg.AsyncConnection.connect(database.owner_url, autocommit=True) as owner:
            await owner.execute("TRUNCATE vmorch.events, vmorch.streams, vmorch.requests, vmorch.claims")
            await owner.execute("UPDATE vmorch.log_head SET position = 0")
        log = await EventLog.open(database.app_url)
        try:
            answers, stored = await judge(log, batches)
        finally:
            await log.close()
        expected, modelled = await judge(MemoryLog("model", a_clock()), batches)
        assert answers == expected
        assert content(stored) == content(modelled)
        assert_well_formed(stored)

    asyncio.run(compare())


def test_times_never_go_back_even_if_the_clock_does() -> None:
    moments = iter([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)])

    async def append_twice() -> list[Recorded]:
        log = MemoryLog("model", lambda: next(moments))
        for version in range(2):
            part = StreamAppend(
                stream=Stream("vm/1"), expected=version, events=(NewEvent(kind="a", schema=1, data=b"1", meta=b"1"),)
            )
            await log.append(an_append(part))
        return await everything(log)

    assert_well_formed(asyncio.run(append_twice()))
