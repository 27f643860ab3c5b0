"""Free capacity of many hosts as plain numbers, so that a plan can ask each of them for each VM and stay quick.

The same arithmetic as `Host.shortfall`, taken forward move by move. Must not know why a host would be chosen.
"""

from collections.abc import Iterable

from vmorch.core.aggregates.host import RESOURCES, Host, Reservation
from vmorch.core.ids import HostId, VmId

UNITS = dict(RESOURCES)


class Room:
    """What is left on each host. Amounts only ever change through `take` and `give`."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self.hosts = tuple(sorted(hosts, key=lambda host: (host.name, host.id)))
        self.index: dict[HostId, int] = {host.id: at for at, host in enumerate(self.hosts)}
        totals = [host.total() for host in self.hosts]
        promised = [host.promised() for host in self.hosts]
        self.total = {key: [float(getattr(each, key)) for each in totals] for key in UNITS}
        self.free = {
            key: [all_ - getattr(held, key) for all_, held in zip(self.total[key], promised, strict=True)]
            for key in UNITS
        }
        self._shares = [bool(host.facts and host.facts.shared_gib) for host in self.hosts]

    def take(self, at: int, asked: Reservation, sign: int = 1) -> None:
        """Promise this much of a host."""
        self.free["vcpus"][at] -= sign * asked.vcpus
        self.free["memory"][at] -= sign * asked.memory
        self.free["local_gib"][at] -= sign * asked.local_gib
        self.free["shared_gib"][at] -= sign * asked.shared_gib

    def give(self, at: int, asked: Reservation) -> None:
        """Take a promise back."""
        self.take(at, asked, -1)

    def fits(self, at: int, asked: Reservation, vm: VmId | None = None) -> bool:
        """Whether that much is left; what the VM holds there already does not count against it."""
        free, held = self.free, None if vm is None else self.hosts[at].reservations.get(vm)
        if held is not None:
            asked = _beyond(asked, held)
        return (
            asked.memory <= free["memory"][at]
            and asked.vcpus <= free["vcpus"][at]
            and asked.local_gib <= free["local_gib"][at]
            and asked.shared_gib <= free["shared_gib"][at]
            and (self._shares[at] or not asked.shared_gib)
        )

    def lack(self, at: int, asked: Reservation) -> tuple[str, float]:
        """The first resource that is short, and how much of it is left; empty if nothing is."""
        for key in UNITS:
            left = self.free[key][at]
            if getattr(asked, key) > left:
                return key, max(left, 0.0)
        if asked.shared_gib and not self._shares[at]:
            return "shared_gib", 0.0
        return "", 0.0

    def scarcest(self, at: int, asked: Reservation) -> tuple[float, str]:
        """The share left of what would be scarcest with this beside the others, as placement scores it."""
        found = (self._left("memory", at, asked.memory), "memory")
        processors = self._left("vcpus", at, asked.vcpus)
        if processors < found[0]:
            found = (processors, "vCPUs")
        if asked.local_gib:
            disk = self._left("local_gib", at, asked.local_gib)
            if disk < found[0]:
                found = (disk, "local disk")
        return found

    def used(self, key: str, at: int) -> float:
        """The promised share of a resource; 0 where there is none of it."""
        total = self.total[key][at]
        return (total - self.free[key][at]) / total if total else 0.0

    def _left(self, key: str, at: int, more: float) -> float:
        total = self.total[key][at]
        return max(0.0, (self.free[key][at] - more) / total) if total else 0.0


def _beyond(asked: Reservation, held: Reservation) -> Reservation:
    return Reservation(
        vcpus=asked.vcpus - held.vcpus,
        memory=asked.memory - held.memory,  # type: ignore[arg-type]
        local_gib=asked.local_gib - held.local_gib,  # type: ignore[arg-type]
        shared_gib=asked.shared_gib - held.shared_gib,  # type: ignore[arg-type]
    )
