"""Remove layers on which nothing stands, and kept memory, with all that they hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt

from hostagent.commands import _memories
from hostagent.commands._chain import check, files_of, stack_named, standing_on
from hostagent.commands._domain import find
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.domain_xml import Told
from hostagent.hypervisor import Scope
from hostagent.layout import delete_file, discard_file, draft_of, drop_if_empty, is_clean, memory_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, DropLayers


def _reached(command: DropLayers, host: Host) -> bool:
    memories = (is_clean(host.layout.vm(each.storage, command.vm), memory_file(each.number)) for each in command.memory)
    return all(memories) and all(is_clean(path.parent, path.name) for path in _named(command, host))


@handles(DropLayers, reached=_reached)
def drop_layers(command: DropLayers, host: Host, scope: Scope) -> Done:
    left = [path for path in _named(command, host) if path.exists()]
    if command.layers and _reached(command, host):
        return Done(already=True)
    # with nothing to drop it is the look at the layers that is wanted
    _check(command, host, left)
    if _reached(command, host):
        return Done(already=True)
    scope.check()
    for path in _named(command, host):
        discard_file(path.parent, path.name)
        delete_file(path.parent, draft_of(path.name))
    for memory in command.memory:
        _memories.drop(host, command.vm, memory)
        drop_if_empty(host.layout.vm(memory.storage, command.vm))
    return Done()


def _named(command: DropLayers, host: Host) -> Iterator[Path]:
    for name, layers in command.layers.items():
        files = files_of(host, command.vm, stack_named(command, name).disk)
        yield from (files.of(layer) for layer in layers)


def _check(command: DropLayers, host: Host, left: list[Path]) -> None:
    """Raises Rejected `chain-drift`, or `busy` if something needs what shall go."""
    leaving = {(name, layer) for name, layers in command.layers.items() for layer in layers}
    domain = find(host, command.vm)
    check(host, command, domain, leaving=frozenset(leaving))
    if not left:
        return
    used = set(_in_use(domain))
    for path in left:
        if str(path) in used:
            raise Rejected("busy", f"{path} is in use by the domain")
        if standing := standing_on(path):
            raise Rejected("busy", f"{', '.join(standing)} stands on {path}")


def _in_use(domain: Any | None) -> Iterator[str]:
    if domain is None:
        return
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        for files in Told(domain.XMLDesc(flags)).chains.values():
            yield from files
