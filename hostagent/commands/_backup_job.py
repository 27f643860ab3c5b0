"""libvirt's backup job of a guest that runs: what QEMU is told, and how it ends.

For a whole copy QEMU itself writes the files of the backup (push mode). What was written since the last one it exports,
with the disks as they were when the job began (pull mode), because it would copy 64 KiB for every 4 KiB; what its guest
overwrites meanwhile it puts aside in files beside those of the backup.
"""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import libvirt
from lxml import etree

from hostagent.backups import aside_file, disk_file
from hostagent.commands._host import Host
from hostagent.commands._noting import note_name
from hostagent.hypervisor import Expired, Scope, Withdrawn
from hostagent.increment import PART, Increment
from hostagent.libvirt_status import QEMU_DIR
from hostagent.nbd import Export, Stretch
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Sample
from vmorch.core.ids import BackupId

_LOOK_EVERY = 0.1
_ENDS_WITHIN = 30.0
"""Seconds that QEMU has to end a job that it was told to end."""
_SERVER, _WRITTEN = "vmorch-backup.sock", "written"


def push(domain: Any, draft: Path, disks: Iterable[str]) -> None:
    """QEMU begins to copy the disks whole into the files of the backup, which are there. Raises libvirtError."""
    _begin(domain, _xml("push", draft, disks))


def pull(domain: Any, draft: Path, disks: Iterable[str], since: BackupId) -> None:
    """QEMU begins to export the disks, with what was written to them since that backup; the files for what is put aside
    are there. Raises libvirtError."""
    backup = _xml("pull", draft, disks)
    etree.SubElement(backup, "incremental").text = note_name(since)
    server = QEMU_DIR / _directory(domain) / _SERVER
    etree.SubElement(backup, "server", transport="unix", socket=str(server))
    _begin(domain, backup)


def outlast(domain: Any, scope: Scope, draft: Path, began: float) -> None:
    """Wait until QEMU has copied everything. Raises Withdrawn, Expired once it was ended, Rejected `backup-failed`."""
    try:
        while (info := domain.jobInfo())[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            # of a job's figures these are the ones about disks
            total, done, left = info[9:12]
            _tell(scope, began, total, done, left)
            scope.pause(_LOOK_EVERY)
    except (Withdrawn, Expired):
        end(domain, draft)
        raise
    scope.tell(Sample(elapsed=time.monotonic() - began, remaining=0))
    stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    if stats.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP or not stats.get("success"):
        words = stats.get("errmsg", "the job ended without success")
        code = "disk-full" if "No space left" in words else "backup-failed"
        raise Rejected(code, words)


def fetch(domain: Any, host: Host, draft: Path, sizes: Mapping[str, int], scope: Scope, began: float) -> None:
    """Write what QEMU exports to the files of the backup, and end the job. Raises Rejected, libvirtError, OSError,
    Withdrawn, Expired, and leaves the job and what is put aside to whoever drops the draft."""
    directory = host.qemu_dir / _directory(domain)

    def export(disk: str) -> Export:
        return Export(directory, _SERVER, disk, _WRITTEN, sizes[disk], scope)

    written = {}
    for disk in sizes:
        with export(disk) as exported:
            written[disk] = [_checked(each, sizes[disk]) for each in exported.written()]
    total, done, told = sum(each.length for stretches in written.values() for each in stretches), 0, began
    for disk, stretches in written.items():
        with export(disk) as exported, open(draft / disk_file(disk), "xb", opener=_private) as file:
            increment = Increment(file, sizes[disk])
            for start, data in exported.read(stretches):
                increment.add(start, data)
                done += len(data)
                if time.monotonic() >= told + _LOOK_EVERY:
                    told = time.monotonic()
                    _tell(scope, began, total, done, total - done)
            increment.finish()
    scope.tell(Sample(elapsed=time.monotonic() - began, total=total, sent=done, remaining=0))
    end(domain, draft)
    for disk in sizes:
        (draft / aside_file(disk)).unlink()


def end(domain: Any, draft: Path) -> None:
    """No job of ours is at work on the domain. Raises Rejected `busy`, libvirtError."""
    if not _is_ours(domain, draft):
        return
    ends = time.monotonic() + _ENDS_WITHIN
    domain.abortJob()
    while _is_ours(domain, draft):
        if time.monotonic() >= ends:
            raise Rejected("busy", "QEMU does not end the backup")
        time.sleep(_LOOK_EVERY)


def _is_ours(domain: Any, draft: Path) -> bool:
    try:
        return f"{draft}/" in domain.backupGetXMLDesc(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return False
        raise


def _begin(domain: Any, backup: Any) -> None:
    flags = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
    domain.backupBegin(etree.tostring(backup, encoding="unicode"), None, flags)


def _xml(mode: str, draft: Path, disks: Iterable[str]) -> Any:
    backup = etree.Element("domainbackup", mode=mode)
    found = etree.SubElement(backup, "disks")
    for name in disks:
        disk = etree.SubElement(found, "disk", name=name, backup="yes", type="file")
        etree.SubElement(disk, "driver", type="qcow2")
        if mode == "push":
            etree.SubElement(disk, "target", file=str(draft / disk_file(name)))
        else:
            disk.set("exportname", name)
            disk.set("exportbitmap", _WRITTEN)
            etree.SubElement(disk, "scratch", file=str(draft / aside_file(name)))
    return backup


def _directory(domain: Any) -> str:
    """What libvirt calls its directory for the running domain: nobody but the guest's QEMU and root gets into it, its
    AppArmor profile lets QEMU open a socket there, and it goes when the guest goes."""
    return f"domain-{domain.ID()}-{domain.name()[:20]}"


def _checked(stretch: Stretch, size: int) -> Stretch:
    ends = stretch.start + stretch.length
    if stretch.start % PART or (ends % PART and ends != size):
        raise Rejected("backup-failed", f"QEMU notes writes in parts of less than {PART} bytes")
    return stretch


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _tell(scope: Scope, began: float, total: int, done: int, left: int) -> None:
    elapsed = time.monotonic() - began
    bandwidth = done / max(elapsed, 0.001)
    scope.tell(Sample(elapsed=elapsed, total=total, sent=done, remaining=left, bandwidth=bandwidth))
