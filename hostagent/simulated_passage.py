"""A passage between two simulated hosts: takes time, shows how far it is, and ends as it is told to.

What each host shows at every moment is the pure model's; here is only what happens between the two. Must not behave
better than libvirt: it can be withdrawn, starved, torn apart, and left behind in any pair of states.
"""

import threading
from typing import Literal

from msgspec import Struct

from vmorch.core.hostcommands import MigrateDomain, Sample, TuneMigration
from vmorch.core.hypervisor import Domain
from vmorch.core.migration import Cell

TICKS = 10
"""Samples that a passage without hindrance gives."""
STARVED_TICK = 0.02
_STARVED_AT = 0.2
"""What is left for ever of a passage that does not converge."""


class Leftover(Struct, frozen=True):
    """How the next passage ends: what each end shows then, and what libvirt's call says, if its daemon is there."""

    source: Cell
    destination: Cell
    call: Literal["done", "failed", "lost"]


class Passage:
    """One passage under way. `total` bytes take `seconds` if nothing hinders it."""

    def __init__(self, command: MigrateDomain, *, total: int, seconds: float, starved: bool) -> None:
        self.command = command
        self.broken = threading.Event()
        """Set from outside to end it before its guest is switched over."""
        self.over = threading.Event()
        self.before: Domain | None = None
        """What the destination knew of the domain before."""
        self._total = total
        self._seconds = seconds
        self._starved = starved
        self._postcopy = False
        self._done = 0.0
        self._throttle = 0

    @property
    def tick(self) -> float:
        """Seconds between two samples."""
        return max(self._seconds / TICKS, STARVED_TICK if self._starved else 0.0)

    @property
    def half_way(self) -> bool:
        """Whether a good part of it is there."""
        return self._done >= 1 / 2

    @property
    def arrived(self) -> bool:
        """Whether everything is there."""
        return self._done >= 1

    @property
    def switched(self) -> bool:
        """Whether the guest runs at its destination already, so that there is no way back."""
        return self._postcopy

    def tune(self, command: TuneMigration) -> str:
        """More time for the switch-over, or the switch-over itself, ends a passage that does not converge. Empty, or
        why that cannot be."""
        if command.postcopy and self.command.passage.on_stall != "postcopy":
            return "switching to post-copy requires migration to be started with VIR_MIGRATE_POSTCOPY flag"
        if command.postcopy:
            self.switch_over()
        if command.max_downtime is not None and command.max_downtime > self.command.passage.max_downtime:
            self._starved = False
        return ""

    def switch_over(self) -> None:
        """Let the guest run at its destination; the rest of its memory follows."""
        self._postcopy = True
        self._starved = False

    def advance(self, elapsed: float) -> Sample:
        """One tick more, and how far it is then."""
        self._done = min(1.0, self._done + 1 / TICKS)
        if self._starved and self._done > 1 - _STARVED_AT:
            self._done = 1 - _STARVED_AT
            if self.command.passage.slow_down:
                self._throttle = min(99, self._throttle + 10) if self._throttle else 20
        sent = round(self._total * self._done)
        rate = self._total / max(self._seconds, 0.001)
        return Sample(
            elapsed=elapsed,
            passes=2 if self._starved or self._done > 0.5 else 1,
            total=self._total,
            sent=sent,
            remaining=self._total - sent,
            bandwidth=rate,
            dirty_rate=rate * 2 if self._starved else 0,
            downtime=self.command.passage.max_downtime,
            throttle=self._throttle,
            postcopy=self._postcopy,
        )
