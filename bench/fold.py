"""How fast the log becomes state: decoded and folded in memory, and rebuilt into the read models.

    python -m bench.fold [--events N] [--rebuild N ...]

In memory, batches of 5,000 events are in turn only parsed as JSON (the limit: msgspec without types) and decoded and
folded into the fleet; counted is processor time, which other work on the machine does not lengthen. A rebuild is the
server's own, `Projector.rebuild` on an embedded Postgres: it reads the log, folds it, and replaces all rows in one
transaction; counted is wall time. The events are invented (see bench/invented.py), their making and appending is not
part of any figure but the one that says so.
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import msgspec
from sqlalchemy.ext.asyncio import create_async_engine

from bench.figures import machine, spread, table
from bench.invented import appends, log
from vmorch.core.codec import decode
from vmorch.core.fleet import Fleet
from vmorch.core.records import Recorded
from vmorch.embedded import EmbeddedPostgres
from vmorch.log import schema
from vmorch.log.store import EventLog
from vmorch.views.projector import Projector

BATCH = 5000


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
    ratios = [theirs / mine for mine, theirs in zip(fold_rates, parse_rates, strict=True)]
    share = events / len(folded)
    rows = [
        ("parse JSON only", spread(parse_rates), f"{sum(parsed) * share:.1f}", "1"),
        ("decode and fold", spread(fold_rates), f"{sum(folded) * share:.1f}", spread(ratios, digits=1)),
    ]
    print(table(["in memory", "events per CPU second, median batch", "CPU seconds in all", "times the parse"], rows))


async def rebuild(url: str, events: int) -> tuple[str, ...]:
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
        projector = Projector(store, engine)
        times = []
        for _ in range(3 if events <= 200_000 else 1):
            done = await projector.rebuild()
            assert done.events == events
            times.append(done.seconds)
    finally:
        await engine.dispose()
        await store.close()
    rate = [events / each for each in times]
    return f"{events:,}", spread(times, digits=1), spread(rate), f"{done.rows:,}", f"{appended:.0f}"


def rebuilds(sizes: list[int]) -> None:
    rows = []
    for events in sizes:
        with tempfile.TemporaryDirectory(prefix="vmorch-bench-") as place:
            Path(place).chmod(0o711)
            with EmbeddedPostgres(Path(place) / "postgres") as server:
                schema.upgrade(server.url())
                schema.create_logins(server.url())
                rows.append(asyncio.run(rebuild(server.url(user=schema.APP_LOGIN), events)))
    print(table(["rebuild of", "seconds", "events/s", "rows", "seconds to invent and append"], rows))


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
    if arguments.rebuild:
        rebuilds(arguments.rebuild)
    return 0


if __name__ == "__main__":
    sys.exit(main())
