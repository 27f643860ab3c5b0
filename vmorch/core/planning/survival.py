"""Whether the cluster could take the loss of any one more host: would its VMs find a place on the others?

A yes is proven, since places were found for all of them; a no says that the largest-first search found none. Must not
move anything: whatever it tries in the room it is given, it takes back.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from vmorch.core.aggregates.drain import HostLoss, Survival
from vmorch.core.aggregates.host import Host, Reservation
from vmorch.core.aggregates.vm import Vm
from vmorch.core.planning.apartness import Apartness, apart
from vmorch.core.planning.placement import FITNESS, Question, objections
from vmorch.core.planning.room import Room

REPORTED = 5
"""How many hosts whose loss would be too much are named; the search ends with them."""


def survival(room: Room, apartness: Apartness, standing: Mapping[int, Sequence[Vm]], spare: frozenset[int]) -> Survival:
    """The answer for VMs that stand like this. `spare` are hosts that neither count as lost nor take anybody in."""
    search = _Search(room, apartness, spare)
    losses: list[HostLoss] = []
    local = 0
    for at, host in enumerate(room.hosts):
        vms = standing.get(at, ())
        if at in spare or not vms:
            continue
        local += sum(any(disk.storage == "local" for disk in vm.spec.disks) for vm in vms if vm.spec)
        homeless = search.homeless(at, vms) if len(losses) < REPORTED else []
        if homeless:
            losses.append(HostLoss(host=host.id, name=host.name, vms=tuple(sorted(vm.name for vm in homeless))))
    return Survival(survivable=not losses, losses=tuple(losses), on_local_disks=local)


class _Search:
    def __init__(self, room: Room, apartness: Apartness, spare: frozenset[int]) -> None:
        self.room = room
        self.apartness = apartness
        free = room.free["memory"]
        # the emptiest first: it nearly always has a place, so that few hosts are asked
        self.emptiest = [(-free[at], at) for at in range(len(room.hosts)) if at not in spare]
        heapify(self.emptiest)
        self._fit: dict[object, frozenset[int]] = {}

    def homeless(self, lost: int, vms: Sequence[Vm]) -> list[Vm]:
        """The VMs of a host for which no place is found on the others."""
        heap = self.emptiest.copy()
        placed: list[tuple[Vm, int]] = []
        without: list[Vm] = []
        for vm in sorted(vms, key=lambda vm: (-_asked(vm).memory, vm.name)):
            at = self._place(vm, lost, heap, placed)
            if at is None:
                without.append(vm)
            else:
                placed.append((vm, at))
        for vm, at in placed:
            self.room.give(at, _asked(vm))
        return without

    def _place(self, vm: Vm, lost: int, heap: list[tuple[float, int]], placed: list[tuple[Vm, int]]) -> int | None:
        asked, fit = _asked(vm), self._fitting(vm)
        wary = self.apartness.concerns(vm)
        forbidden = self.apartness.forbidden(vm) if wary else frozenset()
        passed: list[tuple[float, int]] = []
        found: int | None = None
        while heap and found is None:
            entry = heappop(heap)
            at = entry[1]
            if at == lost:
                continue
            passed.append(entry)
            if -entry[0] < asked.memory:
                break  # and all others have less
            if at not in fit or not self.room.fits(at, asked) or self.room.hosts[at].id in forbidden:
                continue
            if wary and any(where == at and apart(vm, other) for other, where in placed):
                continue
            found = at
            self.room.take(at, asked)
            passed[-1] = (-self.room.free["memory"][at], at)
        for entry in passed:
            heappush(heap, entry)
        return found

    def _fitting(self, vm: Vm) -> frozenset[int]:
        assert vm.spec is not None
        placing = vm.spec.placing
        networks = frozenset(nic.network for nic in vm.spec.nics)
        key = (frozenset(placing.host_labels.items()), networks)
        found = self._fit.get(key)
        if found is None:
            found = self._fit[key] = frozenset(at for at, host in enumerate(self.room.hosts) if _fits(vm, host))
        return found


def _fits(vm: Vm, host: Host) -> bool:
    assert vm.spec is not None
    question = Question(
        spec=vm.spec, labels=vm.labels, host=host, neighbours=(), shared_promised=0.0, moving=vm.id
    )
    return not any(objections(question, FITNESS))


def _asked(vm: Vm) -> Reservation:
    assert vm.spec is not None
    return Reservation.of(vm.spec)
