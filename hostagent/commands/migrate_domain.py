"""Carry a guest to another host while it runs. Blocks until libvirt's own call is over, however long that takes.

The answer tells how that call ended, not where the guest is. If the agent stops in the middle, libvirt goes on by
itself, and whoever asks later follows it to its end.
"""

import socket
import time
from contextlib import suppress
from typing import Any

import libvirt
import structlog
from msgspec.structs import replace

from hostagent.commands import _luggage, _sockets
from hostagent.commands._aside import Call
from hostagent.commands._domain import find, observe, observe_vm
from hostagent.commands._errors import has_nothing_to_take_up, refusal_of
from hostagent.commands._host import Host
from hostagent.commands._passage import Ending, Meter, Watch, halted_for
from hostagent.commands._registry import handles
from hostagent.commands._route import Route, route
from hostagent.domain_xml import read_disks
from hostagent.hypervisor import HypervisorLost, Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, MigrateDomain, Observed, Passage
from vmorch.core.migration import HALTED

CONNECT_SECONDS = 5.0
"""How long the destination's libvirt has to answer before anything is begun; a call to a dead host cannot be ended."""
RECOVERIES, RECOVER_EVERY, RECOVER_SECONDS = 30, 2.0, 90.0
"""How often, after how many seconds each, and for how long at most the passage of a guest that was switched over is
taken up again when its line broke."""
_ACTIVATES_PAUSED_GUESTS = 10_000_000
"""The QEMU from which on a guest that came halted can leave halted; older ones die of it."""

_log = structlog.get_logger(__name__)


