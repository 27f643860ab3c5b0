"""Have libvirt and QEMU agree again on which files a guest's disks are on.

A libvirt daemon that is killed just after QEMU has ended a merge can come back with the layers of before, of which QEMU
has no trace: from then on it refuses every change of them and could not move the guest. It finds the files anew when
the guest is brought back from its memory, so that is kept and brought back at once; the guest stands still meanwhile.
"""

from typing import Any

import libvirt
import structlog

from hostagent.commands import _memories
from hostagent.commands._domain import observe
from hostagent.commands._host import Host
from hostagent.domain_xml import with_disks
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Memory
from vmorch.core.ids import VmId
from vmorch.core.spec import VmSpec

_log = structlog.get_logger(__name__)


def park(host: Host, vm: VmId, domain: Any, spec: VmSpec, number: int, scope: Scope) -> None:
    """The guest goes on, over the disks of `spec`, with libvirt's idea of them found anew. `number` is that of the file
    which its memory is in meanwhile. Raises Rejected `disk-full`, libvirtError."""
    _log.warning("libvirt and QEMU differ on a guest's layers; bringing it back from its memory", vm=vm)
    path = _memories.make_room(host, vm, _memory(spec, number), domain)
    halted = observe(host, domain).power == "paused"
    host.runs.park(vm, "halted" if halted else "running")
    domain.saveFlags(str(path), None, 0)
    unpark(host, vm, domain, spec, number, scope)


def unpark(host: Host, vm: VmId, domain: Any, spec: VmSpec, number: int, scope: Scope) -> None:
    """A guest that was parked goes on. Safe to repeat."""
    parked = host.runs.of(vm).parked
    if not parked:
        return
    _memories.outwait(domain, scope)
    memory = _memory(spec, number)
    path = host.layout.memory(vm, memory)
    if not domain.isActive() and _memories.is_whole(path):
        files = {disk.name: host.layout.disk(vm, disk) for disk in spec.disks}
        flags = libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
        xml = with_disks(host.link.calls.saveImageGetXMLDesc(str(path), flags), files)
        restore = libvirt.VIR_DOMAIN_SAVE_PAUSED if parked == "halted" else libvirt.VIR_DOMAIN_SAVE_RUNNING
        host.link.calls.restoreFlags(str(path), xml, restore)
    if domain.isActive() and observe(host, domain).power == "paused":
        # QEMU gives a guest its disks only when it first runs
        domain.resume()
        if parked == "halted":
            domain.suspend()
    host.runs.park(vm, "")
    _memories.drop(host, vm, memory)


def _memory(spec: VmSpec, number: int) -> Memory:
    return Memory(number=number, storage=spec.disks[0].storage)
