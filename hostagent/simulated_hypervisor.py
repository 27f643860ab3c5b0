"""A hypervisor that exists only in this process, on the pure model of a host, with faults on demand.

For development, rehearsal and tests. Must not behave better than libvirt does: what libvirt
refuses is refused, what takes time takes time, and faults can be asked for.
"""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from hostagent.hypervisor import HypervisorLost, Inventory, Scope
from vmorch.bus.private import write_private
from vmorch.core.hostcommands import (
    Answer,
    AwaitReady,
    CreateDisk,
    DomainCommand,
    Failed,
    FetchImage,
    Observed,
    StartDomain,
    StopDomain,
)
from vmorch.core.hypervisor import LibvirtHost, differences, expect, observe, resolve
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import HostFacts

GUEST_STOPS_IN = 0.05
"""Seconds that a guest takes to power off when it is asked."""


def typical_seconds(command: HostCommand) -> float:
    """About how long a small host takes, guests booting a hundred times faster than real ones."""
    match command:
        case FetchImage():
            return 0.2
        case CreateDisk() | StartDomain():
            return 0.03
        case AwaitReady():
            return 0.1
    return 0.005


def no_seconds(_command: HostCommand) -> float:
    """Everything happens at once."""
    return 0.0


class _Fault(Struct, frozen=True):
    """`when`: the daemon goes away before or after the effect, or the command hangs, or is refused."""

    when: Literal["lost-before", "lost-after", "hang", "refuse"]
    kind: str | None
    failure: Failed | None = None


class SimulatedHypervisor:
    """A `Hypervisor` on the pure model. `sleep` waits within an order's scope; `keep` is called with every
    new state before its command is answered."""

    def __init__(
        self,
        facts: HostFacts,
        host: LibvirtHost,
        *,
        seconds: Callable[[HostCommand], float] = typical_seconds,
        sleep: Callable[[float, Scope], None] = lambda seconds, scope: scope.pause(seconds),
        keep: Callable[[LibvirtHost], None] = lambda host: None,
    ) -> None:
        self._facts = facts
        self._host = host
        self._seconds = seconds
        self._sleep = sleep
        self._keep = keep
        self._lock = threading.Lock()
        self._here = True
        self._faults: list[_Fault] = []
        self._hanging = threading.Event()
        self._changed: Callable[[VmId | None], None] = lambda vm: None
        self._lost: Callable[[], None] = lambda: None
        self.begun: Counter[str] = Counter()
        """How often a command of each kind was told to the host."""
        self.effects: Counter[str] = Counter()
        """How often a command of each kind changed the host."""

    @property
    def host(self) -> LibvirtHost:
        """Everything on the host now."""
        return self._host

    def facts(self) -> HostFacts:
        self._reachable()
        return self._facts

    def execute(self, command: HostCommand, scope: Scope) -> Answer:
        scope.check()
        self._reachable()
        fault = self._take_fault(command.kind)
        with self._lock:
            self.begun[command.kind] += 1
        if fault is not None and fault.when == "lost-before":
            self.vanish()
            raise HypervisorLost("the daemon ended")
        if fault is not None and fault.when == "hang":
            self._hanging.clear()
            while not self._hanging.is_set():
                self._sleep(0.02, scope)
        self._sleep(self._takes(command), scope)
        self._reachable()
        if fault is not None and fault.failure is not None:
            return fault.failure
        answer = self._apply(command)
        if fault is not None and fault.when == "lost-after":
            self.vanish()
            raise HypervisorLost("the daemon ended")
        return answer

    def resolve(self, command: HostCommand) -> Answer:
        self._reachable()
        return resolve(self._host, command)

    def inventory(self) -> Inventory:
        self._reachable()
        host = self._host
        return Inventory(
            domains={vm: observe(host, vm) for vm in host.domains},
            configuration={vm: found for vm, domain in host.domains.items() if (found := differences(domain))},
            unmanaged=host.foreign,
        )

    def observe(self, vm: VmId) -> Observed:
        self._reachable()
        return observe(self._host, vm)

    def watch(self, changed: Callable[[VmId | None], None], lost: Callable[[], None]) -> None:
        self._changed, self._lost = changed, lost

    def reconnect(self) -> None:
        self._reachable()

    def close(self) -> None:
        self._changed, self._lost = (lambda vm: None), (lambda: None)

    def fail_next(self, failure: Failed, kind: str | None = None) -> None:
        """Refuse the next command (of that kind) without doing it."""
        self._faults.append(_Fault("refuse", kind, failure))

    def hang_next(self, kind: str | None = None) -> None:
        """Let the next command (of that kind) take until `release`, its withdrawal or its deadline."""
        self._faults.append(_Fault("hang", kind))

    def release(self) -> None:
        """Let the hanging command go on."""
        self._hanging.set()

    def vanish_at_next(self, when: Literal["lost-before", "lost-after"], kind: str | None = None) -> None:
        """Let the daemon end in the middle of the next command (of that kind), before or after its effect."""
        self._faults.append(_Fault(when, kind))

    def vanish(self) -> None:
        """Let the daemon go away until `come_back`."""
        self._here = False
        self._lost()

    def come_back(self) -> None:
        """Let the daemon be reachable again."""
        self._here = True

    def tamper(self, change: Callable[[LibvirtHost], LibvirtHost]) -> None:
        """Change the host behind its agent's back."""
        with self._lock:
            self._host = change(self._host)
            self._keep(self._host)
        self._changed(None)

    def _apply(self, command: HostCommand) -> Answer:
        with self._lock:
            before = self._host
            after, answer = expect(before, command)
            if after != before:
                self._keep(after)
                self._host = after
                self.effects[command.kind] += 1
        if after is not before and isinstance(command, DomainCommand):
            self._changed(command.vm)
        return answer

    def _takes(self, command: HostCommand) -> float:
        host = self._host
        match command:
            case StopDomain(vm=vm, grace=grace) if observe(host, vm).power == "running":
                return grace if vm in host.deaf else min(grace, GUEST_STOPS_IN)
            case AwaitReady(vm=vm, ready=ready) if vm in host.mute:
                return ready.within
        return self._seconds(command)

    def _take_fault(self, kind: str) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.kind in (None, kind):
                    self._faults.remove(fault)
                    return fault
        return None

    def _reachable(self) -> None:
        if not self._here:
            raise HypervisorLost("the simulated daemon is away")


def kept_host(path: Path, new: LibvirtHost) -> tuple[LibvirtHost, Callable[[LibvirtHost], None]]:
    """A host whose domains outlive this process in a file, as libvirt's outlive its agent: its state now, and
    what keeps the next ones."""
    host = msgspec.json.decode(path.read_bytes(), type=LibvirtHost) if path.exists() else new
    return host, lambda state: write_private(path, msgspec.json.encode(state))
