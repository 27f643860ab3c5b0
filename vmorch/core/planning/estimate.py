"""How long a move takes, roughly: for people who plan an evening, never for a decision about safety.

The rates are those of a plain 10 Gbit/s network and of ordinary disks, not measured in the cluster at hand.
"""

from collections.abc import Iterable

from vmorch.core.aggregates.drain import How, Move
from vmorch.core.aggregates.vm import Vm
from vmorch.core.ids import HostId

NETWORK = 900.0
"""MiB of memory a second out of one host; a guest that writes meanwhile needs part of it twice."""
REWRITTEN = 1.2
DISKS = 200.0
"""MiB of disk a second, copied from host to host."""
OVERHEAD = {"live": 3.0, "offline": 3.0, "restart": 25.0, "stop": 15.0, "start": 15.0}
"""Seconds for everything that does not grow with the VM: checks, switch-over, a guest that shuts down or boots."""

SLACK = 10
LEAST, MOST = 300.0, 6 * 3600.0
"""Bounds in seconds of the time that a move is given: so many times its estimate, within these."""


def carried(vm: Vm, how: How, *, copy_disks: bool) -> float:
    """MiB-seconds on an idle network: what the VM's memory and disks take to travel, in seconds."""
    assert vm.spec is not None
    disks = sum(disk.size for disk in vm.spec.disks if disk.storage == "local") if copy_disks else 0
    memory = (vm.live_memory or vm.spec.memory) if how == "live" else 0
    return memory * REWRITTEN / NETWORK + disks * 1024 / DISKS


def estimate(vm: Vm, how: How, *, copy_disks: bool) -> float:
    """Seconds for one VM on its own."""
    return round(OVERHEAD[how] + carried(vm, how, copy_disks=copy_disks), 1)


def within(seconds: float) -> float:
    """How long a move with this estimate may take until it is given up."""
    return min(max(SLACK * seconds, LEAST), MOST)


def together(moves: Iterable[Move]) -> float:
    """Seconds until all of these are over that begin at once: those of one host share its network."""
    by_source: dict[HostId, list[Move]] = {}
    for move in moves:
        by_source.setdefault(move.source, []).append(move)
    longest = 0.0
    for found in by_source.values():
        shared = sum(max(move.estimate - OVERHEAD[move.how], 0.0) for move in found)
        longest = max(longest, shared + max(OVERHEAD[move.how] for move in found))
    return longest
