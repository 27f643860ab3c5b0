"""Take new layers away again that no guest was put on, or that a daemon died with.

A call to libvirt of an agent that died may still wait for its turn and put the guest on a layer that is just being
taken away. So each is renamed first, QEMU is asked after that, and then it is decided. What holds data stays.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostagent.commands._chain import Files, files_of, stack_named
from hostagent.commands._host import Host
from hostagent.commands._monitor import has_open, take_back, written_by
from hostagent.commands._qemu import check_held
from hostagent.domain_xml import Told
from hostagent.layers import drop_draft
from hostagent.layout import delete_file
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import TakeSnapshot


def pairs(command: TakeSnapshot, host: Host) -> Iterator[tuple[Files, int]]:
    """Where each disk's layers are, with the one that is written to until the snapshot."""
    for disk in command.spec.disks:
        yield files_of(host, command.vm, disk), stack_named(command, disk.name).disk.layer


def is_above(command: TakeSnapshot, host: Host, told: Told) -> bool:
    """Whether the domain of this XML writes to the new layers."""
    found = told.disks
    return all(
        found.get(files.disk.name) == str(files.of(command.next)) and files.stands_on(command.next, layer)
        for files, layer in pairs(command, host)
    )


def give_up(command: TakeSnapshot, host: Host, domain: Any) -> None:
    """The new layers are gone, unless the VM is on them or they hold data. Raises Rejected, libvirtError."""
    if is_above(command, host, Told(domain.XMLDesc(0))):
        return
    if domain.isActive():
        withdraw(command, host, domain)
    else:
        check_held(command.vm)
        clear(command, host)


def withdraw(command: TakeSnapshot, host: Host, domain: Any) -> bool:
    """What a daemon or an agent that died left half done is undone, and new layers are gone that hold nothing and that
    the guest is not on. Whether any was left. Raises Rejected `busy`, libvirtError."""
    left = [
        (files, layer)
        for files, layer in pairs(command, host)
        if files.of(command.next).exists() or _withdrawn(files.of(command.next)).exists()
    ]
    tops = [files.of(command.next) for files, _ in left]
    try:
        for top in tops:
            # whoever still wants to go over to it finds nothing
            if top.exists():
                _rename(top, _withdrawn(top))
        if left:
            # libvirt has one of its clients change a domain at a time, so that no such call is under way after this
            written_by(domain)
            believed = Told(domain.XMLDesc(0)).disks
            for files, layer in left:
                if believed.get(files.disk.name) == str(files.of(layer)):
                    _withdraw_one(domain, files, layer, files.of(command.next))
    finally:
        # whoever is on one of them, or finds data in it, shall find it by its name
        for top in tops:
            if _withdrawn(top).exists():
                _rename(_withdrawn(top), top)
    for files, _ in pairs(command, host):
        drop_draft(files.of(command.next))
    return bool(left)


def clear(command: TakeSnapshot, host: Host) -> None:
    """Nothing is left of an attempt that came to nothing, unless it holds data. Only for layers that nobody uses."""
    for files, _ in pairs(command, host):
        top = files.of(command.next)
        for path in (top, _withdrawn(top)):
            if _is_empty(path):
                delete_file(path.parent, path.name)
        drop_draft(top)


def _withdraw_one(domain: Any, files: Files, layer: int, top: Path) -> None:
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
