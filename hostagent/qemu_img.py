"""Call qemu-img for the one thing that it is needed for, making a disk, and bound what it may take.

The format of every file is always told, so that no program ever guesses it from what a guest wrote. Must not be
pointed at an image whose header our own reader has not accepted.
"""

import subprocess
from pathlib import Path

from vmorch.core.errors import Rejected
from vmorch.core.spec import ImageFormat

SECONDS = 60
CPU_SECONDS = 30
MEMORY_BYTES = 2 * 1024**3

_NO_SPACE = "No space left on device"


def create_overlay(path: Path, size: int, base: Path, base_format: ImageFormat) -> None:
    """A new qcow2 file of `size` virtual bytes over `base`. Raises Rejected with qemu-img's own words."""
    _run(["create", "-q", "-f", "qcow2", "-F", base_format, "-b", str(base), str(path), str(size)])


def create_empty(path: Path, size: int) -> None:
    """A new qcow2 file of `size` virtual bytes that holds nothing. Raises Rejected with qemu-img's own words."""
    _run(["create", "-q", "-f", "qcow2", str(path), str(size)])


def _run(arguments: list[str]) -> None:
    # limits by prlimit: a function run between fork and exec could hang in a process with threads
    limits = [f"--cpu={CPU_SECONDS}", f"--as={MEMORY_BYTES}", "--core=0"]
    try:
        done = subprocess.run(
            ["prlimit", *limits, "qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Rejected("qemu-img-failed", f"qemu-img {arguments[0]} took more than {SECONDS} s") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        code = "disk-full" if _NO_SPACE in words else "qemu-img-failed"
        raise Rejected(code, words.removeprefix("qemu-img: "))
