"""Carry a guest to another host while it runs. Blocks until libvirt's own call is over, however long that takes.

The answer tells how that call ended, not where the guest is. If the agent stops in the middle, libvirt goes on by
itself, and whoever asks later follows it to its end.
"""

from collections.abc import Iterator
from typing import Any

import libvirt

from hostagent.commands import _luggage
from hostagent.commands._departure import Departure
from hostagent.commands._domain import find, observe, observe_vm
from hostagent.commands._errors import refusal_of
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.domain_xml import Told
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, MigrateDomain, Observed
from vmorch.core.migration import HALTED

_ACTIVATES_PAUSED_GUESTS = 10_000_000
"""The QEMU from which on a guest that came halted can leave halted; older ones die of it."""


def _reached(command: MigrateDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None:
        return True
    seen = observe(host, domain)
    return (seen.power, seen.reason) == ("off", "migrated")


def _follow(command: MigrateDomain, host: Host, scope: Scope) -> None:
    """Wait for the end of what libvirt goes on with. Raises why it was ended, if it was."""
    domain = find(host, command.vm)
    if domain is None or not domain.isActive():
        return
    seen = observe(host, domain)
    running = seen.power == "running" or seen.reason in HALTED
    with host.passages.under_way(command.vm), host.link.line() as line:
        leaving = line.lookupByUUIDString(command.vm)
        ending = Departure(command, host, scope, leaving, running=running).follow()
    _unpack_if_still_here(command, host)
    if ending is not None and not _reached(command, host):
        raise ending


@handles(MigrateDomain, reached=_reached, follow=_follow)
def migrate_domain(command: MigrateDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    if domain is None:
        return Done(observed=Observed(power="absent"), already=True)
    seen = observe(host, domain)
    _check_can_leave(command, host, domain, seen)
    scope.check()
    try:
        with host.passages.under_way(command.vm), host.link.line() as line:
            _luggage.pack(domain)
            leaving = line.lookupByUUIDString(command.vm)
            Departure(command, host, scope, leaving, running=seen.power == "running").leave()
    except Rejected:
        # a passage that was taken up again may end while libvirt is still told to take it up
        if not _reached(command, host):
            raise
    finally:
        _unpack_if_still_here(command, host)
    return Done(observed=observe_vm(host, command.vm))


def _check_can_leave(command: MigrateDomain, host: Host, domain: Any, seen: Observed) -> None:
    """Raises Rejected for what libvirt or QEMU would do badly rather than refuse."""
    if seen.power not in ("running", "paused"):
        raise Rejected("migration-failed", f"the domain is {seen.power}")
    if host.passages.moving(command.vm):
        raise Rejected("busy", "libvirt hangs in an earlier migration of the domain")
    if seen.reason in HALTED:
        raise Rejected("migration-failed", f"the domain is halted for {seen.reason}; it may run on another host")
    found = tuple(_blockers(command, host, domain, seen))
    if found:
        raise Rejected("migration-failed", "; ".join(found), facts={"blockers": found})


def _blockers(command: MigrateDomain, host: Host, domain: Any, seen: Observed) -> Iterator[str]:
    """Everything that keeps the guest here, each in words."""
    told = Told(domain.XMLDesc(0))
    local = str(host.layout.root("local"))
    left = [name for name, path in told.disks.items() if path.startswith(f"{local}/") and name not in command.copy]
    if left:
        yield f"disk {', '.join(left)} is on local storage and would stay behind"
    if held := told.host_devices:
        yield f"it holds devices of its host: {', '.join(held)}"
    if command.copy and (domain.snapshotNum() or domain.listAllCheckpoints()):
        yield "its snapshots and checkpoints are inside of its disks: a copy has none"
    old = host.link.calls.getVersion() < _ACTIVATES_PAUSED_GUESTS
    if seen.power == "paused" and old and host.runs.of(command.vm).arrival:
        yield "the guest came here paused and has not run since; this QEMU would lose it: resume it"


def _unpack_if_still_here(command: MigrateDomain, host: Host) -> None:
    """Unpack the luggage of a guest that has not left. A halted one may be half: its claim unpacks it."""
    if host.passages.moving(command.vm):
        return
    try:
        domain = find(host, command.vm)
        if domain is not None and observe(host, domain).reason not in HALTED:
            _luggage.unpack(domain)
    except libvirt.libvirtError as error:
        raise refusal_of(error, host.link) from error
