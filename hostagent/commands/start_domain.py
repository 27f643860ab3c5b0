"""Make a domain run, or stand ready to run with its vCPUs halted."""

from pathlib import Path
from typing import Any

import libvirt

from hostagent.commands._chain import check_topmost
from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._qemu import check_held
from hostagent.commands._registry import handles
from hostagent.commands._resuming import check_whole, resume
from hostagent.domain_xml import Told
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, StartDomain

ROOT_DISK = "vda"
"""Every VM has it."""

_RAN = frozenset({"shutdown", "destroyed", "crashed", "migrated", "saved"})
"""Why a domain is off that was once running; one whose QEMU never got so far is `failed`."""


def _reached(command: StartDomain, host: Host) -> bool:
    """It runs, or it is off again after the very start that is asked about."""
    record = host.runs.of(command.vm)
    domain = find(host, command.vm)
    if domain is None:
        return False
    seen = observe(host, domain)
    if seen.power != "running" and record.phase == "starting":
        _outwait(domain)
        seen = observe(host, domain)
    if command.halted:
        return seen.power == "paused"
    if seen.power == "running":
        return True
    if seen.power == "paused" or not record.phase:
        return False
    if record.phase == "started":
        return True
    # the agent stopped inside the call: libvirt's reason changed, or the guest had time to print something
    if seen.reason == "failed":
        return False
    return (seen.reason in _RAN and seen.reason != record.before) or (
        host.runs.serial_bytes(command.vm) > record.serial_bytes
    )


def _outwait(domain: Any) -> None:
    """Return when no start of the domain is under way: the daemon goes on with one whose caller has died.

    Until it is over libvirt shows the domain as off or paused, but answers no question about its disks.
    """
    domain.blockInfo(ROOT_DISK)


@handles(StartDomain, reached=_reached)
def start_domain(command: StartDomain, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    seen = observe(host, domain)
    check_whole(seen)
    if command.halted and seen.power == "running":
        raise Rejected("libvirt-refused", "the domain runs")
    # before anything else: from here on a crash is judged by this record and by no older one
    host.runs.starting(command.vm, seen.reason)
    if seen.power == ("paused" if command.halted else "running"):
        host.runs.started(command.vm)
        return Done(observed=seen, already=True)
    scope.check()
    if seen.power == "paused":
        resume(host, domain)
    else:
        check_held(command.vm)
        check_topmost(command.vm, map(Path, Told(domain.XMLDesc(0)).disks.values()))
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if command.halted else 0)
    host.runs.started(command.vm)
    return Done(observed=observe(host, domain))
