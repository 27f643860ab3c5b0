"""Take a disk away from a domain; a guest that is on is asked to let go of it, and libvirt says when it has.

libvirt's call returns at once, whatever the guest does. A guest that takes longer than it was given may let go later:
the disk then stays in the configuration until the order comes again.
"""

import time
from pathlib import Path
from queue import Empty
from typing import Any

import libvirt

from hostagent.commands._defining import define, is_defined
from hostagent.commands._domain import find, observe
from hostagent.commands._host import Host
from hostagent.commands._monitor import is_forgotten, take_out
from hostagent.commands._registry import handles
from hostagent.commands.attach_disk import LOOK_EVERY
from hostagent.domain_xml import Told, disk_device
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import DetachDisk, Done, Observed


def _reached(command: DetachDisk, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None:
        return True
    if not is_defined(host, domain, command.spec):
        return False
    return not domain.isActive() or not (_is_plugged(command, domain) or is_forgotten(domain, _path(command, host)))


def _is_plugged(command: DetachDisk, domain: Any) -> bool:
    return command.disk.name in Told(domain.XMLDesc(0)).disks


def _path(command: DetachDisk, host: Host) -> Path:
    return host.layout.disk(command.vm, command.disk)


@handles(DetachDisk, reached=_reached)
def detach_disk(command: DetachDisk, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    if domain is None:
        return Done(observed=Observed(power="absent"), already=True)
    if _reached(command, host):
        return Done(observed=observe(host, domain), already=True)
    scope.check()
    if domain.isActive():
        if _is_plugged(command, domain):
            _unplug(command, host, domain, scope)
        elif is_forgotten(domain, _path(command, host)):
            take_out(domain, _path(command, host), min(command.within, scope.remaining()), scope.check)
    define(host, command.vm, domain, command.spec)
    return Done(observed=observe(host, domain))


def _unplug(command: DetachDisk, host: Host, domain: Any, scope: Scope) -> None:
    name, path = command.disk.name, _path(command, host)
    alias = Told(domain.XMLDesc(0)).aliases.get(name, "")
    with host.link.devices(command.vm) as told:
        try:
            domain.detachDeviceFlags(disk_device(name, path), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            # it was asked before, and may be about to do it
            if "in the process of unplug" not in error.get_error_message():
                raise
        ends = time.monotonic() + min(command.within, scope.remaining())
        while time.monotonic() < ends:
            try:
                what = told.get(timeout=LOOK_EVERY)
            except Empty:
                scope.check()
                continue
            if what == ("removed", alias):
                return
            if what == ("refused", alias):
                raise Rejected("device-held", f"the guest refuses to let go of {name}")
    # what was said before anybody listened, or while the daemon was away
    if _is_plugged(command, domain):
        raise Rejected("device-held", f"the guest did not let go of {name} within {command.within:g} s")
