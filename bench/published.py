"""What following the log costs those who append to it.

    python -m bench.published [--rounds N]

The same appends (64 callers of one event, and one caller of 100 events) alone, while the publisher follows the same
log in the same process, over an embedded NATS server with JetStream, and while the read models, a world and the sealer
do so too. All three in each round, each on a log of its own. Exits with 1 if less than 0.8 of the appends alone is
kept.
"""

import argparse
import asyncio
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg
import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import create_async_engine

from bench.append import Names
from bench.figures import machine, ratios, spread, table
from vmorch.bus.credentials import (
    ControlKeys,
    account_jwts,
    ensure_keys,
    nats_config,
    operator_jwt,
    publisher_credentials,
)
from vmorch.bus.jetstream import Limits
from vmorch.bus.jetstream import Stream as JetStream
from vmorch.bus.link import Link
from vmorch.core.aggregates.cluster import STREAM, announce_log_key
from vmorch.core.aggregates.vm import VmCreated
from vmorch.core.codec import encode
from vmorch.core.ids import GiB, HostId, Stream
from vmorch.core.messages import Meta
from vmorch.core.operation import change
from vmorch.core.operations.rename import VmRenamed
from vmorch.core.records import Append, StreamAppend
from vmorch.core.spec import DiskSpec, VmSpec
from vmorch.embedded import EmbeddedNats, EmbeddedPostgres
from vmorch.engine.logkeys import LogKeys, log_origin
from vmorch.engine.published import Published
from vmorch.engine.recorder import Recorder
from vmorch.engine.sealer import Sealer
from vmorch.engine.world import World
from vmorch.log import schema
from vmorch.log.seals import Seals
from vmorch.log.store import EventLog
from vmorch.system import SystemClock
from vmorch.views.projector import Projector
from vmorch.wire import subjects

SECONDS = 3.0
CLUSTER = "bench"
PROMISED = 0.8
SPEC = VmSpec(vcpus=2, max_vcpus=2, memory=2048, max_memory=2048, disks=(DiskSpec(name="vda", size=GiB(20)),))
META = Meta(actor="bench", reason="drain of rack 12 before maintenance", occurred_at=datetime(2026, 1, 1, tzinfo=UTC))
CREATED = encode(VmCreated(name="web", spec=SPEC, labels={}, host=HostId("h-1"), epoch=1), META)
RENAMED = encode(VmRenamed(name="web-1"), META)


class Place(Struct, frozen=True):
    """Where everything runs."""

    url: str
    nats: str
    keys: ControlKeys
    directory: Path


async def appended(log: EventLog, callers: int, size: int) -> float:
    """Events per second that the callers append together."""

    async def caller(number: int, end: float) -> int:
        names, done = Names(str(number)), 0
        while time.perf_counter() < end:
            stream, version = names.following(size)
            events = tuple(RENAMED if version + rank else CREATED for rank in range(size))
            await log.append(Append(streams=(StreamAppend(stream=Stream(stream), expected=version, events=events),)))
            done += size
        return done

    end = time.perf_counter() + SECONDS
    return sum(await asyncio.gather(*(caller(number, end) for number in range(callers)))) / SECONDS


async def alone(place: Place, callers: int, size: int) -> float:
    log = await EventLog.open(place.url)
    await log.head()
    rate = await appended(log, callers, size)
    await log.close()
    return rate


async def published(place: Place, callers: int, size: int, *, followers: bool) -> tuple[float, int]:
    """The rate of appends, and how far the stream was behind at their end."""
    log = await EventLog.open(place.url)
    link = await Link.connect(
        place.nats,
        "publisher",
        lambda: publisher_credentials(place.keys, CLUSTER, datetime.now(UTC)),
        place.keys.publisher,
        subjects.publisher_inbox(CLUSTER),
    )
    engine = create_async_engine(place.url.replace("postgresql://", "postgresql+psycopg://", 1))
    stream = JetStream(link, subjects.published_stream(CLUSTER), subjects.published_log(CLUSTER))
    publisher = Published(log, stream, CLUSTER, Limits(seconds=0, bytes=1 << 30), SystemClock())
    tasks = [asyncio.create_task(publisher.run())]
    while (await publisher.status()).position < await log.head():  # noqa: ASYNC110  the broker does not tell
        await asyncio.sleep(0.1)
    if followers:
        world, projector = World(log), Projector(log, engine)
        await world.load()
        await projector.start()
        tasks += [asyncio.create_task(world.follow()), asyncio.create_task(projector.run())]
        sealer = await _sealer(place, log, world)
        await sealer.seal()
        tasks.append(asyncio.create_task(sealer.run()))
    rate = await appended(log, callers, size)
    status = await publisher.status()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()
    await link.close()
    await log.close()
    return rate, status.head - status.position


