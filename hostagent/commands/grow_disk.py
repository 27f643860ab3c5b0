"""Make a disk larger: by its QEMU if a guest uses it, else by qemu-img."""

from hostagent import qemu_img
from hostagent.commands._domain import find, observe
from hostagent.commands._host import Host
from hostagent.commands._qemu import check_held
from hostagent.commands._registry import handles
from hostagent.domain_xml import Told
from hostagent.hypervisor import Scope
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, GrowDisk

_GIB = 1024**3
_BYTES = 1
"""Of libvirt's flags: sizes are in bytes."""


def _reached(command: GrowDisk, host: Host) -> bool:
    header = read_layer(host.layout.disk(command.vm, command.disk))
    # a running QEMU writes the header at once
    return header is not None and header.virtual_size >= command.disk.size * _GIB


@handles(GrowDisk, reached=_reached)
def grow_disk(command: GrowDisk, host: Host, scope: Scope) -> Done:
    domain, disk = find(host, command.vm), command.disk
    seen = None if domain is None else observe(host, domain)
    if _reached(command, host):
        return Done(observed=seen, already=True)
    path, size = host.layout.disk(command.vm, disk), disk.size * _GIB
    if read_layer(path) is None:
        raise Rejected("chain-drift", f"{path} is gone: bring it back from a backup")
    scope.check()
    if domain is not None and domain.isActive():
        used = Told(domain.XMLDesc(0)).disks.get(disk.name)
        if used != str(path):
            where = used or "nothing"
            raise Rejected("chain-drift", f"the running guest writes {disk.name} to {where} and not to {path}")
        domain.blockResize(disk.name, size, _BYTES)
    else:
        check_held(command.vm)
        qemu_img.resize(path, size)
    return Done(observed=seen)
