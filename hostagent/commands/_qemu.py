"""The QEMU process of a guest that libvirt and we see differently."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from hostagent.hypervisor import Scope
from hostagent.libvirt_status import RUN_DIR
from vmorch.core.errors import Rejected
from vmorch.core.ids import VmId

UNHELD = "libvirt lost it"
"""Why it is not known what a guest does whose QEMU runs, and which libvirt takes for off."""
_REMEDY = "stop libvirtd, run vmorch-agent mend-libvirt, start libvirtd; or shut the guest down from inside"
_GONE_SECONDS = 20.0
_LOOK_EVERY = 0.05

_log = structlog.get_logger(__name__)


def end_qemu(domain: Any, scope: Scope) -> None:
    """The domain is off. Raises Rejected `busy` if that cannot be brought about.

    libvirt 9.0 whose daemon was killed while it brought a guest back can hold the domain for one that is being started,
    for ever: it refuses every order about it, also the one to end it. Must only be used for a guest that has its memory
    kept: it is brought back from there.
    """
    vm = VmId(domain.name())
    pid = qemu_of(vm)
    if pid is None:
        raise Rejected("busy", f"libvirt waits for {vm} without end, and its QEMU is not to be found")
    _log.warning("libvirt waits for a guest without end; ending its QEMU", vm=vm, pid=pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    ends = time.monotonic() + _GONE_SECONDS
    while domain.isActive():
        if time.monotonic() >= ends:
            raise Rejected("busy", f"libvirt does not let go of {vm}")
        scope.pause(_LOOK_EVERY)


def check_held(vm: VmId) -> None:
    """No QEMU of a domain that is off runs. Raises Rejected `guest-unheld`.

    libvirt can lose a guest that runs on, and would let a second one begin.
    """
    pid = qemu_of(vm)
    if pid is not None:
        raise Rejected("guest-unheld", f"libvirt takes {vm} for off, but its QEMU runs as process {pid}: {_REMEDY}")


def qemu_of(vm: VmId) -> int | None:
    """The process that libvirt wrote down for the domain, if it is one of this domain."""
    try:
        pid = int((RUN_DIR / f"{vm}.pid").read_text())
        named = f"guest={vm},".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if named else None
