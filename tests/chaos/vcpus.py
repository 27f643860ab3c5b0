"""Watch from outside which QEMU processes run their guests' processors, and find any two of one VM that both did.

Run as `python -m tests.chaos.vcpus`, in a process of its own: about 20 times a second it reads how much time the
kernel gave the vCPU threads of every QEMU on the machine, and prints a line for each that ran; a first line `ready`;
until stdin ends. It asks neither vmorch nor libvirt, so that nothing that dies in a test can blind it.

A halted guest's vCPU threads get no time but for a moment when they are made or poked, hence `NOISE`; and when their
process is killed, because the last of its threads to go gives back its memory: 4 ms for 128 MiB.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.05
FIND_EVERY = 0.25
NOISE = 0.004
"""Seconds of processor time between two looks that a halted guest's threads may get."""


_EXITING = 0x4
"""PF_EXITING in the flags of proc(5)'s stat (include/linux/sched.h)."""


@dataclass(frozen=True)
class Ran:
    """A QEMU whose guest ran: when (monotonic seconds), of which VM, which process, for how long (seconds)."""

    at: float
    vm: str
    pid: int
    seconds: float


def qemus() -> dict[int, str]:
    """The QEMU processes of the whole machine: pid to the name of the guest."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            arguments = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "qemu-system" in arguments[0] and "-name" in arguments:
            options = arguments[arguments.index("-name") + 1].split(",")
            guest = next((each.removeprefix("guest=") for each in options if each.startswith("guest=")), "")
            found[int(entry)] = guest
    return found


def vcpu_seconds(pid: int) -> float | None:
    """The processor time that a QEMU's vCPU threads have got so far; None if it is gone."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            name = Path(f"/proc/{pid}/task/{thread}/comm").read_text()
            if name.startswith("CPU "):
                total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    except OSError:
        return None
    return total / 1e9


def is_ending(pid: int) -> bool:
    """Whether a process is being taken down, so that what its threads still do is no guest's."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & _EXITING)


def main() -> None:
    known: dict[int, tuple[str, float]] = {}
    found_at = 0.0
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        now = time.monotonic()
        if now - found_at > FIND_EVERY:
            found_at = now
            for pid, vm in qemus().items():
                known.setdefault(pid, (vm, vcpu_seconds(pid) or 0.0))
        for pid, (vm, before) in list(known.items()):
            total = vcpu_seconds(pid)
            if total is None or is_ending(pid):
                del known[pid]
                continue
            known[pid] = (vm, total)
            if total - before >= NOISE:
                print(json.dumps([now, vm, pid, round(total - before, 4)]), flush=True)


@contextmanager
def watched(log: Path) -> Iterator[Path]:
    """An observer that writes to `log` as long as the block lasts."""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "tests.chaos.vcpus"], stdin=subprocess.PIPE, stdout=out)
        try:
            deadline = time.monotonic() + 30
            while not log.read_text().startswith("ready"):
                assert time.monotonic() < deadline, "the observer did not begin"
                time.sleep(0.01)
            yield log
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def read(log: Path) -> list[Ran]:
    """Everything that an observer saw until now."""
    whole, _, _ = log.read_text().rpartition("\n")
    return [Ran(*json.loads(line)) for line in whole.splitlines()[1:]]


def overlaps(seen: list[Ran], vm: str) -> list[str]:
    """Each time that a QEMU of the VM ran after a later one had run already: there were two of it. In words."""
    order: list[int] = []
    told: list[str] = []
    for each in sorted((each for each in seen if each.vm == vm), key=lambda each: each.at):
        if each.pid not in order:
            order.append(each.pid)
        elif order[-1] != each.pid:
            told.append(f"{each.at:.2f}: process {each.pid} ran {each.seconds:.3f} s after {order[-1]} had run")
    return told


if __name__ == "__main__":
    main()
