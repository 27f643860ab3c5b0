"""Write what a VM's disks hold at one moment to a target, or what was written to them since the last backup.

The QEMU of a running guest copies the disks as they are when it begins, while its guest goes on; libvirt calls it a
backup job in push mode. Disks of a guest that is off are read by qemu-img, always whole. A backup that comes to nothing
leaves neither files nor bitmaps; the bitmaps of the one before stay, for the next attempt.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt
from lxml import etree

from hostagent import qemu_img
from hostagent.backups import Place, check_header, disk_file, saved_disk
from hostagent.commands._chain import check, files_of, stack_named
from hostagent.commands._domain import find, need, observe
from hostagent.commands._freezing import Frozen, frozen, thaw
from hostagent.commands._host import Host
from hostagent.commands._noting import checkpoint_xml, forget, is_note, note_name, recall, retire, unnoted
from hostagent.commands._registry import handles
from hostagent.contents import Disk
from hostagent.hypervisor import Expired, Scope, Withdrawn
from hostagent.qcow2 import read_layer
from hostagent.qemu_img import File
from vmorch.core.backup import Manifest, Saved, SavedDisk
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Sample, TakeBackup
from vmorch.core.layers import Quality, chain

_LOOK_EVERY = 0.1
_ENDS_WITHIN = 30.0
"""Seconds that QEMU has to end a job that it was told to end."""


def _reached(command: TakeBackup, host: Host) -> bool:
    # what was made is told by whoever makes it: the order comes again and finds it
    return False


def _follow(command: TakeBackup, host: Host, scope: Scope) -> None:
    """A job that nobody waits for is ended: what it had written is of no use without the rest."""
    domain, place = find(host, command.vm), host.targets.place(command.target)
    if domain is None:
        return
    if domain.isActive():
        _end(domain, place.draft(command.backup))
        if command.freeze is not None:
            thaw(domain)
    forget(domain)


@handles(TakeBackup, reached=_reached, follow=_follow)
def take_backup(command: TakeBackup, host: Host, scope: Scope) -> Done:
    domain, place = need(host, command.vm), host.targets.place(command.target)
    made = place.saved(command.backup)
    if made is not None:
        return Done(observed=observe(host, domain), already=True, saved=made)
    active = bool(domain.isActive())
    if not active and command.freeze is not None:
        raise Rejected("freeze-failed", "the domain is off: it has no file systems to hold at rest")
    if active:
        _end(domain, place.draft(command.backup))
    check(host, command, domain)
    scope.check()
    taking = _Taking(command, host, place, domain, scope)
    try:
        saved = taking.from_guest() if active else taking.from_files()
        taking.finish(saved)
    except OSError as error:
        taking.undo()
        code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "backup-failed"
        raise Rejected(code, str(error)) from error
    except BaseException:
        taking.undo()
        raise
    return Done(observed=observe(host, domain), saved=saved, frozen=taking.held.seconds if taking.held else None)


class _Taking:
    """One backup being taken."""

    def __init__(self, command: TakeBackup, host: Host, place: Place, domain: Any, scope: Scope) -> None:
        self.command, self.host, self.place, self.domain, self.scope = command, host, place, domain, scope
        self.draft = place.begin(command.backup)
        self.disks = [disk.name for disk in command.spec.disks]
        self.since = command.chain[-1].backup if command.chain else None
        self.held: Frozen | None = None
        self.quality: Quality = "off"

    def from_guest(self) -> Saved:
        """Have QEMU write the files."""
        command, domain = self.command, self.domain
        retire(domain, () if self.since is None else (self.since,))
        why = command.full or self._footless()
        sizes = {name: self._virtual_size(name) for name in self.disks}
        for name, size in sizes.items():
            qemu_img.create_empty(self._file(name), size)
            self._file(name).chmod(0o600)
        if not why and self.since is not None:
            recall(domain, self.disks, self.since)
        block = nullcontext() if command.freeze is None else frozen(domain, command.freeze, self.scope)
        began = time.monotonic()
        with block as held:
            domain.backupBegin(
                _backup_xml(self.draft, self.disks, None if why else self.since),
                checkpoint_xml(note_name(command.backup), self.disks),
                libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL,
            )
        self.held = held
        self.quality = "crash-consistent" if held is None else "frozen"
        _wait(domain, self.scope, self.draft, began)
        forget(domain)
        return self._saved(sizes, why)

    def from_files(self) -> Saved:
        """Read the disks of a guest that is off, and have its next QEMU note where it writes."""
        command = self.command
        why = command.full or ("the VM is off" if command.chain else "it is the first")
        sizes = {name: self._virtual_size(name) for name in self.disks}
        for name in self.disks:
            source = list(self._layers(name))
            qemu_img.flatten(source, self._file(name), self.scope)
            self._file(name).chmod(0o600)
            kept = () if self.since is None else (note_name(self.since),)
            self._forget_in(source[0][0], lambda note, kept=kept: note not in kept)  # type: ignore[misc]
            qemu_img.note_writes(source[0][0], note_name(command.backup))
        return self._saved(sizes, why)

    def finish(self, saved: Saved) -> None:
        """What was written is the backup."""
        command = self.command
        manifest = Manifest(
            cluster=self.host.cluster,
            vm=command.vm,
            name=command.name,
            vm_name=command.vm_name,
            taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
            parent=self.since if saved.kind == "incremental" else None,
            quality=self.quality,
            spec=command.spec,
            saved=saved,
        )
        self.place.finish(command.backup, manifest)

    def undo(self) -> None:
        """Nothing is left of it, as far as that can be done now; whoever tries again does the rest."""
        keep = () if self.since is None else (self.since,)
        with suppress(libvirt.libvirtError, Rejected, OSError):
            if self.host.link.is_alive() and self.domain.isActive():
                _end(self.domain, self.draft)
                retire(self.domain, keep)
            elif self.host.link.is_alive():
                forget(self.domain)
                ours = note_name(self.command.backup)
                for name in self.disks:
                    self._forget_in(next(self._layers(name))[0], lambda note: note == ours)
            self.place.drop(self.command.backup)

    def _footless(self) -> str:
        if self.since is None:
            return "it is the first"
        lost = self.place.missing(self.command.chain)
        if lost:
            return f"{lost[0]} is not in its target any more"
        return unnoted(self.domain, self.disks, self.since)

    def _saved(self, sizes: dict[str, int], why: str) -> Saved:
        return Saved(
            backup=self.command.backup,
            kind="full" if why else "incremental",
            disks=tuple(self._disk(name, size, alone=bool(why)) for name, size in sizes.items()),
            why=why,
        )

    def _disk(self, name: str, size: int, *, alone: bool) -> SavedDisk:
        path = self._file(name)
        # QEMU wrote it, and its guest may have got the better of that
        check_header(path, size)
        below = [] if alone else self.place.chain(self.command.chain, name)
        with Disk([(path, "qcow2"), *below], size, self.scope) as now:
            if alone:
                content = now.content()
            else:
                was = self.command.chain[-1].disk(name)
                if was is None or was.size != size:
                    raise Rejected("backup-failed", f"the last backup has no {name} of {size} bytes")
                with Disk(below, size, self.scope) as before:
                    content = now.changed(before, was.content)
        return saved_disk(name, path, size, content, self.scope)

    def _file(self, name: str) -> Path:
        return self.draft / disk_file(name)

    def _layers(self, name: str) -> Iterator[File]:
        """The files that a disk is read through, topmost first."""
        stack = stack_named(self.command, name)
        files = files_of(self.host, self.command.vm, stack.disk)
        numbers = chain(stack.tree, stack.disk.layer)
        for number in numbers:
            yield files.of(number), "qcow2"
        below, format = files.below(stack.tree[numbers[-1]])
        if below is not None:
            yield below, format

    def _virtual_size(self, name: str) -> int:
        path = next(self._layers(name))[0]
        header = read_layer(path)
        if header is None:
            raise Rejected("chain-drift", f"{path} is gone")
        return header.virtual_size

    def _forget_in(self, layer: Path, which: Callable[[str], bool]) -> None:
        for note in qemu_img.noted(layer):
            if is_note(note) and which(note):
                qemu_img.forget_writes(layer, note)


def _wait(domain: Any, scope: Scope, draft: Path, began: float) -> None:
    """Wait for the end of the job. Raises Withdrawn, Expired once it was ended, Rejected `backup-failed`."""
    try:
        while (info := domain.jobInfo())[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            # of a job's figures these are the ones about disks
            total, done, left = info[9:12]
            elapsed = time.monotonic() - began
            scope.tell(
                Sample(elapsed=elapsed, total=total, sent=done, remaining=left, bandwidth=done / max(elapsed, 0.001))
            )
            scope.pause(_LOOK_EVERY)
    except (Withdrawn, Expired):
        _end(domain, draft)
        raise
    scope.tell(Sample(elapsed=time.monotonic() - began, remaining=0))
    stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    if stats.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP or not stats.get("success"):
        words = stats.get("errmsg", "the job ended without success")
        code = "disk-full" if "No space left" in words else "backup-failed"
        raise Rejected(code, words)


def _end(domain: Any, draft: Path) -> None:
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


def _backup_xml(draft: Path, disks: list[str], since: Any) -> str:
    backup = etree.Element("domainbackup", mode="push")
    if since is not None:
        etree.SubElement(backup, "incremental").text = note_name(since)
    found = etree.SubElement(backup, "disks")
    for name in disks:
        disk = etree.SubElement(found, "disk", name=name, backup="yes", type="file")
        etree.SubElement(disk, "driver", type="qcow2")
        etree.SubElement(disk, "target", file=str(draft / disk_file(name)))
    return etree.tostring(backup, encoding="unicode")
