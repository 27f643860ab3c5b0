"""Have a guest go on above new layers, so that the ones below hold this moment; with its memory, if that is wanted.

libvirt does it in one stroke for all disks of a guest that runs, and keeps no record of its own: that would hinder the
domain from moving, and could not be gone back to. What a daemon left half done that died in the stroke is taken back
before it is tried again.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import libvirt
import structlog
from lxml import etree

from hostagent.commands import _memories
from hostagent.commands._chain import check
from hostagent.commands._defining import is_defined, redefine
from hostagent.commands._domain import find, lookup, need, observe, tell
from hostagent.commands._freezing import Frozen, frozen, thaw
from hostagent.commands._host import Host
from hostagent.commands._monitor import Asked, ask_used
from hostagent.commands._registry import handles
from hostagent.commands._withdrawing import clear, give_up, is_above, pairs, withdraw
from hostagent.domain_xml import Told
from hostagent.hypervisor import HypervisorLost, Scope
from hostagent.layers import draft_layer, drop_draft, keep_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, TakeSnapshot

_log = structlog.get_logger(__name__)

Layers = list[tuple[Path, Path]]
"""Each new layer's file, with the one that it stands on."""

_ONE_STROKE = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)


def _reached(command: TakeSnapshot, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None:
        return False
    return is_above(command, host, Told(domain.XMLDesc(0))) and is_defined(host, domain, command.spec)


def _follow(command: TakeSnapshot, host: Host, scope: Scope) -> None:
    domain = find(host, command.vm)
    if domain is None:
        return
    if domain.isActive():
        _memories.outwait(domain, scope)
        if command.freeze is not None:
            thaw(domain)
    told = Told(domain.XMLDesc(0))
    if not is_above(command, host, told) and not scope.answered:
        give_up(command, host, domain)
        # a call of an agent that died may have come first
        told = Told(domain.XMLDesc(0))
    if is_above(command, host, told):
        _note(command, host, domain, told)
    elif scope.answered:
        # a host that lost power may have forgotten what libvirt noted; nothing is taken back that was promised
        _log.warning("a VM is not on the layers of a snapshot that was answered", vm=command.vm)


@handles(TakeSnapshot, reached=_reached, follow=_follow)
def take_snapshot(command: TakeSnapshot, host: Host, scope: Scope) -> Done:
    domain = lookup(host.link.calls, command.vm) or need(host, command.vm)
    # who takes longest to answer is asked first
    asked: Asked | None = ask_used(domain, [disk.name for disk in command.spec.disks])
    told = tell(host, domain, command.vm)
    above = is_above(command, host, told)
    if not above and told.active and withdraw(command, host, domain):
        told, asked = Told(domain.XMLDesc(0)), None
        # a call of an agent that died may have come first here too
        above = is_above(command, host, told)
    if not above:
        held = _go_over(command, host, domain, told, asked, scope)
        return Done(observed=observe(host, domain), frozen=held.seconds if held else None)
    if is_defined(host, domain, command.spec):
        return Done(observed=observe(host, domain), already=True)
    _note(command, host, domain, told)
    return Done(observed=observe(host, domain))


def _go_over(
    command: TakeSnapshot, host: Host, domain: Any, told: Told, asked: Asked | None, scope: Scope
) -> Frozen | None:
    """The VM is on new layers. How long its file systems were at rest."""
    active = told.active
    if not active and command.memory is not None:
        raise Rejected("libvirt-refused", "the domain is off and has no memory to keep")
    if not active and command.freeze is not None:
        raise Rejected("freeze-failed", "the domain is off: it has no file systems to hold at rest")
    layers = [(files.of(command.next), files.of(layer)) for files, layer in pairs(command, host)]
    with _no_drafts_if_it_fails(layers):
        check(host, command, domain, told=told, asked=asked, meanwhile=lambda: _draft(layers))
    held: Frozen | None = None
    with _undone_if_it_fails(command, host, domain):
        scope.check()
        if not active:
            clear(command, host)
            _draft(layers)
        for top, _ in layers:
            keep_layer(top)
        if active:
            held, noted = _take(command, host, domain, scope)
            if noted:
                # the domain begins on the new layers from now on; that libvirt also noted what they stand on, which the
                # next merge makes wrong, can be set right after the answer
                scope.answer(Done(frozen=held.seconds if held else None))
        _note(command, host, domain, told)
    return held


def _draft(layers: Layers) -> None:
    for top, below in layers:
        draft_layer(top, below)


@contextmanager
def _no_drafts_if_it_fails(layers: Layers) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for top, _ in layers:
            # whoever tries again drops it
            with suppress(OSError, Rejected):
                drop_draft(top)
        raise


@contextmanager
def _undone_if_it_fails(command: TakeSnapshot, host: Host, domain: Any) -> Iterator[None]:
    """Layers that were made for nothing are gone. Raises HypervisorLost if nobody knows whether it was for nothing."""
    try:
        yield
    except BaseException as error:
        if not host.link.is_alive():
            if isinstance(error, Rejected):
                raise HypervisorLost(error.reason) from error
            raise
        try:
            give_up(command, host, domain)
        except (libvirt.libvirtError, Rejected) as trouble:
            _log.warning("the layers of a snapshot that failed were left", vm=command.vm, why=str(trouble))
        raise


def _note(command: TakeSnapshot, host: Host, domain: Any, told: Told) -> None:
    """The domain's configuration is what it is on the new layers."""
    try:
        redefine(host, command.vm, command.spec, told)
    except (libvirt.libvirtError, Rejected) as error:
        if not host.link.is_alive() or not domain.isActive():
            raise
        # the moment is held, and the guest goes on above it; what its configuration does not say shows as drift
        _log.warning("the configuration after a snapshot was refused", vm=command.vm, why=str(error))


def _take(command: TakeSnapshot, host: Host, domain: Any, scope: Scope) -> tuple[Frozen | None, bool]:
    """How long file systems were at rest, and whether libvirt noted the new layers in the domain's configuration."""
    if command.memory is not None:
        path = _memories.make_room(host, command.vm, command.memory, domain)
        # a guest that runs goes on until the last moment; one that is halted has no reason to
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE if observe(host, domain).power == "running" else 0
        try:
            _stroke(domain, _xml(command, host, path), flags)
        except libvirt.libvirtError:
            # without the daemon nobody knows whether it was not just done
            if host.link.is_alive():
                _memories.drop(host, command.vm, command.memory)
            raise
        return None, True
    block = nullcontext() if command.freeze is None else frozen(domain, command.freeze, scope)
    held: Frozen | None = None
    try:
        with block as held:
            _stroke(domain, _xml(command, host, None), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    except libvirt.libvirtError as error:
        # libvirt also refuses if it can only not write down what it has done
        if not host.link.is_alive() or not is_above(command, host, Told(domain.XMLDesc(0))):
            raise
        _log.warning("libvirt took a snapshot and could not note it", vm=command.vm, why=str(error))
        return held, False
    return held, True


def _stroke(domain: Any, xml: str, flags: int) -> None:
    domain.snapshotCreateXML(xml, _ONE_STROKE | flags)


def _xml(command: TakeSnapshot, host: Host, memory: Path | None) -> str:
    snapshot = etree.Element("domainsnapshot")
    etree.SubElement(snapshot, "name").text = f"vmorch-{command.next}"
    if memory is not None:
        etree.SubElement(snapshot, "memory", snapshot="external", file=str(memory))
    disks = etree.SubElement(snapshot, "disks")
    for files, _ in pairs(command, host):
        disk = etree.SubElement(disks, "disk", name=files.disk.name, snapshot="external", type="file")
        etree.SubElement(disk, "driver", type="qcow2")
        etree.SubElement(disk, "source", file=str(files.of(command.next)))
    return etree.tostring(snapshot, encoding="unicode")
