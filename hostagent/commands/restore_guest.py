"""Have a guest go on from its kept memory, over the disks of that moment."""

from pathlib import Path
from typing import Any

import libvirt

from hostagent.commands import _memories
from hostagent.commands._chain import check_topmost
from hostagent.commands._defining import define, is_defined
from hostagent.commands._domain import find, need, observe
from hostagent.commands._errors import is_busy
from hostagent.commands._host import Host
from hostagent.commands._qemu import end_qemu
from hostagent.commands._registry import handles
from hostagent.commands._resuming import check_whole
from hostagent.domain_xml import Told, with_disks
from hostagent.hypervisor import Scope
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, RestoreGuest
from vmorch.core.migration import HALTED


def _reached(command: RestoreGuest, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None:
        return False
    seen = observe(host, domain)
    there = seen.power == ("paused" if command.halted else "running") and seen.reason not in HALTED
    ran = there or (host.runs.of(command.vm).phase == "started" and seen.power not in ("running", "paused"))
    if not ran or not is_defined(host, domain, command.spec):
        return False
    return not (command.spend and host.layout.memory(command.vm, command.memory).exists())


def _follow(command: RestoreGuest, host: Host, scope: Scope) -> None:
    domain = find(host, command.vm)
    if domain is not None:
        _memories.outwait(domain, scope)


@handles(RestoreGuest, reached=_reached, follow=_follow)
def restore_guest(command: RestoreGuest, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    already = bool(domain.isActive())
    if already:
        _check_is_this(command, host, domain)
        already = _is_settled(command, host, domain, scope)
    seen = observe(host, domain)
    if not already:
        path = host.layout.memory(command.vm, command.memory)
        if not _memories.is_whole(path):
            raise Rejected("memory-damaged", f"the guest's memory in {path} is missing or not whole")
        disks = [host.layout.disk(command.vm, disk) for disk in command.spec.disks]
        check_topmost(command.vm, disks)
        if not command.spend:
            _check_untouched(disks)
        scope.check()
        define(host, command.vm, domain, command.spec)
        host.runs.starting(command.vm, seen.reason)
        xml = _over(command, host, path)
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if command.halted else libvirt.VIR_DOMAIN_SAVE_RUNNING
        host.link.calls.restoreFlags(str(path), xml, flags)
        _settle(command, host, domain)
        host.runs.started(command.vm)
    if already:
        define(host, command.vm, domain, command.spec)
    if command.spend:
        _memories.drop(host, command.vm, command.memory)
    return Done(observed=observe(host, domain), already=already)


def _check_is_this(command: RestoreGuest, host: Host, domain: Any) -> None:
    """What runs here is the guest on these disks. Raises Rejected: `chain-drift` if it is on others, `libvirt-refused`
    if a migration halted it, so that it may run elsewhere."""
    if host.runs.of(command.vm).phase != "starting":
        check_whole(observe(host, domain))
    found = Told(domain.XMLDesc(0)).disks
    for disk in command.spec.disks:
        path, used = str(host.layout.disk(command.vm, disk)), found.get(disk.name)
        if used != path:
            raise Rejected("chain-drift", f"the running guest writes {disk.name} to {used} and not to {path}")


def _is_settled(command: RestoreGuest, host: Host, domain: Any, scope: Scope) -> bool:
    """Whether the guest that is there is as it shall be. False: it is not there any more."""
    try:
        _settle(command, host, domain)
    except libvirt.libvirtError as error:
        if error.get_error_domain() == libvirt.VIR_FROM_RPC:
            raise
        if domain.isActive():
            if not is_busy(error) or host.runs.of(command.vm).phase != "starting":
                raise
            end_qemu(domain, scope)
        return False
    return True


def _check_untouched(disks: list[Path]) -> None:
    """A guest's memory fits its disks as they were: one that went on from there before and ended has changed them.
    Raises Rejected `chain-drift`."""
    for path in disks:
        header = read_layer(path)
        if header is None or not header.empty:
            raise Rejected("chain-drift", f"{path} was written to, so that the kept memory does not fit it")


def _settle(command: RestoreGuest, host: Host, domain: Any) -> None:
    """A guest that shall run runs, also if a daemon died before it let it; one that shall be halted is so like any
    other. QEMU gives a guest its disks only when it first runs, and until then it could neither be moved nor kept; so
    it runs for a moment."""
    seen = observe(host, domain)
    if seen.power == "paused" and (seen.reason in HALTED or not command.halted):
        domain.resume()
        if command.halted:
            domain.suspend()


def _over(command: RestoreGuest, host: Host, path: object) -> str:
    """The configuration that the guest had, over the disks of the command."""
    saved = host.link.calls.saveImageGetXMLDesc(str(path), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
    return with_disks(saved, {disk.name: host.layout.disk(command.vm, disk) for disk in command.spec.disks})
