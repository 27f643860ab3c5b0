"""What a question about the past costs, on a short log and on one ten times as long.

    python -m bench.asof [--events N ...] [--rounds N]

Each log holds the same 1,000 living VMs (and the deleted ones that the state remembers) in 125 invented clusters, on an
embedded Postgres, with the checkpoints that the server writes. Each round asks for one VM by its id, for the list of
VMs with the documents of its first 1,000, and for that list a second time, at a random position, with nothing in
memory but what the round itself put there; wall time from the question to the encoded documents, without HTTP. The
last column folds from the beginning instead, once, as it would be without checkpoints.
"""

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from pathlib import Path

from bench.figures import machine, spread, table
from bench.invented import appends, log
from vmorch.core.ids import Position
from vmorch.core.resources import vm_resource
from vmorch.edge import answers
from vmorch.embedded import EmbeddedPostgres
from vmorch.engine.checkpoints import EVERY, Checkpoints
from vmorch.engine.history import History
from vmorch.log import schema
from vmorch.log.state_store import StateStore
from vmorch.log.store import EventLog
from vmorch.views.filters import Filters
from vmorch.views.past import rows_of

CLUSTERS = 125
PAGE = 1000


async def one_vm(history: History, id: str, at: Position) -> float:
    began = time.perf_counter()
    fleet = await history.around_vm(id, at)
    assert answers.encode(vm_resource(fleet, fleet.find_vm(id)))
    return (time.perf_counter() - began) * 1000


async def every_vm(history: History, at: Position) -> float:
    began = time.perf_counter()
    rows = rows_of(await history.standing(at), "vms", Filters())
    assert len([row["doc"] for row in rows[:PAGE]]) > PAGE / 2
    return (time.perf_counter() - began) * 1000


async def measure(url: str, events: int, rounds: int) -> tuple[str, ...]:
    store, states = await EventLog.open(url), StateStore(url)
    try:
        for append in appends(log(events, clusters=CLUSTERS)):
            await store.append(append)
        began = time.perf_counter()
        written = await Checkpoints(History(store, states), states).catch_up()
        each = (time.perf_counter() - began) / written
        assert written == events // EVERY
        gc.collect()
        gc.freeze()
        chance = random.Random(events)
        alone, whole, again, vms = [], [], [], []
        for _ in range(rounds):
            at = Position(chance.randrange(events // 2, events))
            history = History(store, states)
            fleet = await history.fleet(at)
            living = [vm.id for vm in fleet.vms.values() if vm.deleted_at is None and vm.spec is not None]
            vms.append(float(len(living)))
            alone.append(await one_vm(History(store, states), chance.choice(living), at))
            history = History(store, states)
            whole.append(await every_vm(history, at))
            again.append(await every_vm(history, at))
        bare = await every_vm(History(store, None), Position(events))
    finally:
        await states.close()
        await store.close()
    return (
        f"{events:,}",
        spread(vms),
        spread(alone),
        spread(whole),
        spread(again),
        f"{bare:,.0f}",
        f"{each:.1f}",
    )


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.asof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000], help="lengths of the logs")
    parser.add_argument("--rounds", type=int, default=31, help="questions of each sort (default: 31)")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    rows = []
    for events in arguments.events:
        with tempfile.TemporaryDirectory(prefix="vmorch-bench-") as place:
            Path(place).chmod(0o711)
            with EmbeddedPostgres(Path(place) / "postgres") as server:
                schema.upgrade(server.url())
                schema.create_logins(server.url())
                rows.append(asyncio.run(measure(server.url(user=schema.APP_LOGIN), events, arguments.rounds)))
        print(f"{events:,} events measured", file=sys.stderr, flush=True)
    head = ["events", "living VMs", "one VM, ms", "list of VMs, ms", "the same again, ms", "without checkpoints, ms"]
    print(table([*head, "s to make one"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
