"""The files that guests' memory is kept in: whether they are whole, and what they say of their guest."""

from pathlib import Path
from typing import Any

from hostagent.commands._host import Host
from hostagent.hypervisor import Scope
from hostagent.layout import delete_file, discard_file, free_bytes, memory_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Memory
from vmorch.core.ids import VmId

_WHOLE = b"LibvirtQemudSave"
"""What libvirt writes over the first bytes at the very end."""
_OVERHEAD = 64 << 20
_LOOK_EVERY = 0.05
_NO_JOB = 0


def is_whole(path: Path) -> bool:
    """Whether the file holds a guest's whole memory."""
    try:
        with path.open("rb") as file:
            return file.read(len(_WHOLE)) == _WHOLE
    except FileNotFoundError:
        return False


def drop(host: Host, vm: VmId, memory: Memory) -> None:
    """The memory is not kept any longer."""
    discard_file(host.layout.vm(memory.storage, vm), memory_file(memory.number))


def make_room(host: Host, vm: VmId, memory: Memory, domain: Any) -> Path:
    """Where the guest's memory is to be kept, with nothing there yet. Raises Rejected `disk-full`."""
    path = host.layout.memory(vm, memory)
    delete_file(path.parent, path.name)
    wanted, free = domain.maxMemory() * 1024 + _OVERHEAD, free_bytes(path.parent)
    if free < wanted:
        raise Rejected("disk-full", f"the guest's memory may take {wanted} bytes and {free} are free")
    return path


def outwait(domain: Any, scope: Scope) -> None:
    """Return when libvirt is at no work on the domain that it may have gone on with by itself."""
    while domain.isActive() and domain.jobInfo()[0] != _NO_JOB:
        scope.pause(_LOOK_EVERY)
