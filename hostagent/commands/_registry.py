"""Which function carries out which host command, and which one tells whether it is done."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from hostagent.commands._host import Host
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done
from vmorch.core.messages import HostCommand

C = TypeVar("C", bound=HostCommand)


class Handler(NamedTuple):
    """The two sides of one host command."""

    reach: Callable[[Any, Host, Scope], Done]
    reached: Callable[[Any, Host], bool]


HANDLERS: dict[type[HostCommand], Handler] = {}


def handles(
    command: type[C], *, reached: Callable[[C, Host], bool]
) -> Callable[[Callable[[C, Host, Scope], Done]], Callable[[C, Host, Scope], Done]]:
    """Register how a command's target is reached. `reached` only looks. Either may raise Rejected or libvirtError."""

    def register(reach: Callable[[C, Host, Scope], Done]) -> Callable[[C, Host, Scope], Done]:
        if command in HANDLERS:
            raise TypeError(f"{command.kind} is handled twice")
        HANDLERS[command] = Handler(reach, reached)
        return reach

    return register
