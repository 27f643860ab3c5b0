"""Give a domain a further disk; a guest that is on gets it at once, and libvirt says when it has it."""

from pathlib import Path
from queue import Empty
from typing import Any

import libvirt

from hostagent.commands._chain import check_topmost
from hostagent.commands._defining import define, is_defined
from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._monitor import is_forgotten, take_out
from hostagent.commands._qemu import check_held
from hostagent.commands._registry import handles
from hostagent.domain_xml import Told, disk_device
from hostagent.hypervisor import Scope
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import AttachDisk, Done
from vmorch.core.spec import DiskSpec

CONFIRMED_WITHIN = 10.0
LOOK_EVERY = 0.1


def _disk(command: AttachDisk) -> DiskSpec:
    found = next((each for each in command.spec.disks if each.name == command.name), None)
    if found is None:
        raise Rejected("bad-request", f"the specification has no disk {command.name}")
    return found


def _reached(command: AttachDisk, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None or not is_defined(host, domain, command.spec):
        return False
    return not domain.isActive() or _is_plugged(command, host, domain)


def _is_plugged(command: AttachDisk, host: Host, domain: Any) -> bool:
    return Told(domain.XMLDesc(0)).disks.get(command.name) == str(host.layout.disk(command.vm, _disk(command)))


@handles(AttachDisk, reached=_reached)
def attach_disk(command: AttachDisk, host: Host, scope: Scope) -> Done:
    domain, path = need(host, command.vm), host.layout.disk(command.vm, _disk(command))
    if _reached(command, host):
        return Done(observed=observe(host, domain), already=True)
    _check_file(command, host, path)
    check_topmost(command.vm, [path])
    scope.check()
    if not domain.isActive():
        check_held(command.vm)
    elif not _is_plugged(command, host, domain):
        _plug(command, host, domain, path, scope)
    define(host, command.vm, domain, command.spec)
    return Done(observed=observe(host, domain))


def _check_file(command: AttachDisk, host: Host, path: Path) -> None:
    """The guest is given a disk that stands on nothing but its own image. Raises Rejected `chain-drift`."""
    disk, header = _disk(command), read_layer(path)
    if header is None:
        raise Rejected("chain-drift", f"{path} is gone: bring it back from a backup")
    below = "" if disk.image is None else str(host.layout.image(disk.storage, disk.image))
    if header.backing != below or header.corrupt:
        raise Rejected("chain-drift", f"{path} stands on {header.backing or 'nothing'} and not on {below or 'nothing'}")


def _plug(command: AttachDisk, host: Host, domain: Any, path: Path, scope: Scope) -> None:
    if is_forgotten(domain, path):
        take_out(domain, path, CONFIRMED_WITHIN, scope.check)
    with host.link.devices(command.vm) as told:
        domain.attachDeviceFlags(disk_device(command.name, path), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        alias = Told(domain.XMLDesc(0)).aliases.get(command.name, "")
        waited = 0.0
        while waited < CONFIRMED_WITHIN:
            try:
                if told.get(timeout=LOOK_EVERY) == ("added", alias):
                    return
            except Empty:
                waited += LOOK_EVERY
                scope.check()
    raise Rejected("libvirt-refused", f"libvirt did not say that the guest has {command.name}")
