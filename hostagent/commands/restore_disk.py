"""Make a VM's disk out of a backup: its files are compared first, and the disk itself before it gets its name."""

from hostagent import qemu_img
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.contents import Disk
from hostagent.hypervisor import Scope
from hostagent.layers import make_durable
from hostagent.layout import disk_file, draft_of, free_bytes, make_directory, opened, regular_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, RestoreDisk

_GIB = 1024**3


def _reached(command: RestoreDisk, host: Host) -> bool:
    file = disk_file(command.disk.name, command.disk.layer)
    with opened(host.layout.vm(command.disk.storage, command.vm)) as directory:
        return directory is not None and regular_file(directory, file) is not None


@handles(RestoreDisk, reached=_reached)
def restore_disk(command: RestoreDisk, host: Host, scope: Scope) -> Done:
    if _reached(command, host):
        return Done(already=True)
    disk, place = command.disk, host.targets.place(command.target)
    said = command.chain[-1].disk(disk.name)
    if said is None or said.size != disk.size * _GIB:
        raise Rejected("bad-request", f"the backup has no disk {disk.name} of {disk.size} GiB")
    found = list(place.differences(command.chain, scope, disk.name))
    if found:
        raise Rejected("backup-damaged", "; ".join(found), facts={"blockers": found})
    directory = host.layout.vm(disk.storage, command.vm)
    make_directory(directory)
    free = free_bytes(directory)
    if free < said.size:
        raise Rejected(
            "disk-full", f"the disk may grow to {said.size} bytes and {free} are free on {disk.storage} storage"
        )
    file = disk_file(disk.name, disk.layer)
    draft = directory / draft_of(file)
    draft.unlink(missing_ok=True)
    try:
        qemu_img.flatten(place.chain(command.chain, disk.name), draft, scope)
        draft.chmod(0o600)
        with Disk([(draft, "qcow2")], said.size, scope) as made:
            if made.content() != said.content:
                raise Rejected("backup-damaged", f"{disk.name} came out otherwise than it was")
        make_durable(directory, draft.name, file)
    finally:
        draft.unlink(missing_ok=True)
    return Done()
