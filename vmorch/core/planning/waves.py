"""Give each VM that must move a destination and a wave, so that every order of events within a wave is safe.

A wave is what may be on the move at once. Within it each arrival has its place beside everything that stands there
before and everything else that comes, as if nothing were ever given back meanwhile. Must not decide how a VM moves or
which ones do.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from vmorch.core.aggregates.budget import Budget, unavailable
from vmorch.core.aggregates.cluster import Policy
from vmorch.core.aggregates.drain import Cause, How
from vmorch.core.aggregates.host import Host, Reservation
from vmorch.core.aggregates.vm import Vm
from vmorch.core.ids import HostId, VmId
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.planning.apartness import Apartness, apart
from vmorch.core.planning.groups import Groups, Use
from vmorch.core.planning.mobility import unfitness
from vmorch.core.planning.room import UNITS, Room
from vmorch.core.planning.view import ClusterView
from vmorch.core.value import Value

REPAIRS = 400
"""How many other places are looked for at most, in one plan, for moves that stand in another's way."""
NAMED = 10
"""How many hosts a cause names at most."""


class Wish(Value, frozen=True, kw_only=True):
    """A VM that shall move (or be shut down or started) like this. `only` names the one host that it may go to."""

    vm: Vm
    source: Host
    how: How
    command: MigrateVm
    only: HostId | None = None
    prefer: HostId | None = None

    @property
    def moves(self) -> bool:
        return self.how in ("live", "offline", "restart")


class Assigned(Value, frozen=True, kw_only=True):
    """What was found for a wish."""

    wish: Wish
    wave: int
    destination: HostId | None
    why: str


class Found(Value, frozen=True, kw_only=True):
    """Every wish is in one of these, in the order of the waves."""

    assigned: tuple[Assigned, ...]
    blocked: tuple[tuple[Wish, tuple[Cause, ...]], ...]


