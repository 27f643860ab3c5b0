"""Take a domain from the host: its halted half, its configuration, and what this host alone remembers of it."""

import time
from typing import Any

import libvirt

from hostagent.commands._domain import find, observe
from hostagent.commands._errors import is_absent
from hostagent.commands._host import Host
from hostagent.hypervisor import Scope
from hostagent.layout import RUN_RECORD, SERIAL_LOG, clean, is_clean
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Observed
from vmorch.core.ids import VmId

_EVERYTHING_OF_IT = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
_PASSAGE_SECONDS = 10.0
"""How long a passage under way may go on to its own end, after which perhaps nothing is halted any more."""
_GONE_SECONDS = 20.0
_LOOK_EVERY = 0.05


def check_clearable(host: Host, vm: VmId) -> None:
    """Raises Rejected `runs-here`, `not-ours`, or `busy` if a guest that runs elsewhere needs its memory from here."""
    domain = find(host, vm)
    seen = Observed(power="absent") if domain is None else observe(host, domain)
    if seen.power == "running":
        raise Rejected("runs-here", f"the domain {vm} runs here")
    if seen.reason == "postcopy":
        raise Rejected("busy", f"the domain {vm} runs elsewhere already, and still needs its memory from here")


def is_clear(host: Host, vm: VmId) -> bool:
    """Whether neither a half of the domain stands here, nor anything that this host alone remembers of it."""
    return find(host, vm) is None and is_clean(host.layout.vm("local", vm), SERIAL_LOG, RUN_RECORD)


def clear(host: Host, vm: VmId, scope: Scope) -> None:
    """Make it so. Raises Rejected `runs-here`, `not-ours`, or `busy` if libvirt does not let go of the domain."""
    _outwait_passage(host, vm, scope)
    check_clearable(host, vm)
    until = time.monotonic() + _GONE_SECONDS
    while (domain := find(host, vm)) is not None:
        _take_away(domain)
        if time.monotonic() >= until:
            raise Rejected("busy", f"libvirt does not let go of the domain {vm}")
        scope.pause(_LOOK_EVERY)
    forget(host, vm)


def undefine(domain: Any) -> None:
    """The domain has no persistent configuration."""
    try:
        domain.undefineFlags(_EVERYTHING_OF_IT)
    except libvirt.libvirtError as error:
        # the call of an agent that died may have been under way in the daemon and come first
        if not is_absent(error):
            raise


def forget(host: Host, vm: VmId) -> None:
    """Nothing is left of what this host alone remembers of a domain that is not here any more."""
    clean(host.layout.vm("local", vm), SERIAL_LOG, RUN_RECORD)
    host.runs.forget(vm)


def _outwait_passage(host: Host, vm: VmId, scope: Scope) -> None:
    until = time.monotonic() + _PASSAGE_SECONDS
    while time.monotonic() < until:
        domain = find(host, vm)
        if domain is None or not observe(host, domain).moving:
            return
        scope.pause(_LOOK_EVERY)


def _take_away(domain: Any) -> None:
    try:
        if domain.isActive():
            domain.destroyFlags(0)
        if domain.isPersistent():
            undefine(domain)
    except libvirt.libvirtError as error:
        # it went away, or off, by itself in this moment: the next look tells
        if not is_absent(error) and error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
