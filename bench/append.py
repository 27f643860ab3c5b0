"""What appending costs, against bare Postgres with the same rows, in one interleaved run.

    python bench/append.py [--rounds N]

Three promises are measured: a lone caller against a prepared INSERT, 64 callers against 8 connections that
insert on their own, batches of 100 events against COPY. The bare rows have the log's columns and primary key
but no expected version, no gapless position and no partition. Exits with 1 if a promised ratio is missed.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import psycopg

from vmorch.core.ids import Stream
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.embedded import EmbeddedPostgres
from vmorch.log import schema
from vmorch.log.store import EventLog

DATA = (
    b'{"vm":"0192f0c1-7d2e-7c41-9a57-3f1b9c2d4e5f","host":"0192f0c1-81aa-7b02-8c11-5d2e7f3a9b10","memory":4096,'
    b'"disks":[{"name":"root","size":20480,"pool":"fast"}],"epoch":7,"reason":"drain of rack 12 before maintenance"}'
)
META = (
    b'{"actor":"operator","request":"0192f0c2-0d4e-7f11-b2a3-9c8d7e6f5a41","operation":"0192f0c2-11aa",'
    b'"causation":182734,"occurred_at":"2026-01-01T12:00:00.000000Z"}'
)
EVENT = NewEvent(kind="vm-moved", schema=1, data=DATA, meta=META)
SECONDS = 2.0

BARE = """
CREATE TABLE bare (
    position bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, stream text NOT NULL, version bigint NOT NULL,
    kind text NOT NULL, schema int NOT NULL, data json NOT NULL, meta json NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(), UNIQUE (stream, version));
"""
INSERT = "INSERT INTO bare (stream, version, kind, schema, data, meta) VALUES (%s, %s, %s, %s, %s::json, %s::json)"


class Names:
    """Streams of 20 events each, never used twice."""

    def __init__(self, writer: str) -> None:
        self._prefix = f"vm/{writer}-{time.time_ns():x}"
        self._count = 0

    def following(self, size: int = 1) -> tuple[str, int]:
        """The next stream and its version, for `size` events."""
        per_stream = max(20 // size, 1)
        number, turn = divmod(self._count, per_stream)
        self._count += 1
        return f"{self._prefix}-{number}", turn * size


def bare_inserts(url: str, start: Callable[[], None], writer: str) -> int:
    names, done = Names(writer), 0
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        connection.execute("SELECT 1")
        start()
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            stream, version = names.following()
            connection.execute(INSERT, (stream, version + 1, "vm-moved", 1, DATA.decode(), META.decode()))
            done += 1
    return done


def writer_process(url: str, number: int, line: Connection) -> None:
    def start() -> None:
        line.send("ready")
        line.recv()

    line.send(bare_inserts(url, start, str(number)))


def lone_insert(url: str) -> float:
    return bare_inserts(url, lambda: None, "lone") / SECONDS


def eight_writers(url: str) -> float:
    context = multiprocessing.get_context("spawn")
    lines = []
    processes = []
    for number in range(8):
        ours, theirs = context.Pipe()
        process = context.Process(target=writer_process, args=(url, number, theirs))
        process.start()
        processes.append(process)
        lines.append(ours)
    for line in lines:
        line.recv()
    for line in lines:
        line.send("go")
    done = sum(int(line.recv()) for line in lines)
    for process in processes:
        process.join()
    return done / SECONDS


def copies(url: str) -> float:
    names, done = Names("copy"), 0
    rest = f"vm-moved\t1\t{DATA.decode()}\t{META.decode()}\n"
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            stream, version = names.following(100)
            lines = [f"{stream}\t{version + rank}\t{rest}" for rank in range(1, 101)]
            with cursor.copy("COPY bare (stream, version, kind, schema, data, meta) FROM STDIN") as copy:
                copy.write("".join(lines))
            done += 100
    return done / SECONDS


def through_the_log(url: str, callers: int, size: int) -> float:
    async def caller(log: EventLog, number: int, end: float) -> int:
        names, done = Names(str(number)), 0
        events = (EVENT,) * size
        while time.perf_counter() < end:
            stream, version = names.following(size)
            part = StreamAppend(stream=Stream(stream), expected=version, events=events)
            await log.append(Append(streams=(part,)))
            done += size
        return done

    async def run() -> float:
        log = await EventLog.open(url)
        await log.head()
        end = time.perf_counter() + SECONDS
        done = sum(await asyncio.gather(*(caller(log, number, end) for number in range(callers))))
        await log.close()
        return done / SECONDS

    return asyncio.run(run())


def measure(server: EmbeddedPostgres, rounds: int) -> list[tuple[str, str, float, list[float], list[float]]]:
    owner, app = server.url(), server.url(user=schema.APP_LOGIN)
    pairs: Sequence[tuple[str, str, float, Callable[[], float], Callable[[], float]]] = [
        ("1 caller, 1 event", "1 prepared INSERT", 0.7, lambda: through_the_log(app, 1, 1), lambda: lone_insert(owner)),
        (
            "64 callers, 1 event",
            "8 bare writers",
            3.0,
            lambda: through_the_log(app, 64, 1),
            lambda: eight_writers(owner),
        ),
        ("1 caller, 100 events", "COPY of 100", 0.8, lambda: through_the_log(app, 1, 100), lambda: copies(owner)),
    ]
    figures: list[tuple[str, str, float, list[float], list[float]]] = [(*pair[:3], [], []) for pair in pairs]
    for number in range(rounds):
        for (_, _, _, ours, bare), row in zip(pairs, figures, strict=True):
            # whoever goes first alternates, so that a drifting machine favours neither
            for measured, into in ((ours, row[3]), (bare, row[4]))[:: 1 if number % 2 else -1]:
                into.append(measured())
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    missed = False
    with tempfile.TemporaryDirectory(prefix="vmorch-bench-") as place:
        Path(place).chmod(0o711)
        with EmbeddedPostgres(Path(place) / "postgres") as server:
            schema.upgrade(server.url())
            schema.create_logins(server.url())
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute(BARE)
            figures = measure(server, rounds)
    print(f"events/s, median of {rounds} rounds of {SECONDS:.0f} s; ratio: median (lowest-highest) of the rounds\n")
    print(f"{'log':22}{'':>9}  {'bare':20}{'':>9}  {'ratio':>6}  {'range':>13}  promised")
    for name, against, promised, ours, bare in figures:
        ratios = [mine / theirs for mine, theirs in zip(ours, bare, strict=True)]
        ratio = statistics.median(ratios)
        missed |= ratio < promised
        print(
            f"{name:22}{statistics.median(ours):9,.0f}  {against:20}{statistics.median(bare):9,.0f}  {ratio:6.2f}"
            f"  {min(ratios):6.2f}-{max(ratios):6.2f}  {promised:8.1f}"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
