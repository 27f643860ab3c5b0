"""A hypervisor that exists only in this process, on the pure model of a host, with faults on demand.

For development, rehearsal and tests. Must not behave better than libvirt does: what libvirt
refuses is refused, what takes time takes time, and faults can be asked for.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from hostagent.hypervisor import Expired, HypervisorLost, Inventory, Scope, Withdrawn
from hostagent.simulated_passage import STARVED_TICK, Leftover, Passage
from hostagent.simulated_site import Site
from vmorch.bus.private import write_private
from vmorch.core.hostcommands import (
    Answer,
    AwaitReady,
    CreateDisk,
    DomainCommand,
    Done,
    Failed,
    FetchImage,
    MigrateDomain,
    Observed,
    StartDomain,
    StopDomain,
    TuneMigration,
)
from vmorch.core.hypervisor import (
    Domain,
    LibvirtHost,
    after_restart,
    arriving,
    differences,
    expect,
    half_in,
    observe,
    resolve,
    shared_disks,
    with_half,
)
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.migration import Track, follow, steer
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
        case MigrateDomain():
            return 0.5
    return 0.005


def no_seconds(_command: HostCommand) -> float:
    """Everything happens at once."""
    return 0.0


class _Fault(Struct, frozen=True):
    """`when`: the daemon goes away before, during or after the effect, or the command hangs, or is refused, or it is a
    passage that does not converge or leaves its halves as it is told to."""

    when: Literal["lost-before", "lost-during", "lost-after", "hang", "refuse", "starve", "leave"]
    kind: str | None
    failure: Failed | None = None
    leftover: Leftover | None = None


class SimulatedHypervisor:
    """A `Hypervisor` on the pure model. `sleep` waits within an order's scope; `keep` is called with every
    new state before its command is answered; `site` is where it finds the hosts that guests can go to."""

    def __init__(
        self,
        facts: HostFacts,
        host: LibvirtHost,
        *,
        seconds: Callable[[HostCommand], float] = typical_seconds,
        sleep: Callable[[float, Scope], None] = lambda seconds, scope: scope.pause(seconds),
        keep: Callable[[LibvirtHost], None] = lambda host: None,
        site: Site | None = None,
    ) -> None:
        self._facts = facts
        self._host = host
        self._seconds = seconds
        self._sleep = sleep
        self._keep = keep
        self._site = site or Site()
        self._lock = threading.RLock()
        self._passages: dict[VmId, Passage] = {}
        self._here = True
        self._faults: list[_Fault] = []
        self._hanging = threading.Event()
        self._changed: Callable[[VmId | None], None] = lambda vm: None
        self._lost: Callable[[], None] = lambda: None
        self.begun: Counter[str] = Counter()
        """How often a command of each kind was told to the host."""
        self.effects: Counter[str] = Counter()
        """How often a command of each kind changed the host."""
        self._site.join(self.address, self)

    @property
    def address(self) -> str:
        """Where other hosts reach this one."""
        return self._facts.address or self._facts.hostname

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
        if fault is not None and fault.failure is not None:
            self._sleep(self._takes(command), scope)
            return fault.failure
        if isinstance(command, MigrateDomain):
            answer = self._carry(command, scope, fault)
        else:
            self._sleep(self._takes(command), scope)
            self._reachable()
            answer = self._apply(command)
        if fault is not None and fault.when == "lost-after":
            self.vanish()
            raise HypervisorLost("the daemon ended")
        return answer

    def resolve(self, command: HostCommand, scope: Scope) -> Answer:
        self._reachable()
        if isinstance(command, MigrateDomain) and (passage := self._passages.get(command.vm)) is not None:
            self._follow(passage, scope)
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

    def vanish_at_next(
        self, when: Literal["lost-before", "lost-during", "lost-after"], kind: str | None = None
    ) -> None:
        """Let the daemon end in the middle of the next command (of that kind), before or after its effect. Only a
        passage has a time during which it can end."""
        self._faults.append(_Fault(when, kind))

    def starve_next_passage(self) -> None:
        """Let the next passage not converge, until it is given more time for its switch-over or is switched over."""
        self._faults.append(_Fault("starve", MigrateDomain.kind))

    def leave_next_passage(self, leftover: Leftover) -> None:
        """Let the next passage end like this at its switch-over."""
        self._faults.append(_Fault("leave", MigrateDomain.kind, leftover=leftover))

    def vanish(self) -> None:
        """Let the daemon go away until `come_back`: no passage from here or to here outlives that."""
        self._here = False
        for passage in [*self._passages.values()]:
            passage.broken.set()
        with self._lock:
            self._put(after_restart(self._host))
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

    def shares_with(self, other: "SimulatedHypervisor") -> bool:
        """Whether both see the same files on shared storage."""
        return self._facts.shared_id == other._facts.shared_id != "" and "shared" in self._host.free

    def _apply(self, command: HostCommand) -> Answer:
        if isinstance(command, TuneMigration) and (passage := self._passages.get(command.vm)) is not None:
            refused = passage.tune(command)
            if refused:
                return Failed(code="libvirt-refused", message=refused, observed=observe(self._host, command.vm))
        with self._lock:
            before = self._host
            after, answer = expect(before, command)
            if after != before:
                self._keep(after)
                self._host = after
                self.effects[command.kind] += 1
        if after is not before and isinstance(command, DomainCommand):
            self._changed(command.vm)
            if shared_disks(before, command.vm) != shared_disks(after, command.vm):
                self._site.share(self, command.vm)
        return answer

    def _put(self, host: LibvirtHost) -> None:
        if host != self._host:
            self._keep(host)
            self._host = host

    # -- passages -------------------------------------------------------------------------------------------------

    def _carry(self, command: MigrateDomain, scope: Scope, fault: _Fault | None) -> Answer:
        """Move the domain to its destination, as libvirt's own call does."""
        vm, peer = command.vm, self._site.at(command.address)
        with self._both(peer):
            domain = self._host.domains.get(vm)
            refused = self._cannot_leave(command, domain, peer)
            if refused or domain is None or peer is None:
                # what one host alone can tell is the model's answer
                answer = expect(self._host, command)[1]
                return replace(answer, message=refused) if refused and isinstance(answer, Failed) else answer
            starved = fault is not None and fault.when == "starve"
            passage = Passage(command, total=domain.memory << 20, seconds=self._seconds(command), starved=starved)
            # libvirt takes over a configuration that stands there, and leaves it if the guest does not come
            passage.before = peer._host.domains.get(vm)
            self._passages[vm] = passage
            self._put(with_half(self._host, vm, replace(domain, moving=True)))
            peer._put(with_half(peer._host, vm, arriving(domain)))
        self._tell_both(peer, vm)
        try:
            return self._travel(passage, domain, peer, scope, fault)
        finally:
            del self._passages[vm]
            passage.over.set()
            self._tell_both(peer, vm)

    def _travel(
        self, passage: Passage, domain: Domain, peer: "SimulatedHypervisor", scope: Scope, fault: _Fault | None
    ) -> Answer:
        command, began, track = passage.command, time.monotonic(), Track()
        while not passage.arrived:
            if passage.half_way and fault is not None and fault.when == "lost-during":
                self.vanish()
            try:
                self._sleep(passage.tick, scope)
            except (Withdrawn, Expired):
                # there is no way back for a guest that was switched over
                if not passage.switched:
                    self._stay(passage, domain, peer)
                    raise
                time.sleep(STARVED_TICK)
            if passage.broken.is_set() or not peer._here:
                return self._break(passage, domain, peer)
            sample = passage.advance(time.monotonic() - began)
            scope.tell(sample)
            track = follow(track, sample)
            what, why = steer(track, sample, command.passage)
            if what == "abort":
                self._stay(passage, domain, peer)
                return Failed(code="migration-stalled", message=why, observed=observe(self._host, command.vm))
            if what == "postcopy":
                passage.switch_over()
            if passage.switched:
                self._switch_over(domain, peer, command.vm)
        leftover = Leftover("absent", "running" if domain.power == "running" else "paused", "done")
        if fault is not None and fault.leftover is not None:
            leftover = fault.leftover
        return self._end(command, domain, peer, leftover)

    def _end(
        self, command: MigrateDomain, domain: Domain, peer: "SimulatedHypervisor", leftover: Leftover
    ) -> Answer:
        arrived = half_in(leftover.destination, domain)
        if arrived is not None and leftover.call == "done" and domain.power == "paused":
            arrived = replace(arrived, reason=domain.reason)
        self._set_halves(half_in(leftover.source, domain), peer, arrived, command.vm)
        self.effects[command.kind] += 1
        match leftover.call:
            case "done":
                return Done(observed=observe(self._host, command.vm))
            case "failed":
                seen = observe(self._host, command.vm)
                return Failed(code="migration-failed", message="client socket is closed", observed=seen)
            case "lost":
                self.vanish()
                raise HypervisorLost("the daemon ended")

    def _follow(self, passage: Passage, scope: Scope) -> None:
        """Wait for the end of a passage that began under an earlier agent."""
        while not passage.over.is_set():
            try:
                self._sleep(STARVED_TICK, scope)
            except (Withdrawn, Expired):
                passage.broken.set()
                passage.over.wait()
                raise

    def _cannot_leave(self, command: MigrateDomain, domain: Domain | None, peer: "SimulatedHypervisor | None") -> str:
        if domain is None or not domain.active:
            return ""
        if peer is None or not peer._here:
            return f"unable to connect to server at {command.address}"
        twin = peer._host.domains.get(command.vm)
        if twin is not None and twin.active:
            return f"domain {command.vm} is already active"
        left = [disk.name for disk in domain.found.disks if disk.storage == "local" and disk.name not in command.copy]
        if left:
            return f"disk {', '.join(left)} is on local storage and would stay behind"
        there = peer._host.disks.get(command.vm, {})
        lacking = [disk.name for disk in domain.found.disks if f"{disk.storage}/{disk.name}" not in there]
        return f"cannot access storage of {', '.join(lacking)}" if lacking else ""

    def _break(self, passage: Passage, domain: Domain, peer: "SimulatedHypervisor") -> Failed:
        """End a passage whose host at one end went away, or that was broken off. Raises HypervisorLost."""
        if passage.switched:
            reason = "postcopy failed"
            half = replace(domain, power="paused", reason=reason)
            self._set_halves(half, peer, replace(domain, power="running", reason=reason), passage.command.vm)
        else:
            self._stay(passage, domain, peer)
        self._reachable()
        why = "operation aborted" if peer._here else "client socket is closed"
        return Failed(code="migration-failed", message=why, observed=observe(self._host, passage.command.vm))

    def _switch_over(self, domain: Domain, peer: "SimulatedHypervisor", vm: VmId) -> None:
        halted = replace(domain, power="paused", reason="postcopy", moving=True)
        self._set_halves(halted, peer, replace(domain, power="running", reason="postcopy", moving=True), vm)

    def _stay(self, passage: Passage, domain: Domain, peer: "SimulatedHypervisor") -> None:
        self._set_halves(domain, peer, passage.before, passage.command.vm)

    def _set_halves(
        self, source: Domain | None, peer: "SimulatedHypervisor", destination: Domain | None, vm: VmId
    ) -> None:
        with self._both(peer):
            self._put(with_half(self._host, vm, source))
            peer._put(with_half(peer._host, vm, destination))
        self._tell_both(peer, vm)

    def _tell_both(self, peer: "SimulatedHypervisor", vm: VmId) -> None:
        self._changed(vm)
        peer._changed(vm)

    @contextmanager
    def _both(self, peer: "SimulatedHypervisor | None") -> Iterator[None]:
        """Nobody else changes either host meanwhile."""
        with ExitStack() as stack:
            # always in the same order, so that two passages in opposite directions do not wait for each other
            for each in sorted({self, peer} - {None}, key=lambda host: host.address if host else ""):
                assert each is not None
                stack.enter_context(each._lock)
            yield

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
    what keeps the next ones. What was under way when the process ended is over."""
    host = after_restart(msgspec.json.decode(path.read_bytes(), type=LibvirtHost)) if path.exists() else new
    return host, lambda state: write_private(path, msgspec.json.encode(state))
