"""libvirt's backup job of a guest that runs: what QEMU is told, and how it ends.

For a whole copy QEMU itself writes the files of the backup (push mode). What was written since the last one it exports,
with the disks as they were when the job began (pull mode), because it would copy 64 KiB for every 4 KiB; what its guest
overwrites meanwhile it puts aside in files beside those of the backup. Such a job goes on until it is ended.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import structlog
from lxml import etree

from hostagent.backups import aside_file, disk_file, is_of_draft
from hostagent.commands._aside import Call
from hostagent.commands._domain import lookup, need
from hostagent.commands._host import Host
from hostagent.commands._monitor import copies_under_way, outcome
from hostagent.commands._noting import note_name
from hostagent.hypervisor import HypervisorLost, Scope
from hostagent.increment import PART, Increment
from hostagent.libvirt_status import QEMU_DIR
from hostagent.nbd import Export, Stretch
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Sample
from vmorch.core.ids import BackupId, VmId

_LOOK_EVERY = 0.1
_ENDS_WITHIN = 30.0
"""Seconds that QEMU has to end a job that it was told to end."""
_SERVER, _WRITTEN = "vmorch-backup.sock", "written"
_HALTED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)

_log = structlog.get_logger(__name__)


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


def outlast(domain: Any, scope: Scope, began: float) -> None:
    """Wait until QEMU has copied everything. Raises Rejected `backup-failed` and `disk-full`, libvirtError, Withdrawn,
    Expired."""
    while (info := domain.jobInfo())[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        # of a job's figures these are the ones about disks
        total, done, left = info[9:12]
        _tell(scope, began, total, done, left)
        scope.pause(_LOOK_EVERY)
    scope.tell(Sample(elapsed=time.monotonic() - began, remaining=0))
    stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    if stats.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP or not stats.get("success"):
        words = stats.get("errmsg", "the job ended without success")
        code = "disk-full" if "No space left" in words else "backup-failed"
        raise Rejected(code, words)


def fetch(
    host: Host, vm: VmId, draft: Path, sizes: Mapping[str, int], scope: Scope, began: float, *, ran: bool
) -> None:
    """Write what QEMU exports to the files of the backup, and end the job. `ran`: the guest ran when it began. Raises
    Rejected, libvirtError, HypervisorLost, OSError, Withdrawn, Expired; the job may then be at work."""
    directory = host.qemu_dir / _directory(need(host, vm))

    def export(disk: str) -> Export:
        return Export(directory, _SERVER, disk, _WRITTEN, sizes[disk], scope)

    total, done, told = 0, 0, began
    for disk in sizes:
        with export(disk) as exported:
            total += sum(each.length for each in exported.written())
    for disk, size in sizes.items():
        path = draft / disk_file(disk)
        # there may be more stretches than one would keep in memory
        with export(disk) as noted, export(disk) as exported, open(path, "xb", opener=_private) as file:
            increment = Increment(file, size)
            for start, data in exported.read(_checked(noted.written(), size)):
                done += len(data)
                increment.add(start, data)
                if time.monotonic() >= told + _LOOK_EVERY:
                    told = time.monotonic()
                    _tell(scope, began, total, done, total - done)
                    if ran:
                        _check_not_halted(host, vm)
            increment.finish()
    scope.tell(Sample(elapsed=time.monotonic() - began, total=total, sent=done, remaining=0))
    # its daemon may have been another one while only QEMU was asked
    domain = need(host, vm)
    if copies_under_way(domain) < len(sizes):
        # whoever ended it had the rest read as it is now
        raise Rejected("backup-failed", "the job was ended by somebody else")
    end(domain)
    for disk in sizes:
        (draft / aside_file(disk)).unlink()


def end(domain: Any) -> None:
    """No backup of ours is under way. Raises Rejected `busy`, libvirtError."""
    ends, refusal = time.monotonic() + _ENDS_WITHIN, "it was told to"
    while _is_ours(domain):
        if time.monotonic() >= ends:
            raise Rejected("busy", f"QEMU does not end the backup: {refusal}")
        try:
            outcome(Call(domain.abortJob))
        except libvirt.libvirtError as error:
            # it may be ending already
            refusal = str(error)
        time.sleep(_LOOK_EVERY)


def go_on(domain: Any) -> None:
    """A guest tries again to write that was halted because it could not. Raises libvirtError."""
    if _is_halted(domain):
        _log.warning("a guest was halted while it was backed up, and goes on", vm=domain.name())
        domain.resume()


def _check_not_halted(host: Host, vm: VmId) -> None:
    with suppress(libvirt.libvirtError, HypervisorLost):
        domain = lookup(host.link.calls, vm)
        if domain is not None and _is_halted(domain):
            raise Rejected("disk-full", "there is no room to put aside what the guest overwrites, and it was halted")


def _is_halted(domain: Any) -> bool:
    return bool(domain.isActive()) and tuple(domain.state()) == _HALTED


def _is_ours(domain: Any) -> bool:
    """Whether a backup is under way that is written to a draft of ours: a VM has one order at a time."""
    try:
        told = domain.backupGetXMLDesc(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return False
        raise
    return any(is_of_draft(Path(each.get("file", ""))) for each in etree.fromstring(told).iterfind(".//*[@file]"))


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
    """What libvirt calls its directory for the running domain: only root and QEMU's user get into it, QEMU may open
    sockets there under libvirt's AppArmor profile, and it goes when the guest goes."""
    return f"domain-{domain.ID()}-{domain.name()[:20]}"


def _checked(stretches: Iterable[Stretch], size: int) -> Iterator[Stretch]:
    for stretch in stretches:
        ends = stretch.start + stretch.length
        if stretch.start % PART or (ends % PART and ends != size):
            raise Rejected("backup-failed", f"QEMU notes writes in parts of less than {PART} bytes")
        yield stretch


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _tell(scope: Scope, began: float, total: int, done: int, left: int) -> None:
    elapsed = time.monotonic() - began
    bandwidth = done / max(elapsed, 0.001)
    scope.tell(Sample(elapsed=elapsed, total=total, sent=done, remaining=left, bandwidth=bandwidth))
