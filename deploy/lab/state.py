"""What a lab keeps on disk so that another process can find, repair or end it, and the lock on changing it."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from deploy.lab.errors import LabError

HOME = Path("/var/lib/vmorch-lab")
LOCK_SECONDS = 120.0

_NAME = re.compile(r"[a-z0-9-]{1,20}")
# 107 bytes for a Unix socket, and the longest below a lab's directory is that of a host's libvirtd
_LONGEST_SOCKET = "/hv-000/run/libvirt/libvirt-admin-sock"
# a host covers these with its own, so that a lab inside them would vanish from its view
_COVERED = ("/run", "/var/run", "/srv", "/dev", "/proc", "/sys")


class LabState(msgspec.Struct, frozen=True, kw_only=True):
    """`phase` is "changing" from the first step of an `up` to its last: found so, the `up` was killed.

    "down" is a lab that was ended with its disks kept.
    """

    name: str
    phase: Literal["changing", "up", "down"]
    hosts: list[str]
    control: bool


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} is not a lab name", "use 1 to 20 of a-z, 0-9 and -")


def check_directory(directory: Path) -> None:
    room = 107 - len(_LONGEST_SOCKET)
    if len(os.fsencode(directory)) > room:
        raise LabError(f"too long a path for the sockets below it: {directory}", f"use at most {room} bytes")
    for covered in _COVERED:
        if directory.is_relative_to(covered):
            raise LabError(f"no lab can be under {covered}: every host has its own", "use /var/lib or /tmp")


def read(directory: Path) -> LabState | None:
    """The lab in a directory, or None if there is none."""
    try:
        return msgspec.json.decode((directory / "lab.json").read_bytes(), type=LabState)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LabError(f"{directory}/lab.json is damaged: {error}", "end the lab with `down`") from error


def write(directory: Path, state: LabState) -> None:
    draft = directory / "lab.json.new"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    draft.replace(directory / "lab.json")


@contextmanager
def locked(path: Path, what: str) -> Iterator[int]:
    """Hold the lock file `path` (made if missing) and give its descriptor; LabError if another holds it too long."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, handle):
                break
        except BlockingIOError:
            pass
        os.close(handle)
        if time.monotonic() > deadline:
            raise LabError(f"another process is changing {what}", f"wait for it; the lock is {path}")
        time.sleep(0.02)
    try:
        yield handle
    finally:
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the locked file is the one at `path`: a lab that just ended has removed its lock file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
