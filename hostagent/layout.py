"""Where the agent's files are, and how they are touched without being led elsewhere.

Every name is made from an id that was checked here or from a fixed word; nothing that a guest or an image says
becomes part of a path. Must not know what the files hold.

Directories can be passed through but not listed by others, because QEMU may run as a user of its own.
"""

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hostagent.network_fs import keeps_names
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Memory
from vmorch.core.ids import VmId
from vmorch.core.spec import DiskSpec, ImagePin, Storage

_VM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DISK = re.compile(r"vd[a-z]")
_LAYER = re.compile(r"(?P<disk>vd[a-z])(\.(?P<layer>[1-9][0-9]*))?\.qcow2")
_DIRECTORY_MODE = 0o711
_BLOCK = 4096

FREED_AFTER = 1.0
"""Seconds: longer than what follows a deletion in its operation."""

SEED, SERIAL_LOG, RUN_RECORD = "seed.iso", "serial.log", "run.json"


class _Discarded:
    """Descriptors of files that have no name any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: set[int] = set()

    def add(self, descriptor: int) -> None:
        with self._lock:
            self._kept.add(descriptor)
        later = threading.Timer(FREED_AFTER, self.give_back)
        later.daemon = True
        later.start()

    def give_back(self) -> None:
        """Nothing that was added before keeps its space."""
        with self._lock:
            gone, self._kept = self._kept, set()
        for descriptor in gone:
            # nothing was written by it that could be lost
            with suppress(OSError):
                os.close(descriptor)


_DISCARDED = _Discarded()


class Layout:
    """The directories of one host: its own, and the one that it shares with others if there is one."""

    def __init__(self, local: Path, shared: Path | None) -> None:
        self._roots: dict[Storage, Path] = {"local": local / "vmorch"}
        if shared is not None:
            self._roots["shared"] = shared / "vmorch"

    @property
    def storages(self) -> tuple[Storage, ...]:
        """The storages that this host has."""
        return tuple(self._roots)

    def root(self, storage: Storage) -> Path:
        """Our directory on a storage; it may not exist yet. Raises Rejected `no-such-storage`."""
        root = self._roots.get(storage)
        if root is None:
            raise Rejected("no-such-storage", f"this host has no {storage} storage")
        return root

    def images(self, storage: Storage) -> Path:
        return self.root(storage) / "images"

    def image(self, storage: Storage, pin: ImagePin) -> Path:
        """Where the image's verified bytes are, or shall be."""
        if not _DIGEST.fullmatch(pin.digest):
            raise Rejected("bad-request", f"{pin.digest!r} is not a digest")
        return self.images(storage) / f"{pin.digest}.{pin.format}"

    def vms(self, storage: Storage) -> Path:
        return self.root(storage) / "vms"

    def aside(self, storage: Storage) -> Path:
        """Where directories are that nobody owned, until they are deleted."""
        return self.root(storage) / "aside"

    def vm(self, storage: Storage, vm: VmId) -> Path:
        """The VM's directory on a storage. Raises Rejected `bad-request` for what is not an id of ours."""
        if not _VM_ID.fullmatch(vm):
            raise Rejected("bad-request", f"{vm!r} is not a VM id")
        return self.vms(storage) / vm

    def disk(self, vm: VmId, disk: DiskSpec) -> Path:
        """The file that the VM writes to for this disk."""
        home = disk.at(vm)
        return self.vm(disk.storage, home.vm) / disk_file(home.name, disk.layer)

    def memory(self, vm: VmId, memory: Memory) -> Path:
        return self.vm(memory.storage, vm) / memory_file(memory.number)


def is_vm_id(name: str) -> bool:
    """Whether a domain of that name could be ours."""
    return _VM_ID.fullmatch(name) is not None


def disk_file(name: str, layer: int = 0) -> str:
    """The file name of a disk's layer."""
    if not _DISK.fullmatch(name) or layer < 0:
        raise Rejected("bad-request", f"{name!r} has no layer {layer}")
    return f"{name}.{layer}.qcow2" if layer else f"{name}.qcow2"


def layer_of(name: str, file: str) -> int | None:
    """Which layer of a disk a file of that name holds; None if it holds none."""
    found = _LAYER.fullmatch(file)
    return int(found["layer"] or 0) if found is not None and found["disk"] == name else None


