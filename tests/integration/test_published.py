"""The published log on a real NATS server and a real Postgres: in order, once per position, and never lost for good."""

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg
import pytest
from archived import archive
from bus_fixtures import CLUSTER, Broker, Raw, a_broker
from databases import Database
from nats import errors
from nats.js.errors import APIError
from sealing import sealed_log

from vmorch.bus.bus import BusError
from vmorch.bus.credentials import _token
from vmorch.bus.jetstream import Limits, Outgoing, OutOfTurn, Stream, StreamState
from vmorch.bus.keys import create
from vmorch.bus.link import Link
from vmorch.core.ids import Position
from vmorch.core.ids import Stream as StreamName
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.engine.published import INCARNATION, Published
from vmorch.log.schema import partition_by
from vmorch.log.store import EventLog
from vmorch.system import SystemClock
from vmorch.wire import subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.postgres]

NAME = subjects.published_stream(CLUSTER)
EVERYTHING = Limits(seconds=0, bytes=1 << 28)
LOOK = 0.2


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    yield from a_broker(tmp_path)


@pytest.fixture
async def link(broker: Broker) -> AsyncIterator[Link]:
    link = await broker.publisher()
    yield link
    await link.close()


@pytest.fixture
async def reader(broker: Broker) -> AsyncIterator[Raw]:
    reader = await broker.reader("audit")
    yield reader
    with suppress(errors.Error):
        await reader.client.close()


def published(log: EventLog, link: Link, limits: Limits = EVERYTHING) -> Published:
    stream = Stream(link, NAME, subjects.published_log(CLUSTER))
    return Published(log, stream, CLUSTER, limits, SystemClock(), look=LOOK)


async def append(log: EventLog, count: int, kind: str = "vm.renamed", data: bytes = b'{"name":"web"}') -> None:
    """So many events, a stream each; ten to a commit."""
    event = NewEvent(kind=kind, schema=1, data=data, meta=b'{"actor":"tester","occurred_at":"2026-01-01T00:00:00Z"}')
    for start in range(0, count, 10):
        head = await log.head()
        streams = tuple(
            StreamAppend(stream=StreamName(f"vm/v{head}-{number}"), expected=0, events=(event,))
            for number in range(min(10, count - start))
        )
        await log.append(Append(streams=streams))


@asynccontextmanager
async def running(*publishers: Published) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(each.run()) for each in publishers]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError), ended


async def level(log: EventLog, publisher: Published, within: float = 30) -> None:
    """Return when the stream stands where the log does."""
    async with asyncio.timeout(within):
        while True:
            status = await publisher.status()
            if status.position == await log.head() and not status.trouble:
                return
            await asyncio.sleep(0.02)


async def becomes(publisher: Published, wanted: Callable[[StreamState], bool]) -> None:
    """Return when the stream is what is wanted."""
    async with asyncio.timeout(30):
        while True:
            state = await publisher.stream.state()
            if state is not None and wanted(state):
                return
            await asyncio.sleep(0.02)


async def read_all(reader: Raw, first: int, last: int) -> list[tuple[int, dict[str, object]]]:
    """What a reader pulls through its own consumer: (sequence, CloudEvent) from the stream's beginning."""
    context = reader.client.jetstream()
    with suppress(APIError):
        await context.delete_consumer(NAME, "audit")
    subscription = await context.pull_subscribe(subjects.published_log(CLUSTER), durable="audit", stream=NAME)
    found: list[tuple[int, dict[str, object]]] = []
    while len(found) < last - first + 1:
        for message in await subscription.fetch(100, timeout=10):
            await message.ack()
            assert message.headers is not None
            sequence = message.metadata.sequence.stream
            assert message.headers["Nats-Msg-Id"] == str(sequence)
            found.append((sequence, msgspec.json.decode(message.data)))
    with pytest.raises(errors.TimeoutError):
        await subscription.fetch(1, timeout=0.3)
    return found


