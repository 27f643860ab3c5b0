"""What a live migration costs through vmorch, against `virsh migrate` with the same flags between the same hosts.

    python -m bench.migration [--rounds N] [--calm SECONDS]

Needs root: it makes a lab of its own with two real libvirt hosts and removes it. Two small guests run on shared
storage, one made by vmorch, one by libvirt's own calls; in each round both go to the other host, one after the other,
in an order that turns. Compared are the wall time until the caller knows (virsh: the process ended; API: the event
stream said that the operation finished; CLI: the process ended) and the guest's pause as libvirt itself gives it when
its job has completed. The migration by vmorch ends only when both hosts were looked at, the source was cleared and the
guest has answered again. Exits with 1 if a promise is missed at the median.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import libvirt

from bench.figures import machine, ratios, spread, table
from bench.travellers import Travellers, travellers, virsh_migrate
from bench.warm import Moments, await_calm, libvirt_events
from deploy.lab.lab import Lab

RATIO = 1.15
SETTLE = 1.0
"""Seconds between two migrations: a guest's agent needs a moment after its arrival."""


class Pauses:
    """The pause of each guest's last migration, as the source's libvirt tells it at the end of its job."""

    def __init__(self, lab: Lab, moments: Moments) -> None:
        libvirt_events()
        self.newest: dict[str, float] = {}
        self.connections = [libvirt.open(host.uri) for host in lab.hosts]
        self.moments = moments
        for connection in self.connections:
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._completed, None)

    def _completed(self, _connection: Any, domain: Any, stats: dict[str, Any], _data: object) -> None:
        self.newest[domain.UUIDString()] = float(stats.get("downtime", 0))
        self.moments.note("job", domain.UUIDString())

    def of(self, vm: str, began: float) -> float:
        """Milliseconds of pause in the migration that began then."""
        self.moments.after(began, "job", vm)
        return self.newest[vm]


class Bench:
    """Two guests and the ways to move them."""

    def __init__(self, guests: Travellers) -> None:
        self.lab, self.api, self.moments = guests.lab, guests.api, guests.moments
        self.vmorch = guests.warm.vmorch
        self.pauses = Pauses(guests.lab, guests.moments)
        (self.direct,), (self.ours,) = guests.direct, guests.ours
        self.at: dict[str, int] = {self.direct: 0, self.ours: 0}

    def by_virsh(self) -> tuple[float, float]:
        source, destination = self._ends(self.direct)
        began = time.monotonic()
        virsh_migrate(source, destination, self.direct)
        return self._done(self.direct, began, time.monotonic())

    def by_api(self) -> tuple[float, float]:
        _, destination = self._ends(self.ours)
        self.api.warm()
        began = time.monotonic()
        accepted = self.api.ask("POST", f"/v1/vms/{self.ours}/migrate", {"to": destination.name})
        ended = self.moments.after(began, "event", "vm.operation-finished", accepted["operation"])
        return self._done(self.ours, began, ended)

    def by_cli(self) -> tuple[float, float]:
        _, destination = self._ends(self.ours)
        began = time.monotonic()
        self.vmorch("vm", "migrate", self.ours, "--to", destination.name)
        return self._done(self.ours, began, time.monotonic())

    def _ends(self, vm: str) -> tuple[Any, Any]:
        return self.lab.hosts[self.at[vm]], self.lab.hosts[1 - self.at[vm]]

    def _done(self, vm: str, began: float, ended: float) -> tuple[float, float]:
        pause = self.pauses.of(vm, began)
        self.at[vm] = 1 - self.at[vm]
        time.sleep(SETTLE)
        return (ended - began) * 1000, pause


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.migration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds after one that warms up (default: 9)")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds to wait for a calm machine (default: 15)")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    walls: dict[str, list[float]] = {"virsh": [], "API": [], "CLI": []}
    pauses: dict[str, list[float]] = {"virsh": [], "API": [], "CLI": []}
    with travellers(1) as guests:
        it = Bench(guests)
        ways = [("API", it.by_api), ("virsh", it.by_virsh), ("CLI", it.by_cli)]
        for number in range(arguments.rounds + 1):
            turn = number % len(ways)
            for way, move in ways[turn:] + ways[:turn]:
                await_calm(arguments.calm)
                wall, pause = move()
                if number:
                    walls[way].append(wall)
                    pauses[way].append(pause)
    rows, missed = [], []
    for way in walls:
        found, paused = ratios(walls[way], walls["virsh"]), ratios(pauses[way], pauses["virsh"])
        rows.append([way, spread(walls[way]), spread(found, digits=2), spread(pauses[way]), spread(paused, digits=2)])
        if way == "API" and statistics.median(found) > RATIO:
            missed.append(f"wall time by {way}: {statistics.median(found):.2f}x")
    print(f"Milliseconds, median (lowest-highest) of {arguments.rounds} rounds; ratios to virsh of the same round.\n")
    print(table(["by", "wall time", "ratio", "guest's pause", "ratio"], rows))
    for each in missed:
        print(f"missed: {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
