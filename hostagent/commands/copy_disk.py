"""Copy a disk that nobody uses to one that stands by itself."""

from hostagent import qemu_img
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layers import make_durable
from hostagent.layout import draft_of, free_bytes, make_directory
from hostagent.qcow2 import read_layer
from hostagent.qemu_img import File
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import CopyDisk, Done


def _reached(command: CopyDisk, host: Host) -> bool:
    return read_layer(host.layout.disk(command.vm, command.disk)) is not None


@handles(CopyDisk, reached=_reached)
def copy_disk(command: CopyDisk, host: Host, scope: Scope) -> Done:
    if _reached(command, host):
        return Done(already=True)
    path, source = host.layout.disk(command.vm, command.disk), command.source
    chain: list[File] = [(host.layout.disk(command.vm, source), "qcow2")]
    header = read_layer(chain[0][0])
    if header is None:
        raise Rejected("chain-drift", f"{chain[0][0]} is gone: bring it back from a backup")
    if source.image is not None:
        chain.append((host.layout.image(source.storage, source.image), source.image.format))
    below = str(chain[1][0]) if len(chain) > 1 else ""
    if header.backing != below:
        found, wanted = header.backing or "nothing", below or "nothing"
        raise Rejected("chain-drift", f"{chain[0][0]} stands on {found} and not on {wanted}")
    make_directory(path.parent)
    free = free_bytes(path.parent)
    if free < header.virtual_size:
        raise Rejected("disk-full", f"the copy may take {header.virtual_size} bytes and {free} are free")
    draft = path.with_name(draft_of(path.name))
    draft.unlink(missing_ok=True)
    try:
        qemu_img.flatten(chain, draft, scope)
        draft.chmod(0o600)
        make_durable(path.parent, draft.name, path.name)
    finally:
        draft.unlink(missing_ok=True)
    return Done()
