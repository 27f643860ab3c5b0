"""Make a domain be off: ask its guest, and cut it only if that was asked for."""

import time
from typing import Any

import libvirt

from hostagent.commands._domain import find, observe
from hostagent.commands._errors import is_absent
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Observed, StopDomain

PRESS_EVERY = 10.0
"""Seconds between requests: a guest that is just starting up does not hear the first one."""
_LOOK_EVERY, _LOOK_LATER, _PATIENCE = 0.02, 0.1, 5.0
_OFF = frozenset({"off", "crashed", "absent"})


def _reached(command: StopDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is None or observe(host, domain).power in _OFF


@handles(StopDomain, reached=_reached)
def stop_domain(command: StopDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    seen = Observed(power="absent") if domain is None else observe(host, domain)
    if domain is None or seen.power in _OFF:
        return Done(observed=seen, already=True)
    if command.grace > 0 and seen.power == "running":
        seen = _ask(host, domain, command.grace, scope)
        if seen.power in _OFF:
            return Done(observed=seen)
    if not command.force:
        why = "is paused and hears nothing" if seen.power == "paused" else f"still runs after {command.grace:g} s"
        raise Rejected("guest-did-not-stop", f"the guest {why}")
    scope.check()
    _cut(domain)
    return Done(observed=observe(host, domain))


def _ask(host: Host, domain: Any, grace: float, scope: Scope) -> Observed:
    """Ask the guest to power off until it is off or `grace` seconds are over; what is seen then."""
    began = time.monotonic()
    presses = 0
    while True:
        waited = time.monotonic() - began
        if waited >= presses * PRESS_EVERY:
            _press(domain, first=presses == 0)
            presses += 1
        seen = observe(host, domain)
        if seen.power != "running" or waited >= grace:
            return seen
        pause = _LOOK_EVERY if waited < _PATIENCE else _LOOK_LATER
        scope.pause(min(pause, max(0.0, grace - waited)))


def _press(domain: Any, *, first: bool) -> None:
    """Ask once: by the guest's agent, which is the surest, else by the power button."""
    if first and _pressed(domain, libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT):
        return
    _pressed(domain, libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def _pressed(domain: Any, way: int) -> bool:
    try:
        domain.shutdownFlags(way)
    except libvirt.libvirtError as error:
        if error.get_error_domain() == libvirt.VIR_FROM_RPC:
            raise
        # an agent may drop the line while it obeys; what counts is whether the guest goes off
        return False
    return True


def _cut(domain: Any) -> None:
    try:
        domain.destroyFlags(0)
    except libvirt.libvirtError as error:
        if is_absent(error) or error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            return  # it went off by itself in this moment; the look that follows tells
        raise
