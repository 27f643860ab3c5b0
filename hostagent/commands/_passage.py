"""Watch over a passage until it is over: show how far it is, and end it when it was withdrawn or will not end.

Every question to QEMU is asked in a thread of its own, because in the switch-over over a dead line QEMU answers none.
Must not decide when to give up (the core does), nor whose the guest is afterwards.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt
import structlog
from msgspec.structs import replace

from hostagent.commands import _sockets
from hostagent.commands._aside import Call
from hostagent.commands._errors import is_absent, is_busy
from hostagent.commands._host import Host
from hostagent.commands._samples import is_over, sample_of
from hostagent.hypervisor import Expired, Scope, Withdrawn
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import MigrateDomain, Passage, Sample
from vmorch.core.migration import Track, follow, steer

SAMPLE_EVERY = 0.4
_LOOK_EVERY = 0.2
ABORT_SECONDS = 5.0
"""How long libvirt has to give a passage up when it is told to; then its line is cut."""
CUT_SECONDS = 15.0
_ASK_AGAIN = 0.25
SWITCH_SECONDS = 10.0
"""How long QEMU has to switch a guest over when it is told to."""
HALTED_SECONDS = 15.0
"""How long a guest may stand still in its switch-over, beyond the downtime that was allowed, before it is ended."""
SILENCE_SECONDS = 15.0
"""How long a guest that was switched over may get no page before the line counts as dead."""

_POSTCOPY = frozenset({libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED})

Ending = Withdrawn | Expired | Rejected
"""Why a passage was ended by its watcher."""

_log = structlog.get_logger(__name__)


def halted_for(connection: Any, command: MigrateDomain) -> int | None:
    """Why the domain is halted, None if it is not, or is not here. Never waits for QEMU."""
    try:
        state, reason = connection.lookupByUUIDString(command.vm).state()
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise
    return int(reason) if state == libvirt.VIR_DOMAIN_PAUSED else None


class Meter:
    """Takes samples of a domain's migration job until `close`. `gone` is set once there is no such job, unless it is
    still `coming`; `ended` is called, in the meter's thread, when no more samples are taken."""

    def __init__(
        self,
        domain: Any,
        queries: Any,
        command: MigrateDomain,
        scope: Scope,
        *,
        coming: bool,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.gone = threading.Event()
        self.newest: Sample | None = None
        self._domain = domain
        self._queries = queries
        self._command = command
        self._scope = scope
        self._coming = coming
        self._ended = ended
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="vmorch-meter", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._closed.set()

    def _run(self) -> None:
        try:
            memory = self._domain.maxMemory() * 1024
            while not self._closed.is_set() and self._take(memory):
                self._closed.wait(SAMPLE_EVERY)
        except libvirt.libvirtError as error:
            # gone, or libvirt itself is: who waits for the job finds out
            _log.debug("no more samples", vm=self._command.vm, error=str(error))
        finally:
            self._ended()
            self.gone.set()

    def _take(self, memory: int) -> bool:
        """Whether there is a job, or one to come."""
        try:
            stats = self._domain.jobStats()
        except libvirt.libvirtError as error:
            if is_busy(error):
                # QEMU owes libvirt an answer: something is still under way
                return True
            raise
        reason = halted_for(self._queries, self._command)
        if is_over(stats) or reason == libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED:
            return self._coming
        elapsed = stats.get(libvirt.VIR_DOMAIN_JOB_TIME_ELAPSED, 0) / 1000
        sample = sample_of(stats, elapsed=elapsed, memory=memory, postcopy=reason in _POSTCOPY)
        if not self._closed.is_set():
            self.newest = sample
            self._scope.tell(sample)
        return True


class Watch:
    """Watches one passage, whose end sets `over`."""

    def __init__(
        self, command: MigrateDomain, host: Host, scope: Scope, domain: Any, passage: Passage, over: threading.Event
    ) -> None:
        """`domain` is on a line of its own; `passage` says what is possible for this guest."""
        self._command = command
        self._host = host
        self._scope = scope
        self._domain = domain
        self._passage = passage
        self._over = over
        self._aborting: Call | None = None
        self._cut = False
        self._switching: tuple[float, Call] | None = None
        self._halted: float | None = None

    def until_over(self, meter: Meter) -> Ending | None:
        """Return when the passage is over, or will not end whatever is done; then, why it was to be ended, if it was.
        Raises HypervisorLost."""
        began, track = time.monotonic(), Track()
        tunings = self._host.passages.tunings(self._command.vm)
        first: float | None = None
        while not self._over.wait(_LOOK_EVERY):
            now = time.monotonic() - began
            sample = meter.newest
            if sample is not None and first is None:
                # a job that is followed began before its watcher
                first = max(0.0, sample.elapsed - now)
                track = Track(improved=sample.elapsed)
            sample = replace(sample or Sample(elapsed=0), elapsed=now + (first or 0.0))
            if (tuned := self._host.passages.tunings(self._command.vm)) != tunings:
                # new limits are given the time to show
                tunings, track = tuned, replace(track, improved=sample.elapsed)
            track = follow(track, sample)
            reason = halted_for(self._host.link.queries, self._command)
            if sample.postcopy or reason in _POSTCOPY:
                # there is no way back for this guest, so nothing ends it but a line that stays dead
                silent = self._silent(sample.elapsed - track.improved)
                if silent is not None:
                    return silent
                continue
            ending = self._withdrawn() or self._overdue(reason) or self._steered(track, sample)
            if ending is not None and self._ended():
                return ending
        return None

    def _withdrawn(self) -> Ending | None:
        try:
            self._scope.check()
        except (Withdrawn, Expired) as ending:
            return ending
        return None

    def _overdue(self, reason: int | None) -> Ending | None:
        """Why a switch-over has to end: QEMU answers no question in it, so no sample tells that it hangs."""
        command = self._command
        if command.copy or reason != libvirt.VIR_DOMAIN_PAUSED_MIGRATION:
            # disks that go along are carried to their end while the guest is halted
            self._halted = None
            return None
        now = time.monotonic()
        self._halted = self._halted or now
        allowed = max(self._passage.max_downtime, self._host.passages.max_downtime(command.vm) or 0.0)
        seconds = now - self._halted
        if seconds < HALTED_SECONDS + 2 * allowed:
            return None
        return Rejected("migration-failed", f"the guest stood still for {seconds:.0f} s in its switch-over")

    def _steered(self, track: Track, sample: Sample) -> Ending | None:
        what, why = steer(track, sample, self._passage)
        match what:
            case "go-on":
                return None
            case "postcopy":
                return self._switch(why)
            case "abort":
                return Rejected("migration-stalled", why)

    def _switch(self, why: str) -> Ending | None:
        """Switch the guest over; give up if QEMU does not."""
        now = time.monotonic()
        if self._switching is None:
            _log.info("switching the guest over", vm=self._command.vm, reason=why)
            self._switching = (now, Call(self._domain.migrateStartPostCopy))
        since, call = self._switching
        if call.over.is_set() and call.error is not None:
            return Rejected("migration-stalled", f"{why}; not switched over: {call.error.get_error_message()}")
        return Rejected("migration-stalled", f"{why}; not switched over") if now - since > SWITCH_SECONDS else None

    def _silent(self, seconds: float) -> Ending | None:
        """Let the passage of a guest that gets no pages fail, so that it can be taken up again; give it up if it does
        not even fail."""
        if seconds > SILENCE_SECONDS and (self._aborting is None or self._aborting.over.is_set()):
            flags = libvirt.VIR_DOMAIN_ABORT_JOB_POSTCOPY
            self._aborting = Call(lambda: self._domain.abortJobFlags(flags))
        if seconds > SILENCE_SECONDS + ABORT_SECONDS and not self._cut:
            self._cut = True
            _sockets.cut(self._command.vm, self._command.address)
        if seconds > SILENCE_SECONDS + ABORT_SECONDS + CUT_SECONDS:
            return Rejected("migration-failed", f"nothing of the guest came over for {seconds:.0f} s")
        return None

    def _ended(self) -> bool:
        """End the passage. False if it cannot be ended any more, because its guest was switched over."""
        command = self._command
        began = time.monotonic()
        while not self._over.is_set() and time.monotonic() - began < ABORT_SECONDS:
            if self._is_switched_over():
                return False
            # too early there is no job to abort yet, so it is asked for again
            if self._aborting is None or self._aborting.over.is_set():
                self._aborting = Call(self._domain.abortJob)
            self._over.wait(_ASK_AGAIN)
        if not self._over.is_set():
            _sockets.cut(command.vm, command.address)
            self._over.wait(CUT_SECONDS)
        return True

    def _is_switched_over(self) -> bool:
        return halted_for(self._host.link.queries, self._command) in _POSTCOPY
