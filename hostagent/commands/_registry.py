"""Which function carries out which host command, and which one tells whether it is done."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from hostagent.commands._host import Host
from hostagent.hypervisor import Scope
from vmorch.core.hostcommands import Done
from vmorch.core.messages import HostCommand

C = TypeVar("C", bound=HostCommand)


class Handler(NamedTuple):
    """The sides of one host command. `follow` waits for the end of what libvirt goes on with by itself, takes back what
    was left half done, and does what comes after the answer."""

    reach: Callable[[Any, Host, Scope], Done]
    reached: Callable[[Any, Host], bool]
    follow: Callable[[Any, Host, Scope], None]


HANDLERS: dict[type[HostCommand], Handler] = {}


def _nothing_goes_on(_command: HostCommand, _host: Host, _scope: Scope) -> None: ...


def handles(
    command: type[C],
    *,
    reached: Callable[[C, Host], bool],
    follow: Callable[[C, Host, Scope], None] = _nothing_goes_on,
) -> Callable[[Callable[[C, Host, Scope], Done]], Callable[[C, Host, Scope], Done]]:
    """Register how a command's target is reached. `reached` only looks; `follow` comes before it when the agent
    stopped in the middle. Each may raise Rejected or libvirtError."""

    def register(reach: Callable[[C, Host, Scope], Done]) -> Callable[[C, Host, Scope], Done]:
        if command in HANDLERS:
            raise TypeError(f"{command.kind} is handled twice")
        HANDLERS[command] = Handler(reach, reached, follow)
        return reach

    return register
