"""The log beside the `eventsourcing` library (PyPI) on the same Postgres, with the same events: append and read.

    pip install 'vmorch[bench]'; python -m bench.peer_log [--rounds N]

Both keep the same data and meta in events of some streams, with an expected version and positions that readers can
follow; the library is used by its own recorder, with its connection pool and its database functions. In each round
both, in an order that turns, append alone one by one, from 64 callers at once (coroutines here, threads there), and in
batches of 100; then all is read from the beginning in pages of 1,000, and 500 streams are read one after another, each
event's JSON parsed. Events per second of wall time; ratios of the same round.
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict

from bench.append import DATA, EVENT, META
from bench.figures import machine, ratios, spread, table
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Append, StreamAppend
from vmorch.embedded import EmbeddedPostgres
from vmorch.log import schema
from vmorch.log.store import EventLog

SECONDS = 3.0
CALLERS = 64
BATCH = 100
EACH = 20
"""Events of a stream."""
PAGE = 1000
STREAMS = 500

_parse = msgspec.json.decode


class Ours:
    """The log, from one process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._streams: list[Stream] = []

    def append(self, callers: int, size: int) -> float:
        async def caller(log: EventLog, end: float) -> int:
            done = 0
            while time.perf_counter() < end:
                at = Stream(f"vm/{uuid.uuid4()}")
                self._streams.append(at)
                for expected in range(0, max(EACH, size), size):
                    part = StreamAppend(stream=at, expected=expected, events=(EVENT,) * size)
                    await log.append(Append(streams=(part,)))
                    done += size
            return done

        async def run() -> float:
            log = await EventLog.open(self._url)
            await log.head()
            began = time.perf_counter()
            done = sum(await asyncio.gather(*(caller(log, began + SECONDS) for _ in range(callers))))
            seconds = time.perf_counter() - began
            await log.close()
            return done / seconds

        return asyncio.run(run())

    def read(self) -> float:
        async def run() -> float:
            log = await EventLog.open(self._url)
            head, after = await log.head(), Position(0)
            began = time.perf_counter()
            while after < head:
                batch = await log.read(after, PAGE, head)
                for record in batch:
                    _parse(record.data), _parse(record.meta)
                after = batch[-1].position
            seconds = time.perf_counter() - began
            await log.close()
            return head / seconds

        return asyncio.run(run())

    def read_streams(self) -> float:
        async def run() -> float:
            log = await EventLog.open(self._url)
            await log.head()
            began, done = time.perf_counter(), 0
            for at in self._streams[:STREAMS]:
                records = await log.read_stream(at)
                for record in records:
                    _parse(record.data), _parse(record.meta)
                done += len(records)
            seconds = time.perf_counter() - began
            await log.close()
            return done / seconds

        return asyncio.run(run())


class Theirs:
    """The library's recorder for applications, from one process."""

    def __init__(self, url: str) -> None:
        from eventsourcing.persistence import StoredEvent
        from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

        where = conninfo_to_dict(url)
        self._stored = StoredEvent
        self._store = PostgresDatastore(
            dbname=str(where["dbname"]), host=str(where["host"]), port=str(where["port"]), user=str(where["user"]),
            password="", pool_size=8, max_overflow=8, connect_timeout=60, enable_db_functions=True,
        )  # fmt: skip
        self._recorder = PostgresApplicationRecorder(self._store)
        self._recorder.create_table()
        self._state = b'{"data":' + DATA + b',"meta":' + META + b"}"
        self._streams: list[uuid.UUID] = []

    def close(self) -> None:
        self._store.close()

    def _event(self, at: uuid.UUID, version: int) -> Any:
        return self._stored(originator_id=at, originator_version=version, topic=EVENT.kind, state=self._state)

    def append(self, callers: int, size: int) -> float:
        def caller(end: float) -> int:
            done = 0
            while time.perf_counter() < end:
                at = uuid.uuid4()
                self._streams.append(at)
                for expected in range(0, max(EACH, size), size):
                    self._recorder.insert_events([self._event(at, expected + rank) for rank in range(1, size + 1)])
                    done += size
            return done

        with ThreadPoolExecutor(callers) as pool:
            began = time.perf_counter()
            done = sum(pool.map(caller, [began + SECONDS] * callers))
            return done / (time.perf_counter() - began)

    def read(self) -> float:
        began, done, start = time.perf_counter(), 0, 1
        while batch := self._recorder.select_notifications(start, PAGE):
            for each in batch:
                _parse(each.state)
            done += len(batch)
            start = batch[-1].id + 1
        return done / (time.perf_counter() - began)

    def read_streams(self) -> float:
        began, done = time.perf_counter(), 0
        for at in self._streams[:STREAMS]:
            events = self._recorder.select_events(at)
            for each in events:
                _parse(each.state)
            done += len(events)
        return done / (time.perf_counter() - began)


def measure(url: str, owner: str, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    ours, theirs = Ours(url), Theirs(owner)
    things: dict[str, Callable[[Any], float]] = {
        "append, 1 caller": lambda log: log.append(1, 1),
        f"append, {CALLERS} callers": lambda log: log.append(CALLERS, 1),
        f"append, batches of {BATCH}": lambda log: log.append(1, BATCH),
        f"read all, pages of {PAGE:,}": lambda log: log.read(),
        "read streams": lambda log: log.read_streams(),
    }
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in things}
    for number in range(rounds):
        for name, take in things.items():
            pairs = [(ours, found[name][0]), (theirs, found[name][1])]
            for log, into in pairs if number % 2 else reversed(pairs):
                gc.collect()
                into.append(take(log))
    theirs.close()
    return found


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.peer_log", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    rounds = parser.parse_args().rounds
    try:
        import eventsourcing.postgres  # noqa: F401
    except ImportError:
        parser.error("the library to compare with is not installed: pip install 'vmorch[bench]'")
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="vmorch-bench-") as place:
        Path(place).chmod(0o711)
        with EmbeddedPostgres(Path(place) / "postgres") as server:
            schema.upgrade(server.url())
            schema.create_logins(server.url())
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute("CREATE DATABASE peer")
            found = measure(server.url(user=schema.APP_LOGIN), server.url("peer"), rounds)
    rows = [
        (name, spread(ours), spread(theirs), spread(ratios(ours, theirs), digits=2))
        for name, (ours, theirs) in found.items()
    ]
    print(f"Events per second, median (lowest-highest) of {rounds} rounds; ratios of the same round.\n")
    print(table(["what", "vmorch", "eventsourcing", "ratio"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
