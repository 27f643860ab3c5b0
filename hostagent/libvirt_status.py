"""Mend what libvirt wrote of an active domain, if its daemon was killed in one of three bad moments.

At the very end of a merge libvirt 9.0 forgets what a disk's mirror was for a moment before it forgets the mirror; at
the beginning of a backup it notes of one disk after another that QEMU is copying it. What it wrote in between it cannot
read: it comes back and takes the guest, which runs on, for one that is off. What is missing stands in the same file,
with the jobs. And of a domain whose QEMU it was about to begin it believes for ever that it is being started, and
refuses every order about it. Must be used before the daemon starts, never beside it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

RUN_DIR, QEMU_DIR = Path("/run/libvirt/qemu"), Path("/var/lib/libvirt/qemu")
"""Where libvirt writes down which domains run, and where each of them has a directory."""
_MIRRORING = ("active-commit", "copy")
"""The jobs that have a mirror."""
_BEGINNING = ("domstatus", "starting up", "0")


def mend(directory: Path) -> Iterator[str]:
    """Every domain in the directory can be read by libvirt again, and those that never began are off; what was done,
    by domain. A file that is damaged otherwise stays as it is. Raises OSError."""
    for path in sorted(directory.glob("*.xml")):
        text = path.read_bytes()
        if never_began(text) and not _has_process(path.with_suffix(".pid")):
            path.unlink()
            yield f"{path.stem}: it was about to begin when libvirtd was killed, and is off"
            continue
        mended = mended_status(text)
        if mended != text:
            _replace(path, mended)
            yield f"{path.stem}: what libvirtd left half written can be read again"


def never_began(text: bytes) -> bool:
    """Whether a domain's state says that its QEMU was about to begin; one that waits for its libvirtd when that dies
    ends with it."""
    status = _parsed(text)
    return status is not None and (status.tag, status.get("reason"), status.get("pid")) == _BEGINNING


def mended_status(text: bytes) -> bytes:
    """A domain's state as libvirt keeps it, with the kind of job in each mirror that lost it, and each disk under way
    that a backup is being made of."""
    status = _parsed(text)
    if status is None:
        return text
    kinds = _jobs(status, _MIRRORING)
    copied = _jobs(status, ("backup",))
    unsaid = [
        disk
        for disk in status.iterfind("backups/domainbackup/disks/disk[@backup='yes']")
        if disk.get("state") is None and disk.get("name") in copied
    ]
    for disk in unsaid:
        disk.set("state", "running")
    lost = [
        (mirror, kind)
        for disk in status.iterfind("domain/devices/disk")
        if (mirror := disk.find("mirror")) is not None
        and mirror.get("job") == ""
        and (target := disk.find("target")) is not None
        and (kind := kinds.get(target.get("dev"))) is not None
    ]
    for mirror, kind in lost:
        mirror.set("job", kind)
    return etree.tostring(status) if lost or unsaid else text


def _jobs(status: etree._Element, types: tuple[str, ...]) -> dict[str | None, str | None]:
    """The kind of the job on each disk that has one of these kinds."""
    return {
        disk.get("dst"): job.get("type")
        for job in status.iterfind("blockjobs/blockjob")
        if job.get("type") in types and (disk := job.find("disk")) is not None
    }


def _parsed(text: bytes) -> etree._Element | None:
    try:
        return etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError:
        return None


def _has_process(pid_file: Path) -> bool:
    """Whether a process runs by the number in the file, whichever it is."""
    try:
        return Path("/proc", str(int(pid_file.read_text()))).exists()
    except (FileNotFoundError, ValueError):
        return False


def _replace(path: Path, text: bytes) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(text)
    draft.rename(path)
