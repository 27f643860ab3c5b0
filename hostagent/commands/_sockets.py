"""Cut the connections over which a QEMU sends its guest: the last way to end a passage whose QEMU answers nothing.

With the line dead in the moment of the switch-over, QEMU halts its guest and waits in the kernel, monitor and all,
until TCP gives up many minutes later. Cut, it notices at once and its guest runs on at home.
"""

import re
import socket
import subprocess
from pathlib import Path

import structlog

from vmorch.core.ids import VmId

_SECONDS = 5.0
_LINE = re.compile(r"\S+\s+\S+\s+\S+\s+(?P<own>\S+:\d+)\s+(?P<peer>\S+:\d+)\s.*\bpid=(?P<pid>\d+)\b")

_log = structlog.get_logger(__name__)


def cut(vm: VmId, address: str) -> int:
    """Cut every TCP connection from the VM's QEMU to that host; how many there were."""
    qemus = _qemus(vm)
    ends = [ends for ends, pid in _connections(_numeric(address)) if pid in qemus]
    for own, peer in ends:
        _ss("-K", "-Htn", "src", own, "dst", peer)
    _log.warning("migration's connections cut", vm=vm, address=address, connections=len(ends))
    return len(ends)


def _connections(addresses: list[str]) -> list[tuple[tuple[str, str], int]]:
    found = []
    for address in addresses:
        for line in _ss("-HtnpO", "dst", address).splitlines():
            match = _LINE.match(line)
            if match is not None:
                found.append(((match["own"], match["peer"]), int(match["pid"])))
    return found


def _numeric(address: str) -> list[str]:
    try:
        return sorted({str(each[4][0]) for each in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)})
    except OSError:
        return []


def _qemus(vm: VmId) -> set[int]:
    """The processes that say they run this guest."""
    guest = re.compile(rb"(^|,)guest=" + re.escape(vm.encode()) + rb"(,|$)")
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if any(guest.search(each) for each in arguments):
            found.add(int(entry.name))
    return found


def _ss(*arguments: str) -> str:
    try:
        done = subprocess.run(["ss", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        _log.error("ss did not help", error=str(error))
        return ""
    if done.returncode != 0:
        _log.error("ss refused", error=done.stderr.strip())
    return done.stdout
