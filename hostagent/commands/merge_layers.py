"""Merge a layer into the one below it, under the guest if it runs.

The lower file is written to and the upper one is not, so that a merge can be broken off at any time and repeated: until
it is over the guest reads the same through both. The one moment in which that is not so is the change to the lower file
of the guest's own layer. It is made while the guest stands still, so that a host that loses power then has the same
twice.
"""

import time
from typing import Any

import libvirt

from hostagent import qemu_img
from hostagent.commands._chain import Files, check, files_of, stack_named
from hostagent.commands._defining import define, is_defined
from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._monitor import has_job
from hostagent.commands._parking import park, unpark
from hostagent.commands._registry import handles
from hostagent.domain_xml import Told
from hostagent.hypervisor import Expired, Scope, Withdrawn
from hostagent.layout import discard_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, MergeLayers
from vmorch.core.layers import Merge, Stack, above

_LOOK_EVERY, _LOOK_SOON, _SOON = 0.2, 0.005, 1.0
_READY_SECONDS = 5.0


def _reached(command: MergeLayers, host: Host) -> bool:
    stack = stack_named(command, command.disk)
    files = files_of(host, command.vm, stack.disk)
    if files.of(command.top).exists():
        return False
    if host.runs.of(command.vm).held or host.runs.of(command.vm).parked:
        return False
    if not all(files.stands_on(layer, command.into) for layer in above(stack.tree, command.top)):
        return False
    domain = find(host, command.vm)
    return domain is not None and is_defined(host, domain, command.spec)


def _follow(command: MergeLayers, host: Host, scope: Scope) -> None:
    """A guest that was halted for the change goes on; libvirt goes on with the copying by itself."""
    domain = find(host, command.vm)
    if domain is not None:
        unpark(host, command.vm, domain, command.spec, command.next, scope)
        _let_go_on(command, host, domain)


@handles(MergeLayers, reached=_reached, follow=_follow)
def merge_layers(command: MergeLayers, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    unpark(host, command.vm, domain, command.spec, command.next, scope)
    _let_go_on(command, host, domain)
    if _reached(command, host):
        return Done(observed=observe(host, domain), already=True)
    stack = stack_named(command, command.disk)
    files = files_of(host, command.vm, stack.disk)
    # asked first: a job that ends meanwhile changes what the guest is on
    told = Told(domain.XMLDesc(0))
    begun = told.active and command.disk in told.disks and has_job(domain, command.disk)
    held = check(
        host,
        command,
        domain,
        merging=Merge(command.top, command.into),
        merged=command.disk,
        changing=host.runs.of(command.vm).changing == _name(command),
    )
    scope.check()
    active, chain = held.active, (held.told if held.active else held.configured).get(command.disk, ("",))
    top, into = str(files.of(command.top)), str(files.of(command.into))
    if active and top in chain and not begun and top not in held.written.get(command.disk, (top,)):
        # QEMU has done it already, whatever libvirt believes
        park(host, command.vm, domain, command.spec, command.next, scope)
    elif active and top in chain:
        if not begun:
            _begin(command, domain, files, active=chain[0] == top)
        _under_guest(command, host, domain, scope, top, active=chain[0] == top)
    elif not _was_merged(command, stack, chain, into, active=active) and files.of(command.top).exists():
        qemu_img.commit(files.of(command.top), files.of(command.into), scope)
    _settle(command, host, domain, files, stack)
    return Done(observed=observe(host, domain))


def _begin(command: MergeLayers, domain: Any, files: Files, *, active: bool) -> None:
    flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if active else 0
    domain.blockCommit(command.disk, str(files.of(command.into)), str(files.of(command.top)), 0, flags)


def _was_merged(
    command: MergeLayers, stack: Stack, chain: tuple[str, ...], into: str, *, active: bool
) -> bool:
    """Whether only the tidying is left. What the guest has written to the lower layer since must not be overwritten by
    what it wrote to the upper one before."""
    if stack.disk.layer == command.top:
        return chain[0] == into
    return active and into in chain


def _settle(command: MergeLayers, host: Host, domain: Any, files: Files, stack: Stack) -> None:
    """What stood on the upper layer stands on the lower one, and the upper one is gone."""
    for layer in above(stack.tree, command.top):
        if not files.stands_on(layer, command.into):
            qemu_img.stand_on(files.of(layer), files.of(command.into), "qcow2")
    define(host, command.vm, domain, command.spec)
    discard_file(files.directory, files.of(command.top).name)
    host.runs.change(command.vm, "")


def _under_guest(
    command: MergeLayers, host: Host, domain: Any, scope: Scope, top: str, *, active: bool
) -> None:
    """The merge that has begun is over. Raises Withdrawn, Expired once it was ended, Rejected."""
    disk, looked = command.disk, 0.0
    try:
        while (job := domain.blockJobInfo(disk, 0)) and not (active and _is_ready(job)):
            pause = _LOOK_SOON if looked < _SOON else _LOOK_EVERY
            scope.pause(pause)
            looked += pause
    except (Withdrawn, Expired):
        domain.blockJobAbort(disk, 0)
        raise
    if active and job:
        _change_over(command, host, domain)
    if top in Told(domain.XMLDesc(0)).chains.get(disk, ()):
        raise Rejected("libvirt-refused", f"the merge of layer {command.top} of {disk} ended without effect")


def _name(command: MergeLayers) -> str:
    return f"{command.disk}.{command.top}"


def _is_ready(job: dict[str, Any]) -> bool:
    return bool(job["cur"] == job["end"] and job["end"])


def _change_over(command: MergeLayers, host: Host, domain: Any) -> None:
    """The guest writes to the lower layer from now on."""
    host.runs.change(command.vm, _name(command))
    halted = observe(host, domain).power == "paused"
    if not halted:
        host.runs.hold(command.vm, True)
        domain.suspend()
    try:
        _pivot(domain, command.disk)
    finally:
        _let_go_on(command, host, domain)


def _pivot(domain: Any, disk: str) -> None:
    # QEMU's figures say that all is merged a moment before libvirt takes note of its word that it is ready
    ends = time.monotonic() + _READY_SECONDS
    while True:
        try:
            domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            return
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE or time.monotonic() >= ends:
                raise
        time.sleep(_LOOK_SOON)


def _let_go_on(command: MergeLayers, host: Host, domain: Any) -> None:
    """The guest goes on that we halted."""
    if not host.runs.of(command.vm).held:
        return
    if domain.isActive() and observe(host, domain).power == "paused":
        domain.resume()
    host.runs.hold(command.vm, False)
