"""Make a VM's disk: an overlay on its image, or an empty one."""

import os
from pathlib import Path

from hostagent import qemu_img
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import disk_file, draft_of, free_bytes, make_directory, opened, regular_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import CreateDisk, Done

_GIB = 1024**3


def _reached(command: CreateDisk, host: Host) -> bool:
    with opened(host.layout.vm(command.disk.storage, command.vm)) as directory:
        return directory is not None and regular_file(directory, disk_file(command.disk.name)) is not None


@handles(CreateDisk, reached=_reached)
def create_disk(command: CreateDisk, host: Host, scope: Scope) -> Done:
    if _reached(command, host):
        return Done(already=True)
    disk, size = command.disk, command.disk.size * _GIB
    if disk.image is not None and size < disk.image.virtual_size:
        raise Rejected(
            "disk-too-small", f"a disk of {size} bytes cannot hold an image of {disk.image.virtual_size} bytes"
        )
    base = None if disk.image is None else host.images.base(disk.image, disk.storage, scope)
    directory = host.layout.vm(disk.storage, command.vm)
    make_directory(directory)
    free = free_bytes(directory)
    if free < size:
        raise Rejected("disk-full", f"the disk may grow to {size} bytes and {free} are free on {disk.storage} storage")
    final = directory / disk_file(disk.name)
    draft = final.with_name(draft_of(final.name))
    draft.unlink(missing_ok=True)
    try:
        if base is None or disk.image is None:
            qemu_img.create_empty(draft, size)
        else:
            qemu_img.create_overlay(draft, size, base, disk.image.format)
        draft.chmod(0o600)
        _make_durable(directory, draft.name, final.name)
    finally:
        draft.unlink(missing_ok=True)
    return Done()


def _make_durable(directory: Path, draft: str, final: str) -> None:
    with opened(directory) as descriptor:
        assert descriptor is not None
        file = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(draft, final, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        os.fsync(descriptor)
