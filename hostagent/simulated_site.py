"""Simulated machines, and where they find each other: by address, and over the storage that some of them share."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from msgspec.structs import replace

from hostagent.hypervisor import HypervisorLost
from vmorch.core.hostcommands import Observed
from vmorch.core.hypervisor import (
    Domain,
    KeptBackup,
    LibvirtHost,
    after_restart,
    observe,
    shared_files,
    with_half,
    with_shared_files,
)
from vmorch.core.ids import BackupId, VmId


class Machine:
    """What stands on one simulated host, and whether its libvirt is there. `keep` is called with every new state
    before anybody sees it."""

    def __init__(self, address: str, storage: str, host: LibvirtHost, keep: Callable[[LibvirtHost], None]) -> None:
        """`storage` names the shared storage that it sees; empty for none."""
        self.address = address
        self.storage = storage
        self.host = host
        self.here = True
        self.changed: Callable[[VmId | None], None] = lambda vm: None
        self.lost: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        self._keep = keep

    def put(self, host: LibvirtHost) -> None:
        """This is what stands on it now. Only with the lock held."""
        if host != self.host:
            self._keep(host)
            self.host = host

    def tamper(self, change: Callable[[LibvirtHost], LibvirtHost]) -> None:
        """Change it behind its agent's back."""
        with self.lock:
            self.put(change(self.host))
        self.changed(None)

    def observe(self, vm: VmId) -> Observed:
        return observe(self.host, vm)

    def reachable(self) -> None:
        """Raises HypervisorLost if its libvirt is away."""
        if not self.here:
            raise HypervisorLost("the simulated daemon is away")

    def vanish(self) -> None:
        """Its libvirt goes away; guests that were leaving stay, and those that were coming do not come."""
        self.here = False
        with self.lock:
            self.put(after_restart(self.host))
        self.lost()


class Site:
    """The simulated hosts of one process. Machines with the same storage see the same files on it."""

    def __init__(self) -> None:
        self._machines: dict[str, Machine] = {}
        self._lock = threading.Lock()

    def join(self, machine: Machine) -> None:
        """The machine is reached at its address from now on."""
        with self._lock:
            self._machines[machine.address] = machine

    def at(self, address: str) -> Machine | None:
        """The machine at an address."""
        with self._lock:
            return self._machines.get(address)

    def share(self, source: Machine, vm: VmId) -> None:
        """Show what of the VM lies on shared storage to all who see that storage."""
        if not source.storage:
            return
        with self._lock:
            others = [each for each in self._machines.values() if each.storage == source.storage and each is not source]
        files = shared_files(source.host, vm)
        for each in others:
            each.tamper(lambda host: with_shared_files(host, vm, files))


    def share_backups(self, source: Machine) -> None:
        """Show what is in the targets for backups that the machine sees to all who see them too."""
        with self._lock:
            others = [each for each in self._machines.values() if each is not source]
        for each in others:
            seen = set(each.host.targets.values()) & source.host.backups.keys()
            if any(each.host.backups.get(id) != source.host.backups[id] for id in seen):
                each.tamper(partial(_with_backups, {id: source.host.backups[id] for id in seen}))


def _with_backups(
    backups: Mapping[str, Mapping[BackupId, KeptBackup]], host: LibvirtHost
) -> LibvirtHost:
    return replace(host, backups={**host.backups, **backups})


@contextmanager
def both(one: Machine, other: Machine) -> Iterator[None]:
    """Nobody else changes either machine meanwhile."""
    # always in the same order, so that two passages in opposite directions do not wait for each other
    first, second = sorted((one, other), key=lambda machine: machine.address)
    with first.lock, second.lock:
        yield


def set_halves(vm: VmId, source: Machine, left: Domain | None, destination: Machine, arrived: Domain | None) -> None:
    """In one stroke, this is what each end shows of the domain."""
    with both(source, destination):
        source.put(with_half(source.host, vm, left))
        destination.put(with_half(destination.host, vm, arrived))
    source.changed(vm)
    destination.changed(vm)
