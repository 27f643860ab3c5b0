"""Set the memory that a running guest is meant to use."""

import time
from typing import Any

import libvirt

from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done, Observed, SetMemory

SETTLE_SECONDS = 1.0
"""How long a guest gets to follow, so that the answer shows what it did; a slower one is seen later."""
_LOOK_EVERY = 0.05


def _reached(command: SetMemory, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is not None and observe(host, domain).memory == command.memory


@handles(SetMemory, reached=_reached)
def set_memory(command: SetMemory, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    # always told: what is in force says nothing about the target of a guest that is still on its way
    already = observe(host, domain).memory == command.memory
    domain.setMemoryFlags(command.memory * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return Done(observed=_settled(command, host, domain, scope), already=already)


def _settled(command: SetMemory, host: Host, domain: Any, scope: Scope) -> Observed:
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        seen = observe(host, domain)
        if seen.memory == command.memory or seen.power != "running" or time.monotonic() >= until:
            return seen
        scope.pause(_LOOK_EVERY)