async def assert_is_the_log(log: EventLog, reader: Raw, first: int = 1) -> None:
    head = await log.head()
    records = {each.position: each for each in await log.read(Position(first - 1), 100_000)}
    found = await read_all(reader, first, head)
    assert [sequence for sequence, _ in found] == list(range(first, head + 1))
    for sequence, event in found:
        record = records[Position(sequence)]
        assert event["position"] == str(sequence)
        assert event["id"] == f"{log.incarnation}/{sequence}"
        assert (event["subject"], event["type"]) == (record.stream, f"vmorch.{record.kind}")
        assert event["data"] == msgspec.json.decode(record.data)


async def test_every_event_goes_out_in_order_and_once(event_log: EventLog, link: Link, reader: Raw) -> None:
    await append(event_log, 450)
    publisher = published(event_log, link)
    async with running(publisher):
        await append(event_log, 50)
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader)


async def test_a_publisher_that_is_cut_off_anywhere_leaves_neither_gap_nor_repeat(
    event_log: EventLog, link: Link, reader: Raw
) -> None:
    chance = random.Random(7)
    await append(event_log, 300)
    for _ in range(25):
        publisher = published(event_log, link)
        task = asyncio.create_task(publisher.run())
        await append(event_log, 20)
        await asyncio.sleep(chance.uniform(0, 0.03))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader)


async def test_a_server_that_is_killed_while_it_publishes_leaves_neither_gap_nor_repeat(
    broker: Broker, event_log: EventLog, database: Database, link: Link, reader: Raw
) -> None:
    chance = random.Random(11)
    script = Path(__file__).with_name("log_publisher.py")
    line = [sys.executable, str(script), database.app_url, broker.url, str(broker.keys_directory), CLUSTER]
    publisher = published(event_log, link)
    in_the_middle, tried = 0, 0
    while in_the_middle < 2:
        tried += 1
        assert tried < 20
        await append(event_log, 2000)
        before = (await publisher.status()).position
        process = await asyncio.create_subprocess_exec(*line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await becomes(publisher, lambda state, before=before: state.last > before)
            await asyncio.sleep(chance.uniform(0, 0.02))
        finally:
            process.kill()
            await process.wait()
        in_the_middle += (await publisher.status()).position < await event_log.head()
    async with running(publisher):
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader)


async def test_two_servers_at_once_write_one_log(
    broker: Broker, event_log: EventLog, database: Database, link: Link, reader: Raw
) -> None:
    other_link, other_log = await broker.publisher(), await EventLog.open(database.app_url)
    one, other = published(event_log, link), published(other_log, other_link)
    try:
        async with running(one, other):
            await asyncio.gather(append(event_log, 500), append(other_log, 500), return_exceptions=True)
            await level(event_log, one)
            await assert_is_the_log(event_log, reader)
    finally:
        await other_link.close()
        await other_log.close()


async def test_a_deleted_stream_is_filled_again(event_log: EventLog, link: Link, reader: Raw) -> None:
    await append(event_log, 100)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        await publisher.stream.delete()
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader)


async def purge(broker: Broker, keep: int) -> int:
    """Drop all but the last messages, as somebody with the log account's own key could; how many went."""
    pair, now = create("user"), datetime.now(UTC)
    nats = {"type": "user", "version": 2, "pub": {"allow": [">"]}, "sub": {"allow": [">"]}, "subs": -1, "data": -1,
            "payload": -1}
    intruder = await broker.raw(_token(broker.keys.log, pair.public, "intruder", nats, now), pair, "_INBOX_intruder")
    answer = await intruder.client.request(f"$JS.API.STREAM.PURGE.{NAME}", msgspec.json.encode({"keep": keep}))
    await intruder.client.close()
    return int(msgspec.json.decode(answer.data)["purged"])


