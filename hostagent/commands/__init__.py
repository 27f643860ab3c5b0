"""What this host can be told, one file per host command; libvirt is called here and in `hostagent.link` only.

A command's file says two things: how its target is reached, and how one sees that it is. Both block, both are
safe to repeat. Must not know about sessions, journals or the bus.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeGuard, TypeVar

import libvirt

from hostagent.commands._domain import observe_vm
from hostagent.commands._errors import refusal_of
from hostagent.commands._facts import host_facts
from hostagent.commands._host import Host
from hostagent.commands._inventory import take_inventory
from hostagent.commands._registry import HANDLERS
from hostagent.hypervisor import HypervisorLost, Inventory, Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Answer, DomainCommand, Done, Failed, Observed, RestoreGuest, StartDomain
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import HostFacts

T = TypeVar("T")

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")


def carry_out(host: Host, command: HostCommand, scope: Scope) -> Answer:
    """Reach the command's target. Refusals, libvirt's own among them, come back as Failed.
    Raises Withdrawn, Expired, HypervisorLost."""
    handler = HANDLERS.get(type(command))
    if handler is None:
        return Failed(code="unknown-command", message=f"this agent does not know {command.kind}")
    try:
        if _holds_the_vm(command) and not isinstance(command, StartDomain | RestoreGuest):
            host.runs.settle(command.vm)
        return handler.reach(command, host, scope)
    except Rejected as refusal:
        return _failed(host, command, refusal)
    except libvirt.libvirtError as error:
        refused = refusal_of(error, host.link)
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            # a call of an agent that died may have been under way in the daemon and come first
            seen = look(host, command)
            if isinstance(seen, Done):
                return seen
        return _failed(host, command, refused)


def follow(host: Host, command: HostCommand, scope: Scope) -> Answer:
    """Whether the command's target is reached, once libvirt has ended what it may still be doing for it.
    Raises Withdrawn, Expired, HypervisorLost."""
    handler = HANDLERS.get(type(command))
    if handler is None:
        return Failed(code="unknown-command", message=f"this agent does not know {command.kind}")
    try:
        handler.follow(command, host, scope)
    except Rejected as refusal:
        return _failed(host, command, refusal)
    except libvirt.libvirtError as error:
        return _failed(host, command, refusal_of(error, host.link))
    return look(host, command)


def look(host: Host, command: HostCommand) -> Answer:
    """Whether the command's target is reached; nothing is changed. Raises HypervisorLost."""
    handler = HANDLERS[type(command)]
    try:
        if handler.reached(command, host):
            return Done(observed=_observed(host, command), already=True)
    except Rejected as refusal:
        return _failed(host, command, refusal)
    except libvirt.libvirtError as error:
        return _failed(host, command, refusal_of(error, host.link))
    message = f"the agent stopped during {command.kind} and found its target not reached"
    return Failed(code="interrupted", message=message, observed=_observed(host, command))


def _holds_the_vm(command: HostCommand) -> TypeGuard[DomainCommand]:
    """Whether the command runs in its VM's own lane, so that no other one writes the VM's record meanwhile."""
    return isinstance(command, DomainCommand) and command.lane == f"vm/{command.vm}"


def see(host: Host, vm: VmId) -> Observed:
    """What is seen of one VM; `absent` also for a domain of its name that is not ours. Raises HypervisorLost."""
    try:
        return _asked(host, lambda: observe_vm(host, vm))
    except Rejected:
        return Observed(power="absent")


def look_around(host: Host) -> Inventory:
    """What is seen of every domain. Raises HypervisorLost."""
    return _asked(host, lambda: take_inventory(host))


def tell_facts(host: Host) -> HostFacts:
    """What the host is. Raises HypervisorLost."""
    return _asked(host, lambda: host_facts(host))


def _asked(host: Host, question: Callable[[], T]) -> T:
    """The answer to a question that libvirt has no reason to refuse: if it does, nothing is known."""
    try:
        return question()
    except libvirt.libvirtError as error:
        raise HypervisorLost(refusal_of(error, host.link).reason) from error


def _failed(host: Host, command: HostCommand, refusal: Rejected) -> Failed:
    return Failed(
        code=refusal.code,
        message=refusal.reason,
        observed=_observed(host, command),
        blockers=tuple(refusal.facts.get("blockers", ())),
    )


def _observed(host: Host, command: HostCommand) -> Observed | None:
    if not isinstance(command, DomainCommand):
        return None
    try:
        return observe_vm(host, command.vm)
    except Rejected:  # somebody else's domain of that name: nothing to say about it
        return None
    except libvirt.libvirtError as error:
        raise HypervisorLost(refusal_of(error, host.link).reason) from error
