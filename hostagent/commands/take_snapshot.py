"""Have a guest go on above new layers, so that the ones below hold this moment; with its memory, if that is wanted.

libvirt does it in one stroke for all disks of a guest that runs, and keeps no record of its own: that would hinder the
domain from moving, and could not be gone back to. What a daemon left half done that died in the stroke is taken back
before it is tried again.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import libvirt
import structlog
from lxml import etree

from hostagent.commands import _memories
from hostagent.commands._chain import Files, check, files_of, stack_named
from hostagent.commands._defining import is_defined, redefine
from hostagent.commands._domain import find, need, observe
from hostagent.commands._freezing import Frozen, frozen, thaw
from hostagent.commands._host import Host
from hostagent.commands._monitor import has_open, take_back, written_by
from hostagent.commands._qemu import check_held
from hostagent.commands._registry import handles
from hostagent.domain_xml import is_active, read_disks
from hostagent.hypervisor import HypervisorLost, Scope
from hostagent.layers import make_layer
from hostagent.layout import delete_file, draft_of
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, TakeSnapshot

_log = structlog.get_logger(__name__)

_ONE_STROKE = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)


def _reached(command: TakeSnapshot, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None:
        return False
    return _is_above(command, host, domain.XMLDesc(0)) and is_defined(host, domain, command.spec)


def _is_above(command: TakeSnapshot, host: Host, told: str) -> bool:
    """Whether the domain of this XML writes to the new layers."""
    found = read_disks(told)
    return all(
        found.get(files.disk.name) == str(files.of(command.next)) and files.stands_on(command.next, layer)
        for files, layer in _pairs(command, host)
    )


def _follow(command: TakeSnapshot, host: Host, scope: Scope) -> None:
    domain = find(host, command.vm)
    if domain is None:
        return
    if domain.isActive():
        _memories.outwait(domain, scope)
        if command.freeze is not None:
            thaw(domain)
    _give_up(command, host, domain)


@handles(TakeSnapshot, reached=_reached, follow=_follow)
def take_snapshot(command: TakeSnapshot, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    told = str(domain.XMLDesc(0))
    held: Frozen | None = None
    if _is_above(command, host, told):
        if is_defined(host, domain, command.spec):
            return Done(observed=observe(host, domain), already=True)
        _note(command, host, domain, told)
    else:
        active = is_active(told)
        if not active and command.memory is not None:
            raise Rejected("libvirt-refused", "the domain is off and has no memory to keep")
        if not active and command.freeze is not None:
            raise Rejected("freeze-failed", "the domain is off: it has no file systems to hold at rest")
        if active and _take_back(command, host, domain):
            told = str(domain.XMLDesc(0))
        check(host, command, domain, told=told)
        if not active:
            _clear_all(command, host)
        scope.check()
        with _undone_if_it_fails(command, host, domain):
            for files, layer in _pairs(command, host):
                make_layer(files.of(command.next), files.of(layer))
            if active:
                held = _take(command, host, domain, scope)
            _note(command, host, domain, told)
    return Done(observed=observe(host, domain), frozen=None if held is None else held.seconds)


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
            _give_up(command, host, domain)
        except (libvirt.libvirtError, Rejected) as trouble:
            _log.warning("the layers of a snapshot that failed were left", vm=command.vm, why=str(trouble))
        raise


def _give_up(command: TakeSnapshot, host: Host, domain: Any) -> None:
    """The new layers are gone, unless the VM is on them or they hold data. Raises Rejected, libvirtError."""
    if _is_above(command, host, domain.XMLDesc(0)):
        return
    if domain.isActive():
        _take_back(command, host, domain)
    else:
        check_held(command.vm)
        _clear_all(command, host)


def _note(command: TakeSnapshot, host: Host, domain: Any, told: str) -> None:
    """The domain's configuration is what it is on the new layers."""
    try:
        redefine(host, command.vm, command.spec, told)
    except (libvirt.libvirtError, Rejected) as error:
        if not host.link.is_alive() or not domain.isActive():
            raise
        # the moment is held, and the guest goes on above it; what its configuration does not say shows as drift
        _log.warning("the configuration after a snapshot was refused", vm=command.vm, why=str(error))


