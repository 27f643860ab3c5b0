"""Name processes so that a recycled pid is never mistaken for the process it once was.

A process is its pid, its start time and the boot of the machine it was seen in. Everything here looks from the
machine's own PID namespace and reads /proc; nothing is started here.
"""

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec


class ProcessId(msgspec.Struct, frozen=True):
    """One process, for ever: `started` counts clock ticks since the boot named by `boot`."""

    pid: int
    started: int
    boot: str


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> tuple[str, int] | None:
    """The state letter and the start time of a pid, or None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


def identify(pid: int) -> ProcessId | None:
    """The identity of a living process; a zombie has none."""
    found = _stat(pid)
    if found is None or found[0] in "ZX":
        return None
    return ProcessId(pid, found[1], boot_id())


def is_alive(process: ProcessId) -> bool:
    return identify(process.pid) == process


def is_stopped(pid: int) -> bool:
    found = _stat(pid)
    return found is not None and found[0] in "Tt"


def send_signal(process: ProcessId, number: int) -> bool:
    """Signal exactly this process. False if it is gone, even if its pid was given to another one."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def kill_and_wait(process: ProcessId, number: int = signal.SIGKILL, seconds: float = 20.0) -> bool:
    """Signal a process and wait for its end. False if it still lives after `seconds`."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(process):
            return True
        signal.pidfd_send_signal(handle, number)
        ended, _, _ = select.select([handle], [], [], seconds)
        return bool(ended)
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def all_pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            yield int(entry)


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty if it is gone or a zombie."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").split("\0")[:-1]


def members(init: int) -> list[int]:
    """Every living process in the PID namespace whose first process is `init`, in no order."""
    try:
        wanted = os.readlink(f"/proc/{init}/ns/pid")
    except OSError:
        return []
    found = []
    for pid in all_pids():
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == wanted and identify(pid) is not None:
                found.append(pid)
        except OSError:
            continue
    return found


def inner_pid(pid: int) -> int | None:
    """The pid that a process has inside its innermost PID namespace."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), None)
