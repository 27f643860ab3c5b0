"""Let a running libvirtd read its certificates again, without dropping a connection.

libvirtd 9.0 dies when it is told so while somebody is in the middle of a TLS handshake: the handshake goes on with what
was just freed. So it takes no new connections for a moment, is told when nobody is half way in, and goes on; who comes
meanwhile waits in the kernel. Must not touch a libvirtd that uses other certificates than this host's.
"""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from msgspec import Struct

from hostagent.libvirt_settings import default_files, taken

ETC_PKI = Path("/etc/pki")
_WITHIN = 10.0
"""Seconds for one call."""
_QUIET_WITHIN, _LOOK_EVERY = 3.0, 0.05
_log = structlog.get_logger(__name__)

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class _Failed(Exception):
    """libvirtd does not answer, or not as expected."""


class Limits(Struct, frozen=True):
    """How many connections libvirtd may have, and how many of them may wait to be let in."""

    most: int
    waiting: int


CLOSED, USUAL = Limits(1, 1), Limits(5000, 20)
"""Nobody else comes in; and libvirt's own limits, for a libvirtd that an agent left closed when it was killed."""


def admin(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run virt-admin. Raises OSError, TimeoutExpired."""
    argv = ["virt-admin", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=_WITHIN, check=False)


def reload_certificates(pki: Path, root: Path = ETC_PKI, run: Run = admin) -> bool:
    """Let libvirtd use what is in `pki` now. False if it is worth to try again soon; a libvirtd that is not there, or
    that does not serve TLS, reads them when it starts."""
    places = default_files(root).values()
    if taken(root, pki) or not all(path.exists() for path in places):
        # told so, it would take what is there instead
        _log.warning("libvirtd must be restarted to use the new certificates", places=[str(path) for path in places])
        return True
    try:
        before = _limits(run)
        _set_limits(run, CLOSED)
        try:
            return _tell(run)
        finally:
            _set_limits(run, USUAL if before == CLOSED else before)
    except (_Failed, OSError, subprocess.TimeoutExpired) as error:
        _log.info("libvirtd was not told of new certificates", error=str(error))
        return True


def _tell(run: Run) -> bool:
    until = time.monotonic() + _QUIET_WITHIN
    while half_in := _half_in(run):
        if time.monotonic() > until:
            # a handshake takes milliseconds: whoever stands in the door so long is nobody who comes in
            for client in half_in:
                run(["client-disconnect", "libvirtd", client])
            _log.info("libvirtd is told of new certificates later: somebody was half way in", clients=half_in)
            return False
        time.sleep(_LOOK_EVERY)
    _call(run, "server-update-tls", "libvirtd")
    return True


def _half_in(run: Run) -> list[str]:
    """The TLS connections of which libvirtd does not know yet whose they are."""
    clients = re.findall(r"^ *(\d+) +tls ", _call(run, "client-list", "libvirtd"), re.MULTILINE)
    return [client for client in clients if "tls_x509_dname" not in run(["client-info", "libvirtd", client]).stdout]


def _limits(run: Run) -> Limits:
    told = dict(re.findall(r"^(\w+)\s*:\s*(\d+)\s*$", _call(run, "server-clients-info", "libvirtd"), re.MULTILINE))
    try:
        return Limits(int(told["nclients_max"]), int(told["nclients_unauth_max"]))
    except KeyError as error:
        raise _Failed(f"virt-admin says nothing of {error}") from error


def _set_limits(run: Run, limits: Limits) -> None:
    wanted = ("--max-clients", str(limits.most), "--max-unauth-clients", str(limits.waiting))
    _call(run, "server-clients-set", "libvirtd", *wanted)


def _call(run: Run, *arguments: str) -> str:
    done = run(arguments)
    if done.returncode != 0:
        raise _Failed(done.stderr.strip() or f"virt-admin {arguments[0]} exited {done.returncode}")
    return done.stdout
