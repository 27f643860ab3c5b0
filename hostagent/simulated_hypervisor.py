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
from hostagent.simulated_passage import Leftover, Passage, Progress, obstacle
from hostagent.simulated_site import Machine, Site
from vmorch.bus.private import write_private
from vmorch.core.hostcommands import (
    Answer,
    AwaitReady,
    CreateDisk,
    DomainCommand,
    Failed,
    FetchImage,
    MergeLayers,
    MigrateDomain,
    Observed,
    RestoreDisk,
    RestoreGuest,
    SaveGuest,
    StartDomain,
    StopDomain,
    TakeBackup,
    TakeSnapshot,
    TuneMigration,
    VerifyBackup,
)
from vmorch.core.hypervisor import (
    LibvirtHost,
    after_restart,
    differences,
    expect,
    observe,
    resolve,
    shared_files,
)
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
        case TakeSnapshot(memory=None):
            return 0.03
        case TakeSnapshot() | SaveGuest() | RestoreGuest():
            return 0.1
        case MergeLayers() | TakeBackup() | VerifyBackup() | RestoreDisk():
            return 0.2
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
        self._seconds = seconds
        self._sleep = sleep
        self._machine = Machine(facts.address or facts.hostname, facts.shared_id, host, keep)
        self._site = site or Site()
        self._site.join(self._machine)
        self._passages: dict[VmId, Passage] = {}
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self._hanging = threading.Event()
        self.begun: Counter[str] = Counter()
        """How often a command of each kind was told to the host."""
        self.effects: Counter[str] = Counter()
        """How often a command of each kind changed the host."""

    @property
    def host(self) -> LibvirtHost:
        """Everything on the host now."""
        return self._machine.host

    @property
    def here(self) -> bool:
        """Whether its daemon can be reached now."""
        return self._machine.here

    def facts(self) -> HostFacts:
        self._machine.reachable()
        return self._facts

    def execute(self, command: HostCommand, scope: Scope) -> Answer:
        scope.check()
        self._machine.reachable()
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
        answer = self._carry(command, scope, fault) if isinstance(command, MigrateDomain) else None
        if answer is None:
            self._sleep(self._takes(command), scope)
            self._machine.reachable()
            answer = self._apply(command)
        if fault is not None and fault.when == "lost-after":
            self.vanish()
            raise HypervisorLost("the daemon ended")
        return answer

    def resolve(self, command: HostCommand, scope: Scope) -> Answer:
        self._machine.reachable()
        if isinstance(command, MigrateDomain) and (passage := self._passages.get(command.vm)) is not None:
            passage.follow(scope, self._sleep)
        return resolve(self.host, command)

    def inventory(self) -> Inventory:
        self._machine.reachable()
        host = self.host
        return Inventory(
            domains={vm: observe(host, vm) for vm in host.domains},
            configuration={vm: found for vm, domain in host.domains.items() if (found := differences(domain))},
            unmanaged=host.foreign,
        )

    def observe(self, vm: VmId) -> Observed:
        self._machine.reachable()
        return self._machine.observe(vm)

    def watch(self, changed: Callable[[VmId | None], None], lost: Callable[[], None]) -> None:
        self._machine.changed, self._machine.lost = changed, lost

    def reconnect(self) -> None:
        self._machine.reachable()

    def close(self) -> None:
        self.watch(lambda vm: None, lambda: None)

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
        self._machine.vanish()

    def come_back(self) -> None:
        """Let the daemon be reachable again."""
        self._machine.here = True

    def tamper(self, change: Callable[[LibvirtHost], LibvirtHost]) -> None:
        """Change the host behind its agent's back. What lies on shared storage changes for all who see that."""
        before = self.host
        self._machine.tamper(change)
        after = self.host
        self._share(before, after)
        if before.backups != after.backups:
            self._site.share_backups(self._machine)

    def _share(self, before: LibvirtHost, after: LibvirtHost) -> None:
        for vm in {*before.disks, *before.memories, *after.disks, *after.memories}:
            if shared_files(before, vm) != shared_files(after, vm):
                self._site.share(self._machine, vm)

    def _apply(self, command: HostCommand) -> Answer:
        if isinstance(command, TuneMigration) and (passage := self._passages.get(command.vm)) is not None:
            refused = passage.progress.tune(command)
            if refused:
                return Failed(code="libvirt-refused", message=refused, observed=self._machine.observe(command.vm))
        machine = self._machine
        with machine.lock:
            before = machine.host
            after, answer = expect(before, command)
            machine.put(after)
            self.effects[command.kind] += after != before
        if after is not before and isinstance(command, DomainCommand):
            machine.changed(command.vm)
        if before.disks != after.disks or before.memories != after.memories:
            self._share(before, after)
        if before.backups != after.backups:
            self._site.share_backups(machine)
        return answer

    def _carry(self, command: MigrateDomain, scope: Scope, fault: _Fault | None) -> Answer | None:
        """How a passage ends; None where one host alone knows the answer."""
        vm, machine, peer = command.vm, self._machine, self._site.at(command.address)
        domain = machine.host.domains.get(vm)
        if domain is None or not domain.active:
            return None
        refused = obstacle(command, domain, peer)
        if refused or peer is None:
            return Failed(code="migration-failed", message=refused, observed=machine.observe(vm))
        when = None if fault is None else fault.when
        seconds, total = self._seconds(command), domain.memory << 20
        progress = Progress(command, total=total, seconds=seconds, starved=when == "starve")
        leftover = Leftover("absent", "running" if domain.power == "running" else "paused", "done")
        if fault is not None and fault.leftover is not None:
            leftover = fault.leftover
        passage = self._passages[vm] = Passage(command, domain, machine, peer, progress)
        before = machine.host
        try:
            return passage.carry(scope, self._sleep, lost=when == "lost-during", leftover=leftover)
        finally:
            del self._passages[vm]
            self.effects[command.kind] += machine.host != before

    def _takes(self, command: HostCommand) -> float:
        host = self.host
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


def kept_host(path: Path, new: LibvirtHost) -> tuple[LibvirtHost, Callable[[LibvirtHost], None]]:
    """A host whose domains outlive this process in a file, as libvirt's outlive its agent: its state now, and
    what keeps the next ones. What was under way when the process ended is over."""
    host = new
    if path.exists():
        kept = after_restart(msgspec.json.decode(path.read_bytes(), type=LibvirtHost))
        host = msgspec.structs.replace(kept, targets=new.targets)
    return host, lambda state: write_private(path, msgspec.json.encode(state))