def memory_file(number: int) -> str:
    """The file name of a guest's memory."""
    return f"memory.{number}"


def make_directory(path: Path) -> None:
    """The directory and its parents exist. Raises Rejected `not-ours` if a link or file stands in its place."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=_DIRECTORY_MODE)
    try:
        path.mkdir(mode=_DIRECTORY_MODE)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise Rejected("not-ours", f"{path} is not a directory") from None


@contextmanager
def opened(directory: Path) -> Iterator[int | None]:
    """A descriptor of the directory, or None if there is none. A link in its place is refused as `not-ours`."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Rejected("not-ours", f"{directory} is not a directory") from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def regular_file(directory: int, name: str) -> os.stat_result | None:
    """The file's status, None if there is none. Raises Rejected `not-ours` if it is no plain file."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise Rejected("not-ours", f"{name} is not a plain file")
    return found


def delete_file(directory: Path, name: str) -> bool:
    """The directory holds no such file. False if it held none before. Links and directories stay: `not-ours`."""
    with opened(directory) as descriptor:
        if descriptor is None or regular_file(descriptor, name) is None:
            return False
        os.unlink(name, dir_fd=descriptor)
        return True


def discard_file(directory: Path, name: str) -> None:
    """As `delete_file`, for a large file: its space is given back within FREED_AFTER seconds, or before somebody is
    told how much is free. That takes a file system long, and who wants something to be on the disk meanwhile, such as
    an answer, would wait for it."""
    with opened(directory) as descriptor:
        if descriptor is None or regular_file(descriptor, name) is None:
            return
        # as long as somebody has it open, a file that is gone keeps its space
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        kept = None if keeps_names(directory) else os.open(name, flags, dir_fd=descriptor)
        os.unlink(name, dir_fd=descriptor)
    if kept is not None:
        _DISCARDED.add(kept)


def is_clean(directory: Path, *names: str) -> bool:
    """Whether neither these files nor drafts of them are left, nor an empty directory."""
    with opened(directory) as descriptor:
        if descriptor is None:
            return True
        left = set(os.listdir(descriptor))
    return bool(left) and left.isdisjoint([*names, *map(draft_of, names)])


def clean(directory: Path, *names: str) -> None:
    """Neither these files nor drafts of them are left, nor the directory if it held nothing else."""
    for name in names:
        delete_file(directory, name)
        delete_file(directory, draft_of(name))
    drop_if_empty(directory)


def draft_of(name: str) -> str:
    """What a file is called until it is complete; a crash may leave it."""
    return f".{name}.new"


def drop_if_empty(directory: Path) -> None:
    """Remove a VM's directory when nothing is left in it."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise


def write_file(directory: Path, name: str, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """The file holds exactly this; a reader, or a crash, sees the old or the new. Durable survives a power cut."""
    write_draft(directory, name, data, mode=mode, durable=durable)
    keep_draft(directory, name, durable=durable)


def write_draft(directory: Path, name: str, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """The draft of the file holds exactly this. Raises OSError, Rejected `not-ours`."""
    with opened(directory) as descriptor:
        if descriptor is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        draft = draft_of(name)
        if regular_file(descriptor, draft) is not None:
            os.unlink(draft, dir_fd=descriptor)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(draft, flags, mode, dir_fd=descriptor), "wb") as file:
            _write_sparse(file, data)
            if durable:
                os.fsync(file.fileno())


def keep_draft(directory: Path, name: str, *, durable: bool = True) -> None:
    """The file is what its draft was. Raises OSError."""
    with opened(directory) as descriptor:
        if descriptor is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        os.rename(draft_of(name), name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        if durable:
            os.fsync(descriptor)


def _write_sparse(file: BinaryIO, data: bytes) -> None:
    """The new file holds this, and takes no space for what is zeros."""
    for at in range(0, len(data), _BLOCK):
        part = data[at : at + _BLOCK]
        if part.count(0) < len(part):
            file.seek(at)
            file.write(part)
    file.truncate(len(data))
    file.flush()


def free_bytes(directory: Path) -> int:
    """What an ordinary writer can still put on the file system under the directory."""
    _DISCARDED.give_back()
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