def _reached(command: MigrateDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None:
        return True
    seen = observe(host, domain)
    return (seen.power, seen.reason) == ("off", "migrated")


def _follow(command: MigrateDomain, host: Host, scope: Scope) -> None:
    """Wait for the end of what libvirt goes on with. Raises what the passage was ended for, if it was."""
    domain = find(host, command.vm)
    if domain is None or not domain.isActive():
        return
    seen = observe(host, domain)
    way = _Way(command, host, running=seen.power == "running" or seen.reason in HALTED)
    with host.passages.under_way(command.vm), host.link.line() as line:
        leaving = line.lookupByUUIDString(command.vm)
        meter = Meter(leaving, host.link.queries, command, scope, coming=False)
        try:
            ending = Watch(command, host, scope, leaving, way.passage, meter.gone).until_over(meter)
        finally:
            meter.close()
        _recover(command, host, scope, leaving, way)
    _still_here(command, host)
    if ending is not None and find(host, command.vm) is not None:
        raise ending


@handles(MigrateDomain, reached=_reached, follow=_follow)
def migrate_domain(command: MigrateDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    if domain is None:
        return Done(observed=Observed(power="absent"), already=True)
    seen = observe(host, domain)
    _check_can_leave(command, host, domain, seen)
    way = _Way(command, host, running=seen.power == "running")
    scope.check()
    _luggage.pack(domain)
    with host.link.line() as line:
        leaving = line.lookupByUUIDString(command.vm)
        try:
            _leave(command, host, scope, leaving, way)
        finally:
            _still_here(command, host)
    return Done(observed=observe_vm(host, command.vm))


class _Way:
    """What of a passage's wishes is possible for this guest: one that is halted, or carries disks along, cannot be
    switched over before its memory is there."""

    def __init__(self, command: MigrateDomain, host: Host, *, running: bool) -> None:
        asked = command.passage
        self.postcopy = asked.on_stall == "postcopy" and running and not command.copy
        self.passage: Passage = asked if self.postcopy else replace(asked, on_stall="abort")
        shared = "shared" in host.layout.storages
        self.route: Route = route(command, host, postcopy=self.postcopy, shared=shared)


def _leave(command: MigrateDomain, host: Host, scope: Scope, domain: Any, way: _Way) -> None:
    """Return when libvirt says that the guest has left. Raises why it has not, Withdrawn, Expired, HypervisorLost."""
    _check_answers(command, way.route.port, min(CONNECT_SECONDS, scope.remaining()))
    domain.migrateSetMaxDowntime(max(1, round(command.passage.max_downtime * 1000)))
    call, ending = _carry(command, host, scope, domain, way, way.route.flags)
    if call.over.is_set():
        call = _recover(command, host, scope, domain, way) or call
    if not call.over.is_set():
        raise Rejected("migration-failed", f"{_reason(ending)}, but libvirt's call does not end")
    if call.error is None:
        return
    words = call.error.get_error_message() or str(call.error)
    _log.info("passage ended with an error", vm=command.vm, error=words)
    # the words may be those of the destination's libvirt, so whether ours is away is asked of our own line
    if not _is_alive(domain):
        raise HypervisorLost(words)
    if _reached(command, host):
        # a passage that was taken up again may end while libvirt is still told to take it up
        return
    raise ending or Rejected("migration-failed", words)


def _carry(
    command: MigrateDomain, host: Host, scope: Scope, domain: Any, way: _Way, flags: int
) -> tuple[Call, Ending | None]:
    """libvirt's call at its end, or still hanging, and why it was to be ended, if it was."""
    host.passages.begun(command.vm)
    call = Call(
        lambda: domain.migrateToURI3(way.route.uri, way.route.parameters, flags),
        lambda: host.passages.ended(command.vm),
    )
    meter = Meter(domain, host.link.queries, command, scope, coming=True)
    try:
        return call, Watch(command, host, scope, domain, way.passage, call.over).until_over(meter)
    finally:
        meter.close()


def _recover(command: MigrateDomain, host: Host, scope: Scope, domain: Any, way: _Way) -> Call | None:
    """Take up the passage of a guest that was switched over and whose line broke: half its memory is still here.
    The last call, None if there was nothing to take up."""
    call, began, cut = None, time.monotonic(), False
    flags = way.route.flags | libvirt.VIR_MIGRATE_POSTCOPY | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    for attempt in range(RECOVERIES):
        if halted_for(host.link.queries, command) != libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED:
            break
        passed = time.monotonic() - began
        if passed > RECOVER_SECONDS:
            break
        if passed > RECOVER_SECONDS / 3 and not cut:
            # libvirt has given the line up, QEMU has not, and cannot take up what it still holds on to
            _sockets.cut(command.vm, command.address)
            cut = True
        # not at once: the other end has to notice first
        time.sleep(RECOVER_EVERY)
        _log.warning("taking up a broken passage again", vm=command.vm, attempt=attempt)
        with suppress(Rejected):
            _check_answers(command, way.route.port, CONNECT_SECONDS)
            call, _ = _carry(command, host, scope, domain, way, flags)
            if not call.over.is_set() or (call.error is not None and has_nothing_to_take_up(call.error)):
                break
    return call


def _reason(ending: Ending | None) -> str:
    if isinstance(ending, Rejected):
        return ending.reason
    return "ended" if ending is None else f"the order was given up ({type(ending).__name__.lower()})"


def _is_alive(domain: Any) -> bool:
    try:
        return bool(domain.connect().isAlive())
    except libvirt.libvirtError:
        return False


def _check_can_leave(command: MigrateDomain, host: Host, domain: Any, seen: Observed) -> None:
    if seen.power not in ("running", "paused"):
        raise Rejected("migration-failed", f"the domain is {seen.power}")
    if host.passages.moving(command.vm):
        raise Rejected("busy", "libvirt hangs in an earlier migration of the domain")
    local = str(host.layout.vm("local", command.vm))
    left = [
        name
        for name, path in read_disks(domain.XMLDesc(0)).items()
        if path.startswith(f"{local}/") and name not in command.copy
    ]
    if left:
        raise Rejected("migration-failed", f"disk {', '.join(left)} is on local storage and would stay behind")
    if command.copy and (domain.snapshotNum() or domain.listAllCheckpoints()):
        raise Rejected("migration-failed", "its snapshots and checkpoints are inside of its disks: a copy has none")
    old = host.link.calls.getVersion() < _ACTIVATES_PAUSED_GUESTS
    if seen.power == "paused" and old and host.runs.of(command.vm).arrival:
        raise Rejected(
            "migration-failed", "the guest came here paused and has not run since; this QEMU would lose it: resume it"
        )


def _check_answers(command: MigrateDomain, port: int, seconds: float) -> None:
    try:
        with socket.create_connection((command.address, port), timeout=seconds):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise Rejected("migration-failed", f"libvirt at {command.address} port {port}: {why}") from error


def _still_here(command: MigrateDomain, host: Host) -> None:
    """Unpack the luggage of a guest that has not left. A halted one may be half: its claim unpacks it."""
    try:
        domain = find(host, command.vm)
        if domain is not None and observe(host, domain).reason not in HALTED and not host.passages.moving(command.vm):
            _luggage.unpack(domain)
    except libvirt.libvirtError as error:
        raise refusal_of(error, host.link) from error
