"""Make new, empty layers above old ones, so that a VM can go on from there. Nothing uses them yet."""

from collections.abc import Iterator
from pathlib import Path

from hostagent.commands._chain import check, files_of, stack_named
from hostagent.commands._domain import find
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layers import make_layer
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, MakeLayers


def _reached(command: MakeLayers, host: Host) -> bool:
    return all(_is_made(path, below) for path, below in _wanted(command, host))


def _is_made(path: Path, below: Path) -> bool:
    header = read_layer(path)
    return header is not None and header.backing == str(below) and header.empty


@handles(MakeLayers, reached=_reached)
def make_layers(command: MakeLayers, host: Host, scope: Scope) -> Done:
    if _reached(command, host):
        return Done(already=True)
    check(host, command, find(host, command.vm))
    scope.check()
    made: list[Path] = []
    try:
        for path, below in _wanted(command, host):
            make_layer(path, below)
            made.append(path)
    except Rejected:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return Done()


def _wanted(command: MakeLayers, host: Host) -> Iterator[tuple[Path, Path]]:
    """Each new layer's file with the one that it stands on."""
    for name, below in command.on.items():
        files = files_of(host, command.vm, stack_named(command, name).disk)
        yield files.of(command.next), files.of(below)
