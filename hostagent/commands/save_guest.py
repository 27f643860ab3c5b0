"""Keep a guest's memory and switch it off in the same moment, so that it can go on from there some day."""

import libvirt

from hostagent.commands import _memories
from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.commands._resuming import check_whole
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, SaveGuest


def _reached(command: SaveGuest, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None or domain.isActive():
        return False
    return _memories.is_whole(host.layout.memory(command.vm, command.memory))


def _follow(command: SaveGuest, host: Host, scope: Scope) -> None:
    domain = find(host, command.vm)
    if domain is not None:
        _memories.outwait(domain, scope)


@handles(SaveGuest, reached=_reached, follow=_follow)
def save_guest(command: SaveGuest, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    seen = observe(host, domain)
    if seen.power not in ("running", "paused"):
        if _reached(command, host):
            return Done(observed=seen, already=True)
        raise Rejected("libvirt-refused", f"the domain is {seen.power} and its memory was not kept")
    check_whole(seen)
    path = _memories.make_room(host, command.vm, command.memory, domain)
    scope.check()
    host.runs.ran(command.vm)
    try:
        domain.saveFlags(str(path), None, 0)
    except libvirt.libvirtError:
        # without the daemon nobody knows whether it was not just done
        if host.link.is_alive() and domain.isActive():
            _memories.drop(host, command.vm, command.memory)
        raise
    return Done(observed=observe(host, domain))
