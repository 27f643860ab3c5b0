"""Write what a VM's disks hold at one moment to a target, or what was written to them since the last backup.

The QEMU of a running guest copies the disks as they are when it begins, while its guest goes on, or shows what was
written to them. Disks of a guest that is off are read by qemu-img, always whole. A backup that comes to nothing leaves
neither files nor bitmaps; the bitmaps of the one before stay, for the next attempt.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt
import structlog

from hostagent import qemu_img
from hostagent.backups import Place, aside_file, check_header, disk_file, saved_disk
from hostagent.commands import _backup_job as job
from hostagent.commands._chain import check, files_of, stack_named
from hostagent.commands._domain import find, need, observe
from hostagent.commands._freezing import Frozen, frozen, thaw
from hostagent.commands._host import Host
from hostagent.commands._monitor import written_by
from hostagent.commands._noting import forget, granularity, is_note, note, note_name, recall, retire, unnoted
from hostagent.commands._registry import handles
from hostagent.contents import Disk
from hostagent.hypervisor import HypervisorLost, Scope
from hostagent.qcow2 import read_layer
from hostagent.qemu_img import File
from vmorch.core.backup import Manifest, Saved, SavedDisk
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, TakeBackup
from vmorch.core.layers import Quality, chain

_log = structlog.get_logger(__name__)


def _reached(command: TakeBackup, host: Host) -> bool:
    # what was made is told by whoever makes it: the order comes again and finds it
    return False


def _follow(command: TakeBackup, host: Host, scope: Scope) -> None:
    """A job that nobody waits for is ended: what it had written is of no use without the rest."""
    domain = find(host, command.vm)
    if domain is None:
        return
    if domain.isActive():
        try:
            # a call of an agent that died and comes later finds no files; one that is under way is over after the
            # question, because libvirt (9.0) has one of its clients change a domain at a time
            with suppress(Rejected, OSError):
                host.targets.place(command.target).clear(command.backup)
            with suppress(Rejected):
                written_by(domain)
            job.end(domain)
            job.go_on(domain)
        finally:
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
        job.end(domain)
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
    return Done(observed=observe(host, taking.domain), saved=saved, frozen=taking.held.seconds if taking.held else None)


class _Taking:
    """One backup being taken."""

    def __init__(self, command: TakeBackup, host: Host, place: Place, domain: Any, scope: Scope) -> None:
        self.command, self.host, self.place, self.domain, self.scope = command, host, place, domain, scope
        self.draft = place.draft(command.backup)
        self.ran = observe(host, domain).power == "running"
        self.begun = False
        self.disks = [disk.name for disk in command.spec.disks]
        self.since = command.chain[-1].backup if command.chain else None
        self.held: Frozen | None = None
        self.quality: Quality = "off"

    def from_guest(self) -> Saved:
        """Have QEMU write whole disks, or write what it shows of them since the last backup."""
        command, domain, draft = self.command, self.domain, self.draft
        self.place.begin(command.backup)
        retire(domain, () if self.since is None else (self.since,))
        why = command.full or self._footless()
        sizes = {name: self._virtual_size(name) for name in self.disks}
        for name, size in sizes.items():
            # QEMU copies into it, or puts aside what its guest overwrites
            path = self._file(name) if why else draft / aside_file(name)
            qemu_img.create_empty(path, size)
            path.chmod(0o600)
        # what is written before the backup begins is noted too many, and nothing too few
        note(domain, sizes, command.backup)
        block = nullcontext() if command.freeze is None else frozen(domain, command.freeze, self.scope)
        if why or self.since is None:
            with block as self.held:
                began, self.begun = time.monotonic(), True
                job.push(domain, draft, self.disks)
            job.outlast(domain, self.scope, began)
        else:
            recall(domain, self.disks, self.since)
            with block as self.held:
                began, self.begun = time.monotonic(), True
                job.pull(domain, draft, self.disks, self.since)
            job.fetch(self.host, command.vm, draft, sizes, self.scope, began, ran=self.ran)
        self.quality = "crash-consistent" if self.held is None else "frozen"
        # the daemon may be another one now
        self.domain = need(self.host, command.vm)
        if self.ran:
            job.go_on(self.domain)
        forget(self.domain)
        return self._saved(sizes, why)

    def from_files(self) -> Saved:
        """Read the disks of a guest that is off, and have its next QEMU note where it writes."""
        command = self.command
        self.place.begin(command.backup)
        why = command.full or ("the VM is off" if command.chain else "it is the first")
        sizes = {name: self._virtual_size(name) for name in self.disks}
        for name in self.disks:
            source = list(self._layers(name))
            qemu_img.flatten(source, self._file(name), self.scope)
            self._file(name).chmod(0o600)
            kept = () if self.since is None else (note_name(self.since),)
            self._forget_in(source[0][0], lambda name, kept=kept: name not in kept)  # type: ignore[misc]
            qemu_img.note_writes(source[0][0], note_name(command.backup), granularity(sizes[name]))
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
        """Nothing is left of it, as far as that can be done now; whoever tries again does the rest. Raises
        HypervisorLost if nobody can tell whether a job of it goes on."""
        ended = not self.begun or self._is_over()
        with suppress(libvirt.libvirtError, HypervisorLost, Rejected, OSError):
            self._unnote()
        with suppress(Rejected, OSError):
            self.place.drop(self.command.backup)
        if not ended:
            raise HypervisorLost("it is not known whether QEMU goes on with the backup")

    def _is_over(self) -> bool:
        """Whether no job of it goes on that could be ended."""
        # a guest that just died, or a daemon that came back, is asked once more
        for _ in range(2):
            with suppress(libvirt.libvirtError, HypervisorLost, Rejected):
                domain = find(self.host, self.command.vm)
                if domain is not None and domain.isActive():
                    self._end(domain)
                return True
        return False

    def _end(self, domain: Any) -> None:
        try:
            job.end(domain)
        except Rejected as trouble:
            _log.warning("a backup goes on until the next one of its VM", vm=self.command.vm, why=str(trouble))
        if self.ran:
            job.go_on(domain)

    def _unnote(self) -> None:
        """It is not noted any more what is written since this backup."""
        domain = need(self.host, self.command.vm)
        if domain.isActive():
            try:
                retire(domain, () if self.since is None else (self.since,))
            except (libvirt.libvirtError, Rejected):
                if domain.isActive():
                    raise
            else:
                return
        forget(domain)
        ours = note_name(self.command.backup)
        for disk in self.disks:
            self._forget_in(next(self._layers(disk))[0], lambda name: name == ours)

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
        # QEMU may have written it, and its guest may have got the better of that
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
        for name in qemu_img.noted(layer):
            if is_note(name) and which(name):
                qemu_img.forget_writes(layer, name)
