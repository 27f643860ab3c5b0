"""Where simulated hosts find each other: by address, and over the storage that some of them share."""

import threading
from typing import TYPE_CHECKING

from vmorch.core.hypervisor import shared_disks, with_shared_disks
from vmorch.core.ids import VmId

if TYPE_CHECKING:
    from hostagent.simulated_hypervisor import SimulatedHypervisor


class Site:
    """The simulated hosts of one process. Hosts with the same `shared_id` see the same files on shared storage."""

    def __init__(self) -> None:
        self._hosts: dict[str, SimulatedHypervisor] = {}
        self._lock = threading.Lock()

    def join(self, address: str, host: "SimulatedHypervisor") -> None:
        """The host is reached at this address from now on."""
        with self._lock:
            self._hosts[address] = host

    def at(self, address: str) -> "SimulatedHypervisor | None":
        """The host at an address."""
        with self._lock:
            return self._hosts.get(address)

    def share(self, source: "SimulatedHypervisor", vm: VmId) -> None:
        """Show what of the VM lies on shared storage to all who see that storage."""
        with self._lock:
            others = [each for each in self._hosts.values() if each is not source and each.shares_with(source)]
        disks = shared_disks(source.host, vm)
        for each in others:
            each.tamper(lambda host: with_shared_disks(host, vm, disks))
