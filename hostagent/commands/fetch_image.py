"""Bring an image into the host's cache."""

from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done, FetchImage


def _reached(command: FetchImage, host: Host) -> bool:
    return host.images.has(command.image)


@handles(FetchImage, reached=_reached)
def fetch_image(command: FetchImage, host: Host, scope: Scope) -> Done:
    if _reached(command, host):
        return Done(already=True)
    host.images.fetch(command.image, command.path, scope)
    return Done()
