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
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.figures import machine, ratios, spread, table
from bench.leftovers import end_dead_labs, lab_name
from bench.lifecycle import PATIENCE, Api, Direct, Moments, await_calm
from bench.migration import virsh_migrate
from deploy.lab.container import wait_for
from deploy.lab.images import cached_tiny
from deploy.lab.lab import Lab
from deploy.lab.operator import cache_directory
from vmorch.core.ids import VmId
from vmorch.core.spec import ImagePin

MEMORY = 128
RATIO = 1.2
SETTLE = 1.5
"""Seconds between two drains."""


class Bench:
    """The two sets of guests, each on one host at a time."""

    def __init__(self, lab: Lab, api: Api, moments: Moments, direct: list[VmId]) -> None:
        self.lab, self.api, self.moments, self.direct = lab, api, moments, direct
        self.at = {"virsh": 0, "vmorch": 0}

    def by_virsh(self) -> float:
        source, destination = self._ends("virsh")
        with ThreadPoolExecutor(len(self.direct)) as pool:
            began = time.monotonic()
            moves = [pool.submit(virsh_migrate, source, destination, vm) for vm in self.direct]
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
        ended = self.moments.after(began, "event", "drain.ended", "None")
        took = self._done("vmorch", began, ended)
        self.api.warm()
        found = self.api.ask("GET", f"/v1/drains/{drain}")["item"]
        if found["state"] != "done":
            raise RuntimeError(f"the drain ended {found['state']}: {found}")
        self.api.ask("POST", f"/v1/hosts/{source.name}/uncordon", {})
        return took

    def _ends(self, way: str) -> tuple[object, object]:
        return self.lab.hosts[self.at[way]], self.lab.hosts[1 - self.at[way]]

    def _done(self, way: str, began: float, ended: float) -> float:
        self.at[way] = 1 - self.at[way]
        time.sleep(SETTLE)
        return (ended - began) * 1000


@contextlib.contextmanager
def bench(guests: int) -> Iterator[Bench]:
    """A lab of our own with all guests up."""
    end_dead_labs()
    lab = Lab(lab_name(os.getpid()))
    try:
        lab.up(2)
        moments = Moments()
        api = Api(lab.control.api_socket, lab.control.admin_token(), moments, trace=False)
        wait_for(lambda: len(api.ask("GET", "/v1/hosts?state=active")["items"]) == 2, PATIENCE, "the hosts' connection")
        image = cached_tiny(cache_directory())
        vmorch = str(Path(sys.executable).with_name("vmorch"))
        environment = {
            **os.environ,
            "VMORCH_API": f"unix:{lab.control.api_socket}",
            "VMORCH_TOKEN": lab.control.admin_token(),
        }
        subprocess.run([vmorch, "image", "add", "tiny", "--file", str(image)], env=environment, check=True)
        for number in range(guests):
            subprocess.run(
                [vmorch, "vm", "create", f"ours-{number}", "--image", "tiny", "--memory", f"{MEMORY}Mi",
                 "--storage", "shared", "--host", lab.hosts[0].name],
                env=environment, check=True,
            )  # fmt: skip
        api.warm()
        known = api.ask("GET", "/v1/images/tiny")["item"]
        pin = ImagePin(
            digest=known["digest"], format=known["format"], size=known["size"], virtual_size=known["virtual_size"]
        )
        direct = [VmId(str(uuid.uuid4())) for _ in range(guests)]
        calls = Direct(lab, pin, root="/srv/vmorch/shared")
        try:
            for vm in direct:
                calls.do("create", vm, "direct")
        finally:
            calls.close()
        consoles = [lab.directory / "shared" / "direct" / vm / "serial.log" for vm in direct]
        wait_for(
            lambda: all(each.exists() and "ready " in each.read_text(errors="replace") for each in consoles),
            180, "the other guests",
        )  # fmt: skip
        yield Bench(lab, api, moments, direct)
    finally:
        lab.down()


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
    walls: dict[str, list[float]] = {"virsh": [], "vmorch": []}
    walls |= {f"vmorch, {width} at once": [] for width in arguments.wide}
    with bench(arguments.guests) as it:
        ways = [("vmorch", it.by_vmorch), ("virsh", it.by_virsh)]
        ways += [(f"vmorch, {width} at once", lambda width=width: it.by_vmorch(width)) for width in arguments.wide]
        for number in range(arguments.rounds + 1):
            turn = number % len(ways)
            for way, empty in ways[turn:] + ways[:turn]:
                await_calm(arguments.calm)
                wall = empty()
                if number:
                    walls[way].append(wall)
    rows = [[way, spread(of), spread(ratios(of, walls["virsh"]), digits=2)] for way, of in walls.items()]
    print(f"Milliseconds for {arguments.guests} guests, median (lowest-highest) of {arguments.rounds} rounds.\n")
    print(table(["by", "wall time", "ratio to virsh"], rows))
    middle = statistics.median(ratios(walls["vmorch"], walls["virsh"]))
    if middle > RATIO:
        print(f"missed: {middle:.2f}x")
    return int(middle > RATIO)


if __name__ == "__main__":
    sys.exit(main())
