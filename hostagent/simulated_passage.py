"""A passage between two simulated machines: takes time, shows how far it is, and ends as it is told to.

What each machine shows at every moment is the pure model's; here is only what happens between the two. Must not behave
better than libvirt: it can be withdrawn, starved, torn apart, and left behind in any pair of states.
"""

import threading
import time
from collections.abc import Callable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from hostagent.hypervisor import Expired, HypervisorLost, Scope, Withdrawn
from hostagent.simulated_site import Machine, set_halves
from vmorch.core.hostcommands import Answer, Done, Failed, MigrateDomain, Sample, TuneMigration
from vmorch.core.hypervisor import Domain, arriving, disk_key, half_in, with_copies
from vmorch.core.migration import Cell, Track, follow, steer

TICKS = 10
"""Samples that a passage without hindrance gives."""
STARVED_TICK = 0.02
_STARVED_AT = 0.2
"""What is left for ever of a passage that does not converge."""


class Leftover(Struct, frozen=True):
    """How a passage ends: what each end shows then, and what libvirt's call says, if its daemon is there."""

    source: Cell
    destination: Cell
    call: Literal["done", "failed", "lost"]


class Progress:
    """How far a passage is. `total` bytes take `seconds` if nothing hinders it."""

    def __init__(self, command: MigrateDomain, *, total: int, seconds: float, starved: bool) -> None:
        self._command = command
        self._total = total
        self._seconds = seconds
        self._starved = starved
        self._done = 0.0
        self._throttle = 0
        self.switched = False
        """Whether the guest runs at its destination already, so that there is no way back."""

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

    def tune(self, command: TuneMigration) -> str:
        """More time for the switch-over, or the switch-over itself, ends a passage that does not converge. Empty, or
        why that cannot be."""
        if command.postcopy and self._command.passage.on_stall != "postcopy":
            return "switching to post-copy requires migration to be started with VIR_MIGRATE_POSTCOPY flag"
        if command.postcopy:
            self.switch_over()
        if command.max_downtime is not None and command.max_downtime > self._command.passage.max_downtime:
            self._starved = False
        return ""

    def switch_over(self) -> None:
        """Let the guest run at its destination; the rest of its memory follows."""
        self.switched = True
        self._starved = False

    def advance(self, elapsed: float) -> Sample:
        """One tick more, and how far it is then."""
        self._done = min(1.0, self._done + 1 / TICKS)
        if self._starved and self._done > 1 - _STARVED_AT:
            self._done = 1 - _STARVED_AT
            if self._command.passage.slow_down:
                self._throttle = min(99, self._throttle + 10) if self._throttle else 20
        sent = round(self._total * self._done)
        rate = self._total / max(self._seconds, 0.001)
        return Sample(
            elapsed=elapsed,
            passes=2 if self._starved or self._done > 1 / 2 else 1,
            total=self._total,
            sent=sent,
            remaining=self._total - sent,
            bandwidth=rate,
            dirty_rate=rate * 2 if self._starved else 0,
            downtime=self._command.passage.max_downtime,
            throttle=self._throttle,
            postcopy=self.switched,
        )