def _pairs(command: TakeSnapshot, host: Host) -> Iterator[tuple[Files, int]]:
    """Where each disk's layers are, with the one that is written to until now."""
    for disk in command.spec.disks:
        yield files_of(host, command.vm, disk), stack_named(command, disk.name).disk.layer


def _take_back(command: TakeSnapshot, host: Host, domain: Any) -> bool:
    """What a daemon or an agent that died left half done is undone, and new layers are gone that hold nothing and that
    the guest is not on. Whether any was left. Raises Rejected `busy`, libvirtError."""
    left = [
        (files, layer)
        for files, layer in _pairs(command, host)
        if files.of(command.next).exists() or _withdrawn(files.of(command.next)).exists()
    ]
    tops = [files.of(command.next) for files, _ in left]
    try:
        for top in tops:
            # a call of an agent that died may still wait for its turn, and then finds nothing
            if top.exists():
                _rename(top, _withdrawn(top))
        if left:
            # libvirt has one of its clients change a domain at a time, so that no such call is under way after this
            written_by(domain)
            believed = read_disks(domain.XMLDesc(0))
            for files, layer in left:
                if believed.get(files.disk.name) == str(files.of(layer)):
                    _take_back_one(domain, files, layer, files.of(command.next))
    finally:
        # whoever is on one of them, or finds data in it, shall find it by its name
        for top in tops:
            if _withdrawn(top).exists():
                _rename(_withdrawn(top), top)
    for files, _ in _pairs(command, host):
        delete_file(files.directory, draft_of(files.of(command.next).name))
    return bool(left)


def _take_back_one(domain: Any, files: Files, layer: int, top: Path) -> None:
    """A withdrawn layer that libvirt does not know of is gone, unless it holds what is nowhere else."""
    kept = _withdrawn(top)
    # what it holds is below after that, where newer writes go
    merged = take_back(domain, files.disk.name, top, files.of(layer))
    if merged or (_is_empty(kept) and not has_open(domain, top)):
        delete_file(kept.parent, kept.name)


def _rename(path: Path, to: Path) -> None:
    if to.exists():
        raise Rejected("chain-drift", f"{path} and {to} are both there: move the one away that holds nothing")
    path.rename(to)


def _withdrawn(layer: Path) -> Path:
    """What a layer is called while it is found out whether anybody uses it."""
    return layer.with_name(f".{layer.name}.withdrawn")


def _is_empty(path: Path) -> bool:
    header = read_layer(path)
    return header is not None and header.empty


def _clear_all(command: TakeSnapshot, host: Host) -> None:
    """Nothing is left of an attempt that came to nothing, unless it holds data. Only for layers that nobody uses."""
    for files, _ in _pairs(command, host):
        top = files.of(command.next)
        for path in (top, _withdrawn(top)):
            if _is_empty(path):
                delete_file(path.parent, path.name)
        delete_file(top.parent, draft_of(top.name))


def _take(command: TakeSnapshot, host: Host, domain: Any, scope: Scope) -> Frozen | None:
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
        return None
    block = nullcontext() if command.freeze is None else frozen(domain, command.freeze, scope)
    held: Frozen | None = None
    try:
        with block as held:
            _stroke(domain, _xml(command, host, None), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    except libvirt.libvirtError as error:
        # libvirt also refuses if it can only not write down what it has done
        if not host.link.is_alive() or not _is_above(command, host, domain.XMLDesc(0)):
            raise
        _log.warning("libvirt took a snapshot and could not note it", vm=command.vm, why=str(error))
    return held


def _stroke(domain: Any, xml: str, flags: int) -> None:
    domain.snapshotCreateXML(xml, _ONE_STROKE | flags)


def _xml(command: TakeSnapshot, host: Host, memory: Path | None) -> str:
    snapshot = etree.Element("domainsnapshot")
    etree.SubElement(snapshot, "name").text = f"vmorch-{command.next}"
    if memory is not None:
        etree.SubElement(snapshot, "memory", snapshot="external", file=str(memory))
    disks = etree.SubElement(snapshot, "disks")
    for files, _ in _pairs(command, host):
        disk = etree.SubElement(disks, "disk", name=files.disk.name, snapshot="external", type="file")
        etree.SubElement(disk, "driver", type="qcow2")
        etree.SubElement(disk, "source", file=str(files.of(command.next)))
    return etree.tostring(snapshot, encoding="unicode")