async def test_a_stream_is_filled_from_archives_as_well(
    database: Database, link: Link, reader: Raw, tmp_path: Path
) -> None:
    partition_by(database.owner_url, 40)
    async with sealed_log(database, tmp_path / "archives") as sealed:
        await append(sealed.log, 99)
        await sealed.sealer.seal()
        assert [each.last for each in await archive(sealed, tmp_path / "archives", 90)] == [39, 79]
        publisher = published(sealed.log, link)
        async with running(publisher):
            await level(sealed.log, publisher)
            await assert_is_the_log(sealed.log, reader)


@pytest.mark.parametrize("keep", [0, 10])
async def test_a_purged_stream_is_filled_again(
    broker: Broker, event_log: EventLog, link: Link, reader: Raw, keep: int
) -> None:
    await append(event_log, 100)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        assert await purge(broker, keep) == 100 - keep
        await becomes(publisher, lambda state: (state.first, state.last) == (1, 100))
        await assert_is_the_log(event_log, reader)


async def test_a_broker_that_lost_its_disk_is_filled_again(broker: Broker, event_log: EventLog) -> None:
    await append(event_log, 100)
    link = await broker.publisher()
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        broker.kill()
        shutil.rmtree(broker.store)
        await append(event_log, 30)
        assert (await publisher.status()).trouble
        broker.restart()
        await level(event_log, publisher)
        reader = await broker.reader("audit")
        await assert_is_the_log(event_log, reader)
        await reader.client.close()
    await link.close()


async def test_a_broker_that_was_away_misses_nothing(broker: Broker, event_log: EventLog) -> None:
    await append(event_log, 50)
    link = await broker.publisher()
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        for _ in range(3):
            broker.kill()
            await append(event_log, 40)
            broker.restart()
            await append(event_log, 40)
        await level(event_log, publisher)
        reader = await broker.reader("audit")
        await assert_is_the_log(event_log, reader)
        await reader.client.close()
    await link.close()


async def test_what_belongs_to_another_log_is_replaced(
    event_log: EventLog, database: Database, link: Link, reader: Raw
) -> None:
    await append(event_log, 60)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        connection.execute("UPDATE vmorch.log_head SET incarnation = gen_random_uuid()::text")
    other = await EventLog.open(database.app_url)
    publisher = published(other, link)
    async with running(publisher):
        await level(other, publisher)
        await becomes(publisher, lambda state: (state.labels[INCARNATION], state.last) == (other.incarnation, 60))
        await assert_is_the_log(other, reader)
    await other.close()


async def test_a_foreign_message_at_the_end_is_replaced(
    event_log: EventLog, link: Link, reader: Raw
) -> None:
    await append(event_log, 20)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
    await link.request(f"vmorch.{CLUSTER}.log.vm.x.forged", b"{}", 5)
    await append(event_log, 20)
    async with running(publisher):
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader)


async def test_only_what_is_young_enough_is_kept(
    event_log: EventLog, database: Database, link: Link, reader: Raw
) -> None:
    await append(event_log, 40)
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE vmorch.events DISABLE TRIGGER USER")
        connection.execute(
            "UPDATE vmorch.events SET recorded_at = recorded_at - interval '2 days' WHERE position <= 30"
        )
    publisher = published(event_log, link, Limits(seconds=86_400, bytes=1 << 28))
    async with running(publisher):
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader, first=31)
        limits = Limits(seconds=172_800, bytes=1 << 27)
        publisher.limits = limits
        assert await publisher.level() == (40, "40")
        state = await publisher.stream.state()
        assert state is not None
        assert state.limits == limits


async def test_what_this_version_cannot_read_goes_out_all_the_same(
    event_log: EventLog, link: Link, reader: Raw
) -> None:
    await append(event_log, 3, "vm.from-the-future", b'{"x":[1,2]}')
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader)


async def test_too_large_an_event_goes_out_by_name(event_log: EventLog, link: Link, reader: Raw) -> None:
    await append(event_log, 1, data=b'{"name":"' + b"x" * (1024 * 1024) + b'"}')
    await append(event_log, 1)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        (_, large), (_, small) = await read_all(reader, 1, 2)
    assert large["dataref"] == "/v1/events/1"
    assert "data" not in large
    assert small["data"] == {"name": "web"}


