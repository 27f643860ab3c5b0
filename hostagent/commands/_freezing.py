"""Have a guest hold its file systems at rest for a moment, and see to it that it goes on afterwards.

A guest that was asked to freeze may do so after everybody has given up waiting, so whoever asked thaws in any case, and
goes on asking until the guest has thawed or is no more. Must not take the moment: the caller does, inside the block.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
import structlog

from hostagent.commands._aside import Call
from hostagent.commands._errors import is_absent
from hostagent.commands._guest import ping
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected

THAW_SECONDS = 5.0
"""How long an order waits for its guest to thaw; after that somebody in the background goes on asking."""
_PATIENCE = 600.0
_ASK_EVERY = 0.5
_GRACE = 2.0

_log = structlog.get_logger(__name__)


class Frozen:
    """`seconds` is how long the guest was at rest, once it is over."""

    seconds = 0.0


@contextmanager
def frozen(domain: Any, within: float, scope: Scope) -> Iterator[Frozen]:
    """The guest's file systems are at rest inside the block. Raises Rejected `freeze-failed` if they are not after
    `within` seconds, and `thaw-failed` if it cannot be told whether they are again as they were."""
    said = Frozen()
    began = time.monotonic()
    # one that does not answer now is not asked to freeze: it might do so whenever it likes
    if silent := ping(domain):
        raise Rejected("freeze-failed", f"the guest's agent does not answer: {silent}")
    try:
        _freeze(domain, min(within, scope.remaining()))
    except Rejected as refusal:
        if not thaw(domain):
            raise Rejected("thaw-failed", f"{refusal.reason}; nor did it say that they are thawed") from refusal
        raise
    try:
        yield said
    finally:
        thaw(domain)
        said.seconds = time.monotonic() - began


def thaw(domain: Any) -> bool:
    """The guest's file systems are not at rest any more. False if it does not do as it is told: then it is told again
    and again in the background."""
    ends = time.monotonic() + THAW_SECONDS
    while not _thawed(domain):
        if time.monotonic() >= ends:
            _log.warning("the guest does not thaw, it is told again", vm=domain.name())
            threading.Thread(target=_insist, args=(domain,), name="vmorch-thaw", daemon=True).start()
            return False
        time.sleep(_ASK_EVERY)
    return True


def _freeze(domain: Any, within: float) -> None:
    if within <= 0:
        raise Rejected("freeze-failed", "there is no time left to freeze the guest's file systems")
    call = Call(lambda: _asked_to_freeze(domain, within))
    if not call.over.wait(within + _GRACE):
        raise Rejected("freeze-failed", f"the guest did not freeze its file systems within {within:g} s")
    if call.error is not None:
        words = call.error.get_error_message() or str(call.error)
        raise Rejected("freeze-failed", f"the guest did not freeze its file systems: {words}")


def _asked_to_freeze(domain: Any, within: float) -> None:
    # the time limit stays with the domain for whoever asks its agent next
    domain.agentSetResponseTimeout(max(1, round(within)), 0)
    try:
        domain.fsFreeze(None, 0)
    finally:
        domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_DEFAULT, 0)


def _thawed(domain: Any) -> bool:
    try:
        domain.fsThaw(None, 0)
    except libvirt.libvirtError as error:
        if error.get_error_domain() == libvirt.VIR_FROM_RPC or is_absent(error):
            return True  # nobody to ask here; whoever finds this order open asks
        return bool(error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID)  # it is not on any more
    return True


def _insist(domain: Any) -> None:
    ends = time.monotonic() + _PATIENCE
    while not _thawed(domain) and time.monotonic() < ends:
        time.sleep(_ASK_EVERY)
