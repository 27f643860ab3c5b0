"""Make a domain wholly this host's: its configuration, what came along with it, and, if it shall run, its guest."""

import time
from typing import Any

import libvirt
import structlog

from hostagent.commands import _luggage
from hostagent.commands._defining import define, is_defined
from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.commands._resuming import resume
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import ClaimDomain, Done, Observed
from vmorch.core.migration import HALTED, UNFINISHED

_SETTLE_SECONDS = 15.0
"""How long libvirt has to put away a migration that is over."""
_LOOK_EVERY = 0.05

_log = structlog.get_logger(__name__)


def _reached(command: ClaimDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None or not is_defined(host, domain, command.spec) or not _luggage.is_unpacked(domain):
        return False
    return not _is_half(command, observe(host, domain)) and host.runs.of(command.vm).arrival != "expected"


def _is_half(command: ClaimDomain, seen: Observed) -> bool:
    """Whether a migration left the domain halted, which it shall not stay."""
    return seen.power == "paused" and seen.reason in (HALTED if command.run else UNFINISHED)


@handles(ClaimDomain, reached=_reached)
def claim_domain(command: ClaimDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    seen = Observed(power="absent") if domain is None else _settled(host, domain, scope)
    if domain is not None and _reached(command, host):
        return Done(observed=seen, already=True)
    if domain is not None:
        # before its definition is replaced, which would throw it away
        _luggage.unpack(domain)
    if domain is not None and _is_wedged(seen):
        _log.warning("guest given up: its QEMU hangs in a switch-over to nobody", vm=command.vm)
        domain.destroyFlags(0)
        seen = _settled(host, domain, scope)
    domain = define(host, command.vm, domain, command.spec) or need(host, command.vm)
    if seen.power == "paused" and seen.reason in UNFINISHED:
        # the rest of its memory was at the end that is gone: nothing can run on
        domain.destroyFlags(0)
    elif _is_half(command, seen):
        resume(host, domain)
    seen = observe(host, domain)
    host.runs.came(command.vm, halted=seen.power == "paused")
    return Done(observed=seen, pause=_pause(domain) if seen.power == "running" else None)


def _is_wedged(seen: Observed) -> bool:
    """Whether a passage that nobody awaits holds the domain still. QEMU 7.2 can wait for ever for a destination that
    died in the switch-over, with its monitor silent, so that libvirt can neither end the passage nor resume the
    guest."""
    return seen.moving and seen.power == "paused" and seen.reason == "migration"


def _pause(domain: Any) -> float | None:
    """For how many seconds the guest stood still at the switch-over; None if it did not come from elsewhere."""
    try:
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        milliseconds = domain.jobStats(flags).get(libvirt.VIR_DOMAIN_JOB_DOWNTIME)
    except libvirt.libvirtError:
        # a figure for people: without it the guest is no less here
        return None
    return None if milliseconds is None else milliseconds / 1000


def _settled(host: Host, domain: Any, scope: Scope) -> Observed:
    """What is seen of the domain once no migration is at work on it, or after a while all the same."""
    until = time.monotonic() + _SETTLE_SECONDS
    while (seen := observe(host, domain)).moving and time.monotonic() < until:
        scope.pause(_LOOK_EVERY)
    return seen
