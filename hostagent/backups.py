"""Where backups lie: a directory for each, whole or not there, and what is checked before any of it is believed.

A backup is written under a name that is not its own and gets that only once all of it is on disk. Its files are opened
by names that we make ourselves; whatever stands in them, in the manifest or in a header, names no other file. Must not
know how a backup is taken.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from hostagent.contents import Disk, file_digest
from hostagent.hypervisor import Scope
from hostagent.layout import draft_of, opened, regular_file, write_file
from hostagent.qemu_img import File
from hostagent.shared import shared_id
from vmorch.core.backup import Manifest, Saved, SavedDisk, Target
from vmorch.core.errors import Rejected
from vmorch.core.ids import BackupId, Digest
from vmorch.core.image_header import read_image_header

MANIFEST = "manifest.json"
_MOST_MANIFEST = 4 * 1024 * 1024
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FILE = re.compile(r"\.?(vd[a-z]\.(qcow2|aside)|manifest\.json)(\.new)?")


class Targets:
    """The directories for backups that a host was told of."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = {name: directory.absolute() for name, directory in directories.items()}

    def ids(self) -> dict[str, str]:
        """Those that are there, by name, with the id that each has wherever it is seen."""
        return {name: shared_id(path) for name, path in sorted(self._directories.items()) if path.is_dir()}

    def place(self, target: Target) -> "Place":
        """A directory that is there and has that id. Raises Rejected `no-such-target`."""
        directory = self._directories.get(target.name)
        if directory is None or not directory.is_dir():
            raise Rejected("no-such-target", f"this host has no target {target.name} for backups, or it is not mounted")
        if shared_id(directory) != target.id:
            raise Rejected("no-such-target", f"what is at {target.name} here is another target than was meant")
        return Place(directory)