async def test_the_stream_takes_a_position_at_its_place_only(event_log: EventLog, link: Link) -> None:
    stream = published(event_log, link).stream
    await stream.create(1, EVERYTHING, {})

    def message(sequence: int) -> Outgoing:
        return Outgoing(sequence=sequence, id=str(sequence), subject=f"vmorch.{CLUSTER}.log.x", data=b"{}")

    await stream.extend([message(1), message(2)])
    with pytest.raises(OutOfTurn):
        await stream.extend([message(4), message(5)])
    await stream.extend([message(2), message(3)])
    state = await stream.state()
    assert state is not None
    assert state.last == 3


async def test_hosts_can_neither_read_nor_write_the_published_log(
    broker: Broker, event_log: EventLog, link: Link
) -> None:
    await append(event_log, 5)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        host = await broker.raw_host("h1")
        for subject in (
            f"vmorch.{CLUSTER}.log.vm.x.vm.renamed",
            f"$JS.API.STREAM.INFO.{NAME}",
            f"$JS.API.STREAM.DELETE.{NAME}",
            f"$JS.API.STREAM.MSG.GET.{NAME}",
            f"$JS.API.CONSUMER.CREATE.{NAME}.h1",
        ):
            await host.client.publish(subject, b"{}")
            assert any("permissions violation" in each.lower() for each in await host.objections()), subject
        await host.client.subscribe(subjects.published_log(CLUSTER))
        assert any("permissions violation" in each.lower() for each in await host.objections())
        # nor could whoever is the control plane towards the hosts: the log's account is another
        control = await broker.control_plane()
        await control.publish(f"vmorch.{CLUSTER}.log.vm.x.vm.renamed", b"{}")
        with pytest.raises(BusError):
            await control.request(f"$JS.API.STREAM.INFO.{NAME}", b"", 1)
        state = await publisher.stream.state()
        assert state is not None
        assert state.last == 5
        await control.close()
        await host.client.close()


async def test_a_reader_reads_and_does_nothing_else(
    broker: Broker, event_log: EventLog, link: Link, reader: Raw
) -> None:
    await append(event_log, 5)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        for subject in (
            f"vmorch.{CLUSTER}.log.vm.x.vm.renamed",
            f"$JS.API.STREAM.DELETE.{NAME}",
            f"$JS.API.STREAM.PURGE.{NAME}",
            f"$JS.API.STREAM.UPDATE.{NAME}",
            "$JS.API.STREAM.CREATE.other",
            f"$JS.API.CONSUMER.CREATE.{NAME}.somebody-else",
            f"$JS.API.CONSUMER.DELETE.{NAME}.somebody-else",
            f"$JS.API.STREAM.MSG.GET.{NAME}",
        ):
            await reader.client.publish(subject, b"{}")
            assert any("permissions violation" in each.lower() for each in await reader.objections()), subject
        live = await reader.client.subscribe(subjects.published_log(CLUSTER))
        await reader.settle()
        await append(event_log, 1)
        message = await live.next_msg(timeout=10)
        assert msgspec.json.decode(message.data)["position"] == "6"
    assert datetime.fromisoformat(msgspec.json.decode(message.data)["time"]) <= datetime.now(UTC)


async def test_a_reader_that_has_the_broker_answer_into_the_log_changes_nothing_for_long(
    broker: Broker, event_log: EventLog, link: Link, reader: Raw
) -> None:
    await append(event_log, 5)
    publisher = published(event_log, link)
    async with running(publisher):
        await level(event_log, publisher)
        forged = f"vmorch.{CLUSTER}.log.vm.x.forged"
        await reader.client.publish(f"$JS.API.STREAM.INFO.{NAME}", b"", reply=forged)
        await reader.settle()
        await append(event_log, 5)
        await level(event_log, publisher)
        await assert_is_the_log(event_log, reader)
