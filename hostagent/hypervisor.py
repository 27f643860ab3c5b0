"""What the agent needs of a hypervisor, real or simulated; one contract suite runs against both.

Must not know about sessions, journals or the bus.
"""

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from vmorch.core.hostcommands import Answer, Done, Observed, Sample
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import HostFacts


class Inventory(Struct, frozen=True, kw_only=True):
    """Every domain on the host at one moment: those that vmorch made, with what differs from their
    definition (field -> (defined, found)), and the names of all others."""

    domains: dict[VmId, Observed]
    configuration: dict[VmId, dict[str, tuple[str, str]]]
    unmanaged: tuple[str, ...]


class Withdrawn(Exception):
    """The order was withdrawn while it was carried out."""


class Expired(Exception):
    """The order's deadline passed while it was carried out."""


class Scope(Protocol):
    """How long an order may go on, asked between the parts of long work. `answered`: it was answered already, so that
    nothing that it reached may be taken back."""

    answered: bool

    def check(self) -> None:
        """Raise Withdrawn or Expired if the order must not go on."""

    def remaining(self) -> float:
        """Seconds until the deadline, at least 0."""

    def pause(self, seconds: float) -> None:
        """Wait that long, or less if the order is withdrawn or expires, which is then raised."""

    def tell(self, sample: Sample) -> None:
        """Show how far a passage has come. Never waits, never fails, and may reach nobody."""

    def answer(self, done: Done) -> None:
        """The target is reached for good, and whoever waits may know it: the command only sets right after it what
        nobody waits for. If that is broken off, `resolve` does it. May wait a moment, and never fails. Not for commands
        that are carried out on the event loop, which it would hold up."""


class HypervisorLost(Exception):
    """The hypervisor's daemon cannot be reached now; nothing is known about the effect of a call in flight."""


class Hypervisor(Protocol):
    """Blocking, thread-safe, idempotent. Called from lane threads, never from the event loop."""

    def facts(self) -> HostFacts:
        """What this host is. Raises HypervisorLost."""

    def execute(self, command: HostCommand, scope: Scope) -> Answer:
        """Reach the command's target and tell what is seen then. Refusals are Failed with a stable code.
        Raises Withdrawn, Expired, HypervisorLost."""

    def resolve(self, command: HostCommand, scope: Scope) -> Answer:
        """After a crash in the middle of `execute`: look whether the target is reached, and do no part of it.
        What the daemon goes on with by itself is followed to its end first, within the command's own limits, and what a
        command does after its answer is done.
        Done(already=True) if it is reached, else Failed(code="interrupted"), or a command's own code where the
        looking tells more. Raises Withdrawn, Expired, HypervisorLost."""

    def inventory(self) -> Inventory:
        """Look at every domain. Raises HypervisorLost."""

    def observe(self, vm: VmId) -> Observed:
        """Look at one domain; `absent` if there is none. Raises HypervisorLost."""

    def watch(self, changed: Callable[[VmId | None], None], lost: Callable[[], None]) -> None:
        """From now on call `changed` (from any thread) when a domain may have changed, with None when any
        may have, and `lost` when the daemon went away."""

    def reconnect(self) -> None:
        """Reach a daemon that went away. Raises HypervisorLost if it is still away."""

    def close(self) -> None:
        """Let go of everything; domains go on."""