class Passage:
    """One passage of a domain from a machine to another one, as libvirt's own call carries it out."""

    def __init__(
        self, command: MigrateDomain, domain: Domain, source: Machine, destination: Machine, progress: Progress
    ) -> None:
        self.progress = progress
        self.broken = threading.Event()
        """Set from outside to end it before its guest is switched over."""
        self.over = threading.Event()
        self._command = command
        self._vm = command.vm
        self._domain = domain
        self._source = source
        self._destination = destination
        # libvirt takes over a configuration that stands there, and leaves it if the guest does not come
        self._before = destination.host.domains.get(command.vm)

    def carry(self, scope: Scope, sleep: Callable[[float, Scope], None], *, lost: bool, leftover: Leftover) -> Answer:
        """How the call ends, with the halves as `leftover` says if nothing ends it before; `lost`: its own daemon ends
        on the way. Raises Withdrawn, Expired, HypervisorLost."""
        self._halves(replace(self._domain, moving=True), arriving(self._domain))
        try:
            return self._travel(scope, sleep, lost=lost) or self._arrive(leftover)
        finally:
            self.over.set()

    def follow(self, scope: Scope, sleep: Callable[[float, Scope], None]) -> None:
        """Wait for its end on behalf of an agent that did not begin it. Raises Withdrawn, Expired."""
        while not self.over.is_set():
            try:
                sleep(STARVED_TICK, scope)
            except (Withdrawn, Expired):
                self.broken.set()
                self.over.wait()
                raise

    def _travel(self, scope: Scope, sleep: Callable[[float, Scope], None], *, lost: bool) -> Failed | None:
        progress, began, track = self.progress, time.monotonic(), Track()
        while not progress.arrived:
            if lost and progress.half_way:
                self._source.vanish()
            try:
                sleep(progress.tick, scope)
            except (Withdrawn, Expired):
                # there is no way back for a guest that was switched over
                if not progress.switched:
                    self._stay()
                    raise
                time.sleep(STARVED_TICK)
            if self.broken.is_set() or not self._source.here or not self._destination.here:
                return self._break()
            sample = progress.advance(time.monotonic() - began)
            scope.tell(sample)
            track = follow(track, sample)
            what, why = steer(track, sample, self._command.passage)
            if what == "abort":
                self._stay()
                return self._failed("migration-stalled", why)
            if what == "postcopy":
                progress.switch_over()
            if progress.switched:
                halted = replace(self._domain, power="paused", reason="postcopy", moving=True)
                self._halves(halted, replace(self._domain, power="running", reason="postcopy", moving=True))
        return None

    def _arrive(self, leftover: Leftover) -> Answer:
        arrived = half_in(leftover.destination, self._domain)
        if arrived is not None and leftover.call == "done" and self._domain.power == "paused":
            arrived = replace(arrived, reason=self._domain.reason)
        if arrived is not None and self._command.copy:
            brought, source = self._command.copy, self._source.host
            self._destination.tamper(lambda host: with_copies(host, self._vm, source, brought))
        self._halves(half_in(leftover.source, self._domain), arrived)
        match leftover.call:
            case "done":
                return Done(observed=self._source.observe(self._vm))
            case "failed":
                return self._failed("migration-failed", "client socket is closed")
            case "lost":
                self._source.vanish()
                raise HypervisorLost("the daemon ended")

    def _break(self) -> Failed:
        """End it because a daemon went away, or because it was broken off. Raises HypervisorLost."""
        if self.progress.switched:
            reason = "postcopy failed"
            half = replace(self._domain, power="paused", reason=reason)
            self._halves(half, replace(self._domain, power="running", reason=reason))
        else:
            self._stay()
        self._source.reachable()
        why = "operation aborted" if self._destination.here else "client socket is closed"
        return self._failed("migration-failed", why)

    def _stay(self) -> None:
        self._halves(self._domain, self._before)

    def _halves(self, left: Domain | None, arrived: Domain | None) -> None:
        set_halves(self._vm, self._source, left, self._destination, arrived)

    def _failed(self, code: str, why: str) -> Failed:
        return Failed(code=code, message=why, observed=self._source.observe(self._vm))


def obstacle(command: MigrateDomain, domain: Domain, destination: Machine | None) -> str:
    """Why libvirt does not even begin; empty if it does."""
    if destination is None or not destination.here:
        return f"unable to connect to server at {command.address}"
    twin = destination.host.domains.get(command.vm)
    if twin is not None and twin.active:
        return f"domain {command.vm} is already active"
    left = [disk.name for disk in domain.disks if disk.storage == "local" and disk.name not in command.copy]
    if left:
        return f"disk {', '.join(left)} is on local storage and would stay behind"
    there = destination.host.disks.get(command.vm, {})
    lacking = [disk.name for disk in domain.disks if disk_key(disk) not in there]
    return f"cannot access storage of {', '.join(lacking)}" if lacking else ""
