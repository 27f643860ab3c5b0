"""Make a VM's disk: an overlay on its image, or an empty one."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layers import make_disk
from hostagent.layout import free_bytes, make_directory, opened, regular_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import CreateDisk, Done

_GIB = 1024**3


def _reached(command: CreateDisk, host: Host) -> bool:
    path = host.layout.disk(command.vm, command.disk)
    with opened(path.parent) as directory:
        return directory is not None and regular_file(directory, path.name) is not None


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
    path = host.layout.disk(command.vm, disk)
    make_directory(path.parent)
    free = free_bytes(path.parent)
    if free < size:
        raise Rejected("disk-full", f"the disk may grow to {size} bytes and {free} are free on {disk.storage} storage")
    format = "qcow2" if disk.image is None else disk.image.format
    make_disk(path, size, base, format)
    return Done()