class Place:
    """One target."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, backup: BackupId) -> Path:
        """Where a backup is. Raises Rejected `bad-request` for what is not an id of ours."""
        if not _ID.fullmatch(backup):
            raise Rejected("bad-request", f"{backup!r} is not the id of a backup")
        return self.root / backup

    def draft(self, backup: BackupId) -> Path:
        """Where it is until it is whole."""
        return self.root / draft_of(self.directory(backup).name)

    def saved(self, backup: BackupId) -> Saved | None:
        """What a backup's own manifest says of it; None if there is none. Raises Rejected `backup-damaged`."""
        with opened(self.directory(backup)) as directory:
            if directory is None or (found := regular_file(directory, MANIFEST)) is None:
                return None
            if found.st_size > _MOST_MANIFEST:
                raise Rejected("backup-damaged", f"the manifest of {backup} has {found.st_size} bytes")
            descriptor = os.open(MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(_MOST_MANIFEST)
        try:
            return msgspec.json.decode(data, type=Manifest).saved
        except msgspec.MsgspecError as error:
            raise Rejected("backup-damaged", f"the manifest of {backup} cannot be read: {error}") from error

    def begin(self, backup: BackupId) -> Path:
        """An empty directory for a new backup."""
        self.clear(backup)
        draft = self.draft(backup)
        draft.mkdir(mode=0o711)
        return draft

    def clear(self, backup: BackupId) -> None:
        """Nothing is left of a new backup that was not finished. Raises Rejected `not-ours`."""
        _remove(self.draft(backup))

    def finish(self, backup: BackupId, manifest: Manifest) -> None:
        """What was written to the draft is the backup from now on, also after a power cut."""
        draft, final = self.draft(backup), self.directory(backup)
        for disk in manifest.saved.disks:
            _sync(draft / disk_file(disk.name), os.O_RDONLY)
        write_file(draft, MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        os.rename(draft, final)
        _sync(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def drop(self, backup: BackupId) -> bool:
        """Nothing of the backup is left. False if nothing was there. Raises Rejected `not-ours` for what is not a
        backup."""
        draft, final = self.draft(backup), self.directory(backup)
        there = _remove(draft)
        try:
            # one that is half deleted must not look like one
            os.rename(final, draft)
        except FileNotFoundError:
            return there
        _remove(draft)
        _sync(self.root, os.O_RDONLY | os.O_DIRECTORY)
        return True

    def chain(self, backups: tuple[Saved, ...], disk: str) -> list[File]:
        """The files that a disk of the last of these backups is read through, topmost first."""
        return [(self.directory(each.backup) / disk_file(disk), "qcow2") for each in reversed(backups)]

    def missing(self, backups: tuple[Saved, ...]) -> list[str]:
        """The backups of which not every file is there."""
        return [
            each.backup
            for each in backups
            if any(not (self.directory(each.backup) / disk_file(disk.name)).is_file() for disk in each.disks)
        ]

    def differences(self, backups: tuple[Saved, ...], scope: Scope, only: str | None = None) -> Iterator[str]:
        """Everything by which the files of these backups, of one disk or of all, differ from what was made.
        Raises Withdrawn, Expired."""
        for each in backups:
            for disk in each.disks:
                if only in (None, disk.name):
                    yield from self._of_file(each, disk, scope)

    def together(self, backups: tuple[Saved, ...], scope: Scope) -> Iterator[str]:
        """The disks of the last of these backups that do not give what they gave when it was made, though their files
        are as they were. Raises Rejected, Withdrawn, Expired."""
        for disk in backups[-1].disks:
            with Disk(self.chain(backups, disk.name), disk.size, scope) as whole:
                if whole.content() != disk.content:
                    yield f"{disk.name} of {backups[-1].backup} does not give what it gave when it was made"

    def _of_file(self, saved: Saved, disk: SavedDisk, scope: Scope) -> Iterator[str]:
        what = f"{disk.name} of {saved.backup}"
        path = self.directory(saved.backup) / disk_file(disk.name)
        try:
            check_header(path, disk.size)
            if file_digest(path, scope) != disk.sha256:
                yield f"{what} has other bytes than were written"
        except FileNotFoundError:
            yield f"{what} is gone"
        except Rejected as refusal:
            yield f"{what}: {refusal.reason}"
        except OSError as error:
            yield f"{what} cannot be read: {error.strerror}"


def saved_disk(name: str, path: Path, size: int, content: Digest, scope: Scope) -> SavedDisk:
    """What is noted of a file that was just written. Raises Withdrawn, Expired."""
    taken = path.stat().st_blocks * 512
    return SavedDisk(name=name, size=size, bytes=taken, sha256=file_digest(path, scope), content=content)


def check_header(path: Path, size: int) -> None:
    """The file is a qcow2 image of that size that stands by itself. Raises Rejected, FileNotFoundError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        length = os.fstat(descriptor).st_size
        header = read_image_header(
            lambda offset, bytes: os.pread(descriptor, bytes, offset), length, max_virtual_size=size, declared="qcow2"
        )
    finally:
        os.close(descriptor)
    if header.virtual_size != size:
        raise Rejected("backup-damaged", f"it is a disk of {header.virtual_size} bytes and not of {size}")


def disk_file(disk: str) -> str:
    """The file name of a disk's backup. Raises Rejected `bad-request`."""
    return f"{_checked(disk)}.qcow2"


def aside_file(disk: str) -> str:
    """The name of the file, in a draft, in which is put aside what a guest overwrites while its disk is backed up.
    Raises Rejected `bad-request`."""
    return f"{_checked(disk)}.aside"


def is_of_draft(path: Path) -> bool:
    """Whether a file there would be part of a backup that is not finished."""
    found = _ID.search(path.parent.name)
    return found is not None and draft_of(found[0]) == path.parent.name and _FILE.fullmatch(path.name) is not None


def _checked(disk: str) -> str:
    if not re.fullmatch(r"vd[a-z]", disk):
        raise Rejected("bad-request", f"{disk!r} is no disk")
    return disk


def _remove(directory: Path) -> bool:
    """Delete a directory with what a backup consists of; whatever else is in it stays, and so does it."""
    with opened(directory) as descriptor:
        if descriptor is None:
            return False
        for name in os.listdir(descriptor):
            if not _FILE.fullmatch(name) or regular_file(descriptor, name) is None:
                raise Rejected("not-ours", f"{directory / name} is no part of a backup")
            os.unlink(name, dir_fd=descriptor)
    os.rmdir(directory)
    return True


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
