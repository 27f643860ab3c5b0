"""How fast the log becomes state: decoded and folded in memory, and rebuilt into the read models.

    python -m bench.fold [--events N] [--rebuild N ...]

In memory, batches of 5,000 events are in turn only parsed as JSON (the limit: msgspec without types) and decoded and
folded into the fleet; counted is processor time, which other work on the machine does not lengthen. From an embedded
Postgres, batches of the size that a replay takes are in turn read and parsed as JSON, and read, decoded and folded,
without the collector of cycles, as the server does it; counted is wall time. A rebuild is the server's own,
`Projector.rebuild`: it reads the log, folds it, and replaces all rows in one transaction. Beside it the first events
are folded too, but each row that an event changes is upserted by a statement of its own, 1,000 events in a
transaction. The events are invented (see bench/invented.py), their making and appending is not part of any figure but
the one that says so. Exits with 1 if a promise is missed: REPLAY of the rate without folding, REBUILD times the rate
of single upserts.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import msgspec
from msgspec import Struct
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bench.figures import machine, ratios, spread, table
from bench.invented import appends, log
from vmorch.core.codec import decode
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded
from vmorch.embedded import EmbeddedPostgres
from vmorch.engine.history import BATCH as TURN
from vmorch.log import schema
from vmorch.log.folding import uncollected
from vmorch.log.store import EventLog
from vmorch.views.projector import UPSERTS, Projector, take
from vmorch.views.rows import Rows
from vmorch.views.tables import TABLES

BATCH = 5000
SINGLY = 10_000
"""Events whose rows are upserted one by one."""
REPLAY, REBUILD = 0.5, 10.0


def parse_only(batch: list[Recorded]) -> float:
    parse = msgspec.json.decode
    began = time.process_time()
    for record in batch:
        parse(record.data)
        parse(record.meta)
    return time.process_time() - began


def fold_into(fleet: Fleet, batch: list[Recorded]) -> float:
    began = time.process_time()
    for record in batch:
        fleet.apply(decode(record))
    return time.process_time() - began


def in_memory(events: int) -> None:
    records = log(events)
    fleet = Fleet()
    parsed: list[float] = []
    folded: list[float] = []
    size = 0
    while batch := list(islice(records, BATCH)):
        size += sum(len(record.data) + len(record.meta) for record in batch)
        # whoever goes first alternates, so that warm caches favour neither
        for number in (0, 1) if len(parsed) % 2 else (1, 0):
            if number:
                folded.append(fold_into(fleet, batch) / len(batch))
            else:
                parsed.append(parse_only(batch) / len(batch))
    living = sum(vm.deleted_at is None for vm in fleet.vms.values())
    print(
        f"{events:,} events of {size / events:,.0f} bytes; {len(fleet.vms):,} VMs, {living:,} of them not deleted, "
        f"{len(fleet.hosts)} hosts\n"
    )
    parse_rates, fold_rates = [1 / each for each in parsed], [1 / each for each in folded]
    times = [theirs / mine for mine, theirs in zip(fold_rates, parse_rates, strict=True)]
    share = events / len(folded)
    rows = [
        ("parse JSON only", spread(parse_rates), f"{sum(parsed) * share:.1f}", "1"),
        ("decode and fold", spread(fold_rates), f"{sum(folded) * share:.1f}", spread(times, digits=1)),
    ]
    print(table(["in memory", "events per CPU second, median batch", "CPU seconds in all", "times the parse"], rows))


class Built(Struct, frozen=True, kw_only=True):
    """What was measured of a log of some length; rates in events per second."""

    events: int
    rows: int
    appended: float
    parsed: list[float]
    folded: list[float]
    seconds: list[float]
    singly: float

    @property
    def replay(self) -> float:
        """The rate with folding, of that without; median of the batches."""
        return statistics.median(ratios(self.folded, self.parsed))

    @property
    def rebuild(self) -> float:
        """How many times faster a rebuild is than single upserts."""
        return self.events / statistics.median(self.seconds) / self.singly


async def replay(store: EventLog, events: int) -> tuple[list[float], list[float]]:
    """Rates of reading and parsing, and of reading, decoding and folding, batch by batch."""
    parsed: list[float] = []
    folded: list[float] = []
    fleet, after = Fleet(), Position(0)
    while after < events:
        for number in (0, 1) if len(parsed) % 2 else (1, 0):
            began = time.perf_counter()
            batch = await store.read(after, TURN, Position(events))
            if number:
                fold_into(fleet, batch)
            else:
                parse_only(batch)
            (folded if number else parsed).append(len(batch) / (time.perf_counter() - began))
        after = batch[-1].position
    return parsed, folded


async def upsert_singly(store: EventLog, engine: AsyncEngine) -> float:
    """Events per second when each changed row is written by itself."""
    rows, poisoned = Rows(), dict[Stream, str]()
    began = time.perf_counter()
    while rows.fleet.position < SINGLY:
        records = await store.read(rows.fleet.position, 1000, Position(SINGLY))
        async with engine.begin() as connection:
            for record in records:
                take(rows, record, poisoned)
                for (model, id), row in rows.take().items():
                    table = TABLES[model]
                    if row is None:
                        await connection.execute(delete(table).where(table.c.id == id))
                    else:
                        await connection.execute(UPSERTS[model], row)
    return SINGLY / (time.perf_counter() - began)


async def rebuild(url: str, events: int) -> Built:
    store = await EventLog.open(url)
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        began = time.perf_counter()
        waiting = appends(log(events))
        head = int(await store.head())
        assert head == 0
        for append in waiting:
            await store.append(append)
        appended = time.perf_counter() - began
        gc.collect()
        with uncollected():
            parsed, folded = await replay(store, events)
        singly = await upsert_singly(store, engine)
        gc.collect()
        projector = Projector(store, engine)
        times = []
        for _ in range(3 if events <= 200_000 else 1):
            done = await projector.rebuild()
            assert done.events == events
            times.append(done.seconds)
    finally:
        await engine.dispose()
        await store.close()
    return Built(
        events=events, rows=done.rows, appended=appended, parsed=parsed, folded=folded, seconds=times, singly=singly
    )


def rebuilds(sizes: list[int]) -> bool:
    """Whether every promise is kept."""
    built = []
    for events in sizes:
        with tempfile.TemporaryDirectory(prefix="vmorch-bench-") as place:
            Path(place).chmod(0o711)
            with EmbeddedPostgres(Path(place) / "postgres") as server:
                schema.upgrade(server.url())
                schema.create_logins(server.url())
                built.append(asyncio.run(rebuild(server.url(user=schema.APP_LOGIN), events)))
    head = ["replay of", "read and parse, events/s", "read, decode and fold, events/s", "ratio"]
    print(
        table(head, [
            (f"{each.events:,}", spread(each.parsed), spread(each.folded),
             spread(ratios(each.folded, each.parsed), digits=2))
            for each in built
        ])
    )  # fmt: skip
    print()
    head = ["rebuild of", "seconds", "events/s", "rows", "row by row, events/s", "times faster", "seconds to append"]
    print(
        table(head, [
            (f"{each.events:,}", spread(each.seconds, digits=1),
             spread([each.events / seconds for seconds in each.seconds]), f"{each.rows:,}", f"{each.singly:,.0f}",
             f"{each.rebuild:.0f}", f"{each.appended:.0f}")
            for each in built
        ])
    )  # fmt: skip
    return all(each.replay >= REPLAY and each.rebuild >= REBUILD for each in built)


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.fold", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="events to fold in memory (default: 1,000,000)")
    parser.add_argument(
        "--rebuild", type=int, nargs="*", default=[100_000, 1_000_000], help="log sizes to rebuild (default: both)"
    )
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    if arguments.events:
        in_memory(arguments.events)
        print(flush=True)
    return 0 if rebuilds(arguments.rebuild) else 1


if __name__ == "__main__":
    sys.exit(main())
