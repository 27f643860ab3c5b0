"""The log grows from one partition into the next, and says so when none was made ahead."""

import psycopg
import pytest
from databases import Database
from logbook import an_append, on

from vmorch.core.ids import Position, Stream
from vmorch.log.errors import LogFull
from vmorch.log.schema import partition_by
from vmorch.log.store import EventLog

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ROWS = 10_000_000


def move_head(database: Database, position: int) -> None:
    """As if the log had grown to `position`: the only way to stand at a partition's end within a test."""
    with psycopg.connect(database.owner_url) as connection:
        connection.execute("UPDATE vmorch.log_head SET position = %s", (position,))


def partitions(database: Database) -> set[str]:
    with psycopg.connect(database.owner_url) as connection:
        rows = connection.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'vmorch.events'::regclass"
        ).fetchall()
    return {row[0] for row in rows}


async def test_a_new_log_has_two_partitions_ahead(database: Database) -> None:
    assert partitions(database) == {"vmorch.events_0", "vmorch.events_1", "vmorch.events_2"}


async def test_one_append_may_span_two_partitions(database: Database, event_log: EventLog) -> None:
    move_head(database, ROWS - 3)
    answer = await event_log.append(an_append(on("vm/1", 0, events=4)))
    assert (answer.first, answer.last) == (ROWS - 2, ROWS + 1)
    assert [one.version for one in await event_log.read(Position(0))] == [1, 2, 3, 4]
    assert [one.position for one in await event_log.read_stream(Stream("vm/1"), after_version=1)] == [
        ROWS - 1,
        ROWS,
        ROWS + 1,
    ]
    assert await event_log.position_at(answer.recorded_at) == ROWS + 1


async def test_partitions_are_made_ahead_while_the_log_grows(database: Database, event_log: EventLog) -> None:
    assert await event_log.ensure_partitions() == 0
    move_head(database, ROWS - 1)
    assert await event_log.ensure_partitions() == 1
    assert "vmorch.events_3" in partitions(database)
    assert await event_log.ensure_partitions() == 0


async def test_a_new_log_may_have_partitions_of_another_size(database: Database, event_log: EventLog) -> None:
    partition_by(database.owner_url, 10)
    assert partitions(database) == {"vmorch.events_0", "vmorch.events_1", "vmorch.events_2"}
    await event_log.append(an_append(on("vm/1", 0, events=25)))
    assert await event_log.ensure_partitions() == 2
    assert await event_log.ensure_partitions() == 0
    assert [one.position for one in await event_log.read(Position(0))] == list(range(1, 26))


async def test_a_changed_size_leaves_what_holds_events_as_it_is(database: Database, event_log: EventLog) -> None:
    partition_by(database.owner_url, 10)
    await event_log.append(an_append(on("vm/1", 0, events=15)))
    partition_by(database.owner_url, 100)
    await event_log.append(an_append(on("vm/1", 15, events=30)))
    with psycopg.connect(database.owner_url) as connection:
        bounds = connection.execute("SELECT low, high FROM vmorch.partitions ORDER BY low").fetchall()
    assert bounds == [(0, 10), (10, 20), (20, 120), (120, 220)]
    assert [one.position for one in await event_log.read(Position(0))] == list(range(1, 46))


async def test_a_log_without_a_partition_left_refuses_until_one_is_made(
    database: Database, event_log: EventLog
) -> None:
    move_head(database, 3 * ROWS - 2)
    await event_log.append(an_append(on("vm/1", 0)))
    with pytest.raises(LogFull) as full:
        await event_log.append(an_append(on("vm/1", 1)))
    assert full.value.code == "log-no-partition"
    assert await event_log.head() == 3 * ROWS - 1
    assert await event_log.ensure_partitions() == 3
    answer = await event_log.append(an_append(on("vm/1", 1)))
    assert answer.first == 3 * ROWS
