"""Write what cloud-init finds in the guest."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import SEED, make_directory, opened, regular_file, write_file
from hostagent.seed import seed_files, seed_iso
from vmorch.core.hostcommands import Done, WriteSeed


def _wanted(command: WriteSeed) -> bytes:
    return seed_iso(seed_files(command.seed, command.nics, command.instance))


def _holds(command: WriteSeed, host: Host, wanted: bytes) -> bool:
    directory = host.layout.vm("local", command.vm)
    with opened(directory) as descriptor:
        if descriptor is None or regular_file(descriptor, SEED) is None:
            return False
    return (directory / SEED).read_bytes() == wanted


def _reached(command: WriteSeed, host: Host) -> bool:
    return _holds(command, host, _wanted(command))


@handles(WriteSeed, reached=_reached)
def write_seed(command: WriteSeed, host: Host, scope: Scope) -> Done:
    wanted = _wanted(command)
    if _holds(command, host, wanted):
        return Done(already=True)
    directory = host.layout.vm("local", command.vm)
    make_directory(directory)
    write_file(directory, SEED, wanted)
    return Done()