async def _sealer(place: Place, log: EventLog, world: World) -> Sealer:
    recorder = Recorder(world, SystemClock())
    keys = LogKeys(place.directory / log.incarnation, log_origin(CLUSTER, log.incarnation))
    events = announce_log_key(world.fleet.cluster, keys.create().text())
    meta = recorder.meta(actor="bench")
    await recorder.record(lambda: ([change(STREAM, each) for each in events], None), lambda _: meta)
    return Sealer(log, Seals(place.url), keys, recorder, SystemClock())


@contextmanager
def fresh(postgres: EmbeddedPostgres, like: Place) -> Iterator[Place]:
    """The place with an empty log: what an earlier run appended costs those who follow this one nothing."""
    name = f"log_{time.time_ns():x}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    schema.upgrade(postgres.url(name))
    schema.create_logins(postgres.url(name))
    yield msgspec.structs.replace(like, url=postgres.url(name, user=schema.APP_LOGIN))
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def measure(postgres: EmbeddedPostgres, like: Place, rounds: int) -> tuple[list[tuple[str, ...]], bool]:
    rows, kept = [], True
    for name, callers, size in (("64 callers, 1 event", 64, 1), ("1 caller, 100 events", 1, 100)):
        bare: list[float] = []
        with_publisher: list[float] = []
        with_all: list[float] = []
        behind: list[int] = []

        def by_itself(place: Place, callers: int = callers, size: int = size, into: list[float] = bare) -> None:
            into.append(asyncio.run(alone(place, callers, size)))

        def beside(
            place: Place,
            callers: int = callers,
            size: int = size,
            into: list[float] = with_publisher,
            behind: list[int] = behind,
        ) -> None:
            rate, lag = asyncio.run(published(place, callers, size, followers=False))
            into.append(rate)
            behind.append(lag)

        def beside_all(
            place: Place, callers: int = callers, size: int = size, into: list[float] = with_all
        ) -> None:
            into.append(asyncio.run(published(place, callers, size, followers=True))[0])

        runs: list[Callable[[Place], None]] = [by_itself, beside, beside_all]
        for number in range(rounds):
            # whoever goes first changes, so that a drifting machine favours none
            for run in runs[number % 3 :] + runs[: number % 3]:
                with fresh(postgres, like) as place:
                    run(place)
        found = ratios(with_publisher, bare)
        kept &= statistics.median(ratios(with_all, bare)) >= PROMISED
        rows.append(
            (
                name,
                spread(bare),
                spread(with_publisher),
                spread(found, digits=2),
                spread(behind),
                spread(ratios(with_all, bare), digits=2),
            )
        )
    return rows, kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(machine() + "\n")
    with tempfile.TemporaryDirectory(prefix="vmorch-bench-") as text:
        directory = Path(text)
        directory.chmod(0o711)
        keys, now = ensure_keys(directory / "keys"), datetime.now(UTC)
        accounts = account_jwts(keys, CLUSTER, now)
        config = directory / "nats.conf"
        config.write_text(nats_config("127.0.0.1:-1", operator_jwt(keys, now), accounts, directory / "jetstream"))
        with EmbeddedPostgres(directory / "postgres") as postgres, EmbeddedNats(directory / "nats", config) as nats:
            place = Place(postgres.url(), nats.url, keys, directory)
            rows, kept = measure(postgres, place, rounds)
    print(f"events/s, median (lowest-highest) of {rounds} rounds of {SECONDS:.0f} s; promised ratio {PROMISED}\n")
    head = ("append", "alone", "published", "ratio", "events behind at the end", "ratio with all followers")
    print(table(head, rows))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
