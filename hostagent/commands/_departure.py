"""Carry one guest through to another host, from libvirt's call to its end, however often the line breaks.

Must not look at what the guest is or carries along: that is seen to before.
"""

import socket
import time
from contextlib import suppress
from typing import Any

import libvirt
import structlog
from msgspec.structs import replace

from hostagent.commands import _sockets
from hostagent.commands._aside import Call
from hostagent.commands._errors import has_nothing_to_take_up
from hostagent.commands._host import Host
from hostagent.commands._passage import Ending, Meter, Watch, halted_for
from hostagent.commands._route import route
from hostagent.hypervisor import HypervisorLost, Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import MigrateDomain

CONNECT_SECONDS = 5.0
"""How long the destination's libvirt has to answer before anything is begun; a call to a dead host cannot be ended."""
RECOVERIES, RECOVER_EVERY, RECOVER_SECONDS = 30, 2.0, 90.0
"""How often, after how many seconds each, and for how long at most the passage of a guest that was switched over is
taken up again when its line broke."""

_log = structlog.get_logger(__name__)


class Departure:
    """A guest's way to its destination. `domain` is on a line of its own; `running` tells whether the guest runs."""

    def __init__(self, command: MigrateDomain, host: Host, scope: Scope, domain: Any, *, running: bool) -> None:
        self._command = command
        self._host = host
        self._scope = scope
        self._domain = domain
        asked = command.passage
        # a halted guest has nothing to be switched over for, and one with disks under way cannot be
        postcopy = asked.on_stall == "postcopy" and running and not command.copy
        self._passage = asked if postcopy else replace(asked, on_stall="abort")
        self._route = route(command, host, postcopy=postcopy, shared="shared" in host.layout.storages)

    def leave(self) -> None:
        """Return when libvirt says that the guest has left. Raises Rejected, Withdrawn or Expired when it has not,
        HypervisorLost when nobody knows."""
        self._check_answers(min(CONNECT_SECONDS, self._scope.remaining()))
        self._domain.migrateSetMaxDowntime(max(1, round(self._command.passage.max_downtime * 1000)))
        call, ending = self._carry(self._route.flags)
        if call.over.is_set():
            call = self._take_up() or call
        if not call.over.is_set():
            raise _does_not_end(ending)
        if call.error is None:
            return
        words = call.error.get_error_message() or str(call.error)
        _log.info("passage ended with an error", vm=self._command.vm, error=words)
        # the words may be those of the destination's libvirt, so whether ours is away is asked of our own line
        if not self._is_line_alive():
            raise HypervisorLost(words)
        raise ending or Rejected("migration-failed", words)

    def follow(self) -> Ending | None:
        """Wait for the end of a passage that libvirt goes on with by itself; why it was to be ended, if it was.
        Raises Rejected if it does not end, HypervisorLost."""
        vm, passages = self._command.vm, self._host.passages
        passages.begun(vm)
        # no call of ours ends with this job, so its meter goes on until it is gone
        meter = Meter(
            self._domain,
            self._host.link.queries,
            self._command,
            self._scope,
            coming=False,
            ended=lambda: passages.ended(vm),
        )
        watch = Watch(self._command, self._host, self._scope, self._domain, self._passage, meter.gone)
        ending = watch.until_over(meter)
        if not meter.gone.is_set():
            raise _does_not_end(ending)
        self._take_up()
        return ending

    def _carry(self, flags: int) -> tuple[Call, Ending | None]:
        """libvirt's call at its end, or still hanging, and why it was to be ended, if it was."""
        vm, passages, route = self._command.vm, self._host.passages, self._route
        passages.begun(vm)
        call = Call(
            lambda: self._domain.migrateToURI3(route.uri, route.parameters, flags),
            lambda: passages.ended(vm),
        )
        meter = Meter(self._domain, self._host.link.queries, self._command, self._scope, coming=True)
        watch = Watch(self._command, self._host, self._scope, self._domain, self._passage, call.over)
        try:
            return call, watch.until_over(meter)
        finally:
            meter.close()

    def _take_up(self) -> Call | None:
        """Take up the passage of a guest that was switched over and whose line broke: half its memory is still here.
        The last call, None if there was nothing to take up."""
        call, began, cut = None, time.monotonic(), False
        flags = self._route.flags | libvirt.VIR_MIGRATE_POSTCOPY | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
        for attempt in range(RECOVERIES):
            passed = time.monotonic() - began
            if passed > RECOVER_SECONDS or not self._is_broken():
                break
            if passed > RECOVER_SECONDS / 3 and not cut:
                # libvirt has given the line up, QEMU has not, and cannot take up what it still holds on to
                _sockets.cut(self._command.vm, self._command.address)
                cut = True
            # not at once: the other end has to notice first
            time.sleep(RECOVER_EVERY)
            _log.warning("taking up a broken passage again", vm=self._command.vm, attempt=attempt)
            with suppress(Rejected):
                self._check_answers(CONNECT_SECONDS)
                call, _ = self._carry(flags)
                if not call.over.is_set() or (call.error is not None and has_nothing_to_take_up(call.error)):
                    break
        return call

    def _is_broken(self) -> bool:
        reason = halted_for(self._host.link.queries, self._command)
        return reason is not None and reason == libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED

    def _is_line_alive(self) -> bool:
        try:
            return bool(self._domain.connect().isAlive())
        except libvirt.libvirtError:
            return False

    def _check_answers(self, seconds: float) -> None:
        address, port = self._command.address, self._route.port
        try:
            with socket.create_connection((address, port), timeout=seconds):
                pass
        except OSError as error:
            why = error.strerror or str(error)
            raise Rejected("migration-failed", f"libvirt at {address} port {port}: {why}") from error


def _does_not_end(ending: Ending | None) -> Rejected:
    why = ending.reason if isinstance(ending, Rejected) else "the order was given up"
    return Rejected("migration-failed", f"{why}, but libvirt's migration does not end")