class Waves:
    """One run of the assignment. `room` and `apartness` show the cluster after it."""

    def __init__(self, view: ClusterView, groups: Groups, at_once: int) -> None:
        self.view = view
        self.groups = groups
        self.at_once = at_once
        self.room = Room(view.hosts)
        everyone = {vm.id: vm for vms in view.vms_on.values() for vm in vms if vm.spec is not None}
        self.apartness = Apartness(everyone.values())
        for standing in (view.vms_on, view.visiting):
            for host, vms in standing.items():
                for vm in vms:
                    self.apartness.add(vm, host)
        self._promise_the_planned(everyone)
        self.use = Use(groups, everyone.values())
        self._open: dict[object, tuple[list[int], dict[int, tuple[str, ...]]]] = {}
        self._arrivals: dict[int, list[int]] = {}
        self._assigned: list[Assigned] = []
        self._into: list[dict[int, int]] = []
        self._repairs = REPAIRS

    def _promise_the_planned(self, everyone: Mapping[VmId, Vm]) -> None:
        """Moves of drains under way that have not begun yet take their place too."""
        for drain in self.view.drains:
            for move in drain.waiting():
                vm = everyone.get(move.vm)
                at = None if move.destination is None else self.room.index.get(move.destination)
                if vm is not None and vm.spec is not None and at is not None and vm.host == move.source:
                    self.room.take(at, Reservation.of(vm.spec))
                    self.apartness.add(vm, self.room.hosts[at].id)

    def run(self, wishes: Sequence[Wish]) -> Found:
        """Assign as many as possible, in their order."""
        pending = list(wishes)
        blocked: list[tuple[Wish, tuple[Cause, ...]]] = []
        wave = 0
        while pending:
            wave += 1
            before = len(pending)
            pending = self._wave(wave, pending, blocked)
            # the first that waits is never held by others of its own wave, so this cannot go on for ever
            assert len(pending) < before
        order = {wish.vm.id: at for at, wish in enumerate(wishes)}
        assigned = sorted(self._assigned, key=lambda each: (each.wave, order[each.wish.vm.id]))
        return Found(assigned=tuple(assigned), blocked=tuple(blocked))

    def depart(self) -> None:
        """Let go of the places that moved VMs have left; nothing is assigned after that."""
        for each in self._assigned:
            at = self.room.index.get(each.wish.source.id)
            if each.destination is not None and at is not None:
                self._forget(each.wish, at)

    def _wave(
        self, wave: int, pending: list[Wish], blocked: list[tuple[Wish, tuple[Cause, ...]]]
    ) -> list[Wish]:
        policy, later = self.view.policy, []
        out: dict[HostId, int] = {}
        into: dict[int, int] = {}
        away: dict[str, int] = {}
        self._into.append(into)
        number = 0
        for wish in pending:
            if number >= self.at_once or (wish.moves and out.get(wish.source.id, 0) >= policy.migrations_out):
                later.append(wish)
                continue
            budgets = self._bounding(wish)
            exhausted = tuple(Cause(why=why) for why in map(self.use.exhausted, budgets) if why)
            if exhausted:
                blocked.append((wish, exhausted))
                continue
            if any(len(self.use.down[each.id]) + away.get(each.id, 0) >= each.max_unavailable for each in budgets):
                later.append(wish)
                continue
            at, why = None, ""
            if wish.moves:
                at, why, crowded = self._destination(wish, into, policy)
                if at is None and crowded:
                    later.append(wish)
                    continue
                if at is None:
                    at, why = self._make_room(wish, wave, into, policy)
                if at is None:
                    blocked.append((wish, self.causes(wish)))
                    continue
                self._arrive(wish, at)
                out[wish.source.id] = out.get(wish.source.id, 0) + 1
                into[at] = into.get(at, 0) + 1
                self._arrivals.setdefault(at, []).append(len(self._assigned))
            destination = None if at is None else self.room.hosts[at].id
            self._assigned.append(Assigned(wish=wish, wave=wave, destination=destination, why=why))
            number += 1
            for budget in budgets:
                if wish.how == "stop":
                    self.use.down[budget.id].append(wish.vm.name)
                else:
                    away[budget.id] = away.get(budget.id, 0) + 1
        return later

    def _bounding(self, wish: Wish) -> tuple[Budget, ...]:
        """The budgets that the move counts against: a VM that is away already takes nothing more from them."""
        if wish.how == "start" or unavailable(wish.vm):
            return ()
        return self.groups.of(wish.vm)

    def _arrive(self, wish: Wish, at: int) -> None:
        assert wish.vm.spec is not None
        self.room.take(at, Reservation.of(wish.vm.spec))
        self.apartness.add(wish.vm, self.room.hosts[at].id)

    def _destination(
        self, wish: Wish, into: Mapping[int, int], policy: Policy, off: int | None = None
    ) -> tuple[int | None, str, bool]:
        """The best host with room, why it, and whether there only is none because too many come to those that fit."""
        assert wish.vm.spec is not None
        asked = Reservation.of(wish.vm.spec)
        forbidden = self.apartness.forbidden(wish.vm)
        room, vm = self.room, wish.vm.id
        crowded = False
        best, most, scarce, fitting = None, -1.0, "", 0
        for at in self._candidates(wish)[0]:
            host = room.hosts[at].id
            if not room.fits(at, asked, vm) or host in forbidden or at == off:
                continue
            if into.get(at, 0) >= policy.migrations_in:
                crowded = True
                continue
            fitting += 1
            left, resource = room.scarcest(at, asked)
            if host == wish.prefer:
                return at, "as planned before", False
            # hosts are in the order of their names, so that the first of equals wins
            if left > most:
                best, most, scarce = at, left, resource
        if best is None:
            return None, "", crowded
        why = f"{most:.0%} of {scarce} left" if fitting > 1 else "the only host with room"
        return best, why, False

    def _make_room(
        self, wish: Wish, wave: int, into: Mapping[int, int], policy: Policy
    ) -> tuple[int | None, str]:
        """A host on which this VM has a place once one that was planned to come there goes elsewhere."""
        assert wish.vm.spec is not None
        asked = Reservation.of(wish.vm.spec)
        for at in self._candidates(wish)[0]:
            for number in self._arrivals.get(at, ()):
                other = self._assigned[number]
                here = into.get(at, 0) - (other.wave == wave)
                if here >= policy.migrations_in or self._repairs <= 0:
                    continue
                self._leave(other, at)
                if self.room.fits(at, asked, wish.vm.id) and self._allowed(wish, at):
                    self._repairs -= 1
                    # the newcomer is in place while the other looks around, so that they do not meet again
                    self._arrive(wish, at)
                    elsewhere, why, _ = self._destination(other.wish, self._into[other.wave - 1], policy, off=at)
                    self._forget(wish, at)
                    if elsewhere is not None:
                        self._move(number, elsewhere, why)
                        return at, f"in place of {other.wish.vm.name}"
                self._arrive(other.wish, at)
        return None, ""

    def _allowed(self, wish: Wish, at: int) -> bool:
        return self.room.hosts[at].id not in self.apartness.forbidden(wish.vm)

    def _leave(self, assigned: Assigned, at: int) -> None:
        self._forget(assigned.wish, at)

    def _forget(self, wish: Wish, at: int) -> None:
        assert wish.vm.spec is not None
        self.room.give(at, Reservation.of(wish.vm.spec))
        self.apartness.add(wish.vm, self.room.hosts[at].id, -1)

    def _move(self, number: int, to: int, why: str) -> None:
        """Send an assigned move to another host; it has left its old one already."""
        old = self._assigned[number]
        assert old.destination is not None
        at = self.room.index[old.destination]
        self._arrivals[at].remove(number)
        self._arrivals.setdefault(to, []).append(number)
        into = self._into[old.wave - 1]
        into[at] -= 1
        into[to] = into.get(to, 0) + 1
        self._arrive(old.wish, to)
        self._assigned[number] = replace(old, destination=self.room.hosts[to].id, why=why)

    def _candidates(self, wish: Wish) -> tuple[list[int], dict[int, tuple[str, ...]]]:
        """Hosts that can take VMs like this one, whatever else stands there, and what speaks against the others."""
        vm, source, command = wish.vm, wish.source, wish.command
        assert vm.spec is not None
        placing = vm.spec.placing
        key = (
            source.id,
            wish.only,
            command.cold,
            command.copy_disks,
            vm.power,
            frozenset(placing.host_labels.items()),
            frozenset(nic.network for nic in vm.spec.nics),
            tuple((disk.name, disk.storage) for disk in vm.spec.disks),
        )
        found = self._open.get(key)
        if found is None:
            fit: list[int] = []
            against: dict[int, tuple[str, ...]] = {}
            for at, host in enumerate(self.room.hosts):
                if host.id == source.id or (wish.only is not None and host.id != wish.only):
                    continue
                reasons = unfitness(self.view, vm, source, host, command)
                if reasons:
                    against[at] = reasons
                else:
                    fit.append(at)
            found = self._open[key] = (fit, against)
        return found

    def causes(self, wish: Wish) -> tuple[Cause, ...]:
        """Everything that keeps the VM from every host, equal reasons together."""
        assert wish.vm.spec is not None
        asked = Reservation.of(wish.vm.spec)
        against = self._candidates(wish)[1]
        forbidden = self.apartness.forbidden(wish.vm)
        by_reason: dict[str, list[str]] = {}
        short: dict[str, list[tuple[float, str]]] = {}
        for at, host in enumerate(self.room.hosts):
            if host.id == wish.source.id or (wish.only is not None and host.id != wish.only):
                continue
            for reason in against.get(at, ()):
                by_reason.setdefault(reason, []).append(host.name)
            if host.id in forbidden:
                by_reason.setdefault(self._opponents(wish.vm, host.id), []).append(host.name)
            resource, left = self.room.lack(at, asked)
            if resource and at not in against:
                short.setdefault(resource, []).append((left, host.name))
        found = [_cause(reason, names) for reason, names in by_reason.items()]
        for resource, hosts in short.items():
            most = max(left for left, _ in hosts)
            why = f"needs {getattr(asked, resource):g} {UNITS[resource]}, at most {most:g} left"
            found.append(_cause(why, [name for _, name in hosts]))
        return tuple(found) or (Cause(why="there is no other host"),)

    def _opponents(self, vm: Vm, host: HostId) -> str:
        standing = [each for each in self.view.neighbours(host) if each.id != vm.id and apart(vm, each)]
        coming = [
            self._assigned[number].wish.vm
            for number in self._arrivals.get(self.room.index[host], ())
            if apart(vm, self._assigned[number].wish.vm)
        ]
        names = sorted({each.name for each in (*standing, *coming)})
        return f"must keep away from {', '.join(names[:3]) or 'a VM that is to come'}"


def _cause(why: str, hosts: list[str]) -> Cause:
    return Cause(why=why, hosts=tuple(hosts[:NAMED]), number=len(hosts))
