"""What emptying a host of four running guests costs through vmorch, against as many `virsh migrate` side by side.

    python -m bench.drain [--rounds N] [--guests N] [--calm SECONDS]

Needs root: it makes a lab of its own with two real libvirt hosts and removes it. Two sets of small guests run on shared
storage, one made by vmorch, one by libvirt's own calls; in each round both sets go to the other host, one after the
other, in turns. virsh is done when the last of the processes, all started at once, has ended; vmorch when the event
stream said that the drain is over, which is after every guest has answered again. Exits with 1 if the promise is missed
at the median. With `--wide N` several numbers of guests at once are compared for vmorch alone.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bench.figures import machine, ratios, spread, table
from bench.travellers import Travellers, travellers, virsh_migrate
from bench.warm import await_calm
from deploy.lab.host import Host

RATIO = 1.2
SETTLE = 1.5
"""Seconds between two drains."""


class GuestDied(Exception):
    """A guest's kernel met memory that it had not written: QEMU's software emulation loses a write now and then."""


class Bench:
    """The two sets of guests, each on one host at a time."""

    def __init__(self, guests: Travellers) -> None:
        self.guests, self.lab, self.api, self.moments = guests, guests.lab, guests.api, guests.moments
        self.at = {"virsh": 0, "vmorch": 0}

    def round(self, ways: "Sequence[tuple[str, Way]]", turn: int, calm: float) -> dict[str, float]:
        """Each way once, beginning with another one each turn. Raises GuestDied if a guest did not live through it."""
        walls = {}
        for name, way in (*ways[turn:], *ways[:turn]):
            await_calm(calm)
            try:
                walls[name] = way(self)
            finally:
                if dead := self.guests.dead():
                    raise GuestDied(", ".join(dead))
        return walls

    def by_virsh(self) -> float:
        source, destination = self._ends("virsh")
        with ThreadPoolExecutor(len(self.guests.direct)) as pool:
            began = time.monotonic()
            moves = [pool.submit(virsh_migrate, source, destination, vm) for vm in self.guests.direct]
            for move in moves:
                move.result()
        return self._done("virsh", began, time.monotonic())

    def by_vmorch(self, max_parallel: int | None = None) -> float:
        source, _ = self._ends("vmorch")
        self.api.warm()
        wanted = {"hosts": [source.name], "start": True}
        if max_parallel is not None:
            wanted["max_parallel"] = max_parallel
        began = time.monotonic()
        drain = str(self.api.ask("POST", "/v1/drains", wanted)["subject"])
        ended: float | None = None
        with contextlib.suppress(TimeoutError):
            ended = self.moments.after(began, "event", "drain.ended", "None")
        self.api.warm()
        found = self.api.ask("GET", f"/v1/drains/{drain}")["item"]
        if ended is None or found["state"] != "done":
            raise RuntimeError(f"the drain is {found['state']}: {found}")
        took = self._done("vmorch", began, ended)
        self.api.ask("POST", f"/v1/hosts/{source.name}/uncordon", {})
        return took

    def _ends(self, way: str) -> tuple[Host, Host]:
        return self.lab.hosts[self.at[way]], self.lab.hosts[1 - self.at[way]]

    def _done(self, way: str, began: float, ended: float) -> float:
        self.at[way] = 1 - self.at[way]
        time.sleep(SETTLE)
        return (ended - began) * 1000


Way = Callable[[Bench], float]


def rounds(wanted: int, guests: int, ways: Sequence[tuple[str, Way]], calm: float) -> list[dict[str, float]]:
    """So many whole rounds, each lab's first one left out; a lab in which a guest died is replaced."""
    found: list[dict[str, float]] = []
    while len(found) < wanted:
        with travellers(guests) as them:
            it = Bench(them)
            try:
                it.round(ways, 0, calm)
                while len(found) < wanted:
                    found.append(it.round(ways, len(found) % len(ways), calm))
            except GuestDied as dead:
                print(f"a guest's kernel died ({dead}): the round does not count, a new lab takes over", flush=True)
    return found


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.drain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds after one that warms up (default: 7)")
    parser.add_argument("--guests", type=int, default=4, help="guests on the host (default: 4)")
    parser.add_argument("--wide", type=int, nargs="*", default=[], help="also drain so many at once, such as 1 2 4")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds to wait for a calm machine (default: 15)")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    ways: list[tuple[str, Way]] = [("vmorch", Bench.by_vmorch), ("virsh", Bench.by_virsh)]
    ways += [(f"vmorch, {width} at once", partial(Bench.by_vmorch, max_parallel=width)) for width in arguments.wide]
    found = rounds(arguments.rounds, arguments.guests, ways, arguments.calm)
    walls = {way: [each[way] for each in found] for way, _ in ways}
    rows = [[way, spread(of), spread(ratios(of, walls["virsh"]), digits=2)] for way, of in walls.items()]
    print(f"Milliseconds for {arguments.guests} guests, median (lowest-highest) of {arguments.rounds} rounds.\n")
    print(table(["by", "wall time", "ratio to virsh"], rows))
    middle = statistics.median(ratios(walls["vmorch"], walls["virsh"]))
    if middle > RATIO:
        print(f"missed: {middle:.2f}x")
    return int(middle > RATIO)


if __name__ == "__main__":
    sys.exit(main())
