"""When a VM's schedule wants a snapshot taken, and which of those that it had taken may go. Pure.

However long nobody looked, one snapshot is due and not one for each that was missed. Must not delete what somebody took
or a rollback kept, nor begin anything on a VM that something else is done with.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from vmorch.core.aggregates.layering import MOST_LAYERS, depth, reductions
from vmorch.core.aggregates.vm import Vm
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, OperationId, VmId, stream
from vmorch.core.operation import Change
from vmorch.core.operations.delete_snapshot import ForgetSnapshots
from vmorch.core.operations.take_snapshot import MOST_SNAPSHOTS, SnapshotVm
from vmorch.core.planning.acts import Act, Answer, Because, Later, Policy
from vmorch.core.planning.admission import BY_SCHEDULE, admit_scheduled
from vmorch.core.snapshot import Schedule, Snapshot
from vmorch.core.value import Value

AT_ONCE = 4
"""On how many VMs of one host snapshots are taken by schedule at once, and on how many others some are deleted."""
SOONEST, LATEST = timedelta(seconds=60), timedelta(minutes=15)
"""What did not work is tried again when a snapshot would be due, but within these bounds."""

HOUR, DAY = 3600, 24 * 3600
WEEK, MONDAY = 7 * DAY, 3 * DAY
"""Seconds; the time of computers began three days after a Monday."""


def due(schedule: Schedule, snapshots: Iterable[Snapshot], now: datetime) -> datetime:
    """When the next snapshot is to be taken: so long after the newest one, or now."""
    newest = _newest(snapshots)
    return now if newest is None else newest + timedelta(seconds=schedule.every)


def retained(schedule: Schedule, snapshots: Iterable[Snapshot]) -> frozenset[str]:
    """The names of those taken by schedule that it keeps.

    Hours, days and weeks are those of UTC; one without a snapshot is not counted. So what is kept follows from the
    snapshots alone, and nothing is deleted because time passes.
    """
    newest = sorted(
        (each for each in snapshots if each.origin == "schedule"),
        key=lambda each: (_taken_at(each), each.number),
        reverse=True,
    )
    kept = {each.name for each in newest[: schedule.last]}
    moments = [(int(_taken_at(each).timestamp()), each.name) for each in newest]
    for most, length, offset in (
        (schedule.hourly, HOUR, 0),
        (schedule.daily, DAY, 0),
        (schedule.weekly, WEEK, MONDAY),
    ):
        seen: set[int] = set()
        for moment, name in moments:
            span = (moment + offset) // length
            if span in seen:
                continue
            if len(seen) == most:
                break
            seen.add(span)
            kept.add(name)
    return frozenset(kept)


def surplus(schedule: Schedule, snapshots: Iterable[Snapshot]) -> tuple[str, ...]:
    """The names of those taken by schedule that it does not keep, oldest first."""
    mine = [each for each in snapshots if each.origin == "schedule"]
    kept = retained(schedule, mine)
    over = sorted((each for each in mine if each.name not in kept), key=lambda each: each.number)
    return tuple(each.name for each in over)


def name_at(now: datetime, taken: Iterable[str]) -> str:
    """A name for a snapshot taken now that none of the others has."""
    name = base = f"auto-{now.astimezone(UTC):%Y%m%d-%H%M%S}"
    others, number = set(taken), 2
    while name in others:
        name, number = f"{base}-{number}", number + 1
    return name


def _newest(snapshots: Iterable[Snapshot]) -> datetime | None:
    return max((_taken_at(each) for each in snapshots if each.origin == "schedule"), default=None)


def _taken_at(snapshot: Snapshot) -> datetime:
    assert snapshot.taken_at is not None
    return snapshot.taken_at


class ScheduledAct(Act, frozen=True):
    """Something that a VM's schedule asks for. It is wanted as long as asking anew gives it again."""

    vm: VmId

    @property
    def subject(self) -> str:
        return stream("vm", self.vm)

    def because(self, fleet: Fleet) -> Because:
        return Because(actor=BY_SCHEDULE.actor, reason=BY_SCHEDULE.reason)

    def changes(self, fleet: Fleet, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        vm = fleet.vms.get(self.vm)
        if vm is None or vm.schedule is None:
            return ()
        wish = _wish(fleet, vm, now, _standing(vm))
        if wish is None or wish.act != self or wish.at > now:
            return ()
        # acts on other VMs of the host were carried out since this one was wanted
        return self.decided(fleet, vm, now, operation) if _room(_under_way(fleet), vm, self) else ()

    def decided(self, fleet: Fleet, vm: Vm, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        """Everything to append on exactly this state."""
        raise NotImplementedError


class TakeScheduled(ScheduledAct, frozen=True):
    """Take a snapshot of this VM."""

    def decided(self, fleet: Fleet, vm: Vm, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        assert vm.schedule is not None
        # a guest that is off has nothing in the air, and a halted one cannot hold anything at rest
        quiesce = vm.schedule.quiesce and vm.power == "running"
        command = SnapshotVm(name=name_at(now, vm.snapshots), quiesce=quiesce)
        # the log's clock is another one than that by which the next is due
        return admit_scheduled(fleet, vm, command, operation=operation, at=now)


class DeleteSurplus(ScheduledAct, frozen=True):
    """Delete what the schedule of this VM does not keep, and merge what an earlier deletion left unmerged."""

    def decided(self, fleet: Fleet, vm: Vm, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        assert vm.schedule is not None
        command = ForgetSnapshots(snapshots=surplus(vm.schedule, vm.snapshots.values()))
        return admit_scheduled(fleet, vm, command, operation=operation)


Scheduled = TakeScheduled | DeleteSurplus
VERBS: dict[str, type[Scheduled]] = {SnapshotVm.verb: TakeScheduled, ForgetSnapshots.verb: DeleteSurplus}
Load = Counter[tuple[HostId | None, type[ScheduledAct]]]
"""On how many VMs of a host each thing is being done."""


class Wish(Value, frozen=True, kw_only=True):
    """What the schedule of a VM wants next, and since or from when on."""

    at: datetime
    act: Scheduled


class Standing(Value, frozen=True, kw_only=True):
    """What follows from a VM's snapshots and layers alone: when the newest was taken by schedule, which the schedule
    does not keep, and whether there are layers that nobody needs."""

    newest: datetime | None
    surplus: tuple[str, ...]
    spare: bool


class Outlook(Value, frozen=True, kw_only=True):
    """What becomes of a schedule: when the next snapshot is due, why that one is not taken then, and which are too
    many."""

    due: datetime
    waits: str = ""
    surplus: tuple[str, ...] = ()


def outlook(fleet: Fleet, vm: Vm, now: datetime) -> Outlook | None:
    """For whoever wants to know what a VM's schedule will do; None: it has none."""
    if vm.schedule is None:
        return None
    snapshots = vm.snapshots.values()
    waits = _hindrance(fleet, vm) or _crowded(vm)
    failed = _tried_until(vm, SnapshotVm.verb)
    if not waits and failed is not None and failed > now:
        waits = f"the last one failed; the next try is at {failed.astimezone(UTC):%H:%M:%S} UTC"
    return Outlook(due=due(vm.schedule, snapshots, now), waits=waits, surplus=surplus(vm.schedule, snapshots))


class Snapshotting:
    """The policy: what to do now, for each host what has waited longest first, and when something will be due.

    Between two looks the snapshots of hardly any VM change, so their standings are kept; the answers do not depend on
    it.
    """

    def __init__(self) -> None:
        self._known: dict[VmId, tuple[Vm, Standing]] = {}

    def __call__(self, fleet: Fleet, now: datetime) -> list[Answer]:
        before, self._known = self._known, {}
        load, again = _under_way(fleet), None
        wanted: list[tuple[datetime, str, Vm, Scheduled]] = []
        for vm in fleet.vms.values():
            if vm.schedule is None or vm.host is None:
                continue
            known = before.get(vm.id)
            standing = _standing(vm) if known is None or _changed(known[0], vm) else known[1]
            self._known[vm.id] = (vm, standing)
            wish = _wish(fleet, vm, now, standing)
            if wish is None:
                continue
            if wish.at <= now:
                wanted.append((wish.at, vm.id, vm, wish.act))
            elif again is None or wish.at < again:
                again = wish.at
        found: list[Answer] = []
        for _, _, vm, act in sorted(wanted, key=lambda each: each[:2]):
            if _room(load, vm, act):
                load[vm.host, type(act)] += 1
                found.append(act)
        return found if again is None else [*found, Later(again)]


policy: Policy = Snapshotting()


def _changed(before: Vm, now: Vm) -> bool:
    return not (
        before.snapshots is now.snapshots
        and before.layers is now.layers
        and before.schedule is now.schedule
        and before.spec is now.spec
    )


def _standing(vm: Vm) -> Standing:
    assert vm.schedule is not None
    snapshots = vm.snapshots.values()
    # where every layer is held by a snapshot or written to, none is spare
    spare = any(len(tree) > len(vm.snapshots) + 1 for tree in vm.layers.values())
    return Standing(
        newest=_newest(snapshots),
        surplus=surplus(vm.schedule, snapshots),
        spare=spare and next(reductions(vm), None) is not None,
    )


def _wish(fleet: Fleet, vm: Vm, now: datetime, standing: Standing) -> Wish | None:
    """The first thing that the VM's schedule wants; None if that can only change when something happens."""
    assert vm.schedule is not None
    if _hindrance(fleet, vm):
        return None
    wishes = []
    if not _crowded(vm):
        wishes.append(Wish(at=_take_at(vm, vm.schedule, standing.newest, now), act=TakeScheduled(vm.id)))
    # a merge may take hours, in which the guest could not leave a host that is being emptied
    if (standing.surplus or standing.spare) and vm.host is not None and fleet.draining(vm.host) is None:
        at = _tried_until(vm, ForgetSnapshots.verb) or standing.newest or now
        wishes.append(Wish(at=at, act=DeleteSurplus(vm.id)))
    ready = [each for each in wishes if each.at <= now]
    # taking is a matter of seconds and its moment passes, so it goes first
    return ready[0] if ready else min(wishes, key=lambda each: each.at, default=None)


def _take_at(vm: Vm, schedule: Schedule, newest: datetime | None, now: datetime) -> datetime:
    """Since or from when on a snapshot is to be taken. One that failed waits behind those that became due since: else
    guests that always fail would keep the others from their turn."""
    # one that was never taken is wanted since there is the VM
    wanted = (vm.created_at or now) if newest is None else newest + timedelta(seconds=schedule.every)
    if wanted > now:
        return wanted
    failed = _tried_until(vm, SnapshotVm.verb)
    return wanted if failed is None else max(wanted, failed)


def _tried_until(vm: Vm, verb: str) -> datetime | None:
    """Until when the last attempt of the schedule forbids another, because it failed."""
    assert vm.schedule is not None
    for each in reversed(list(vm.operations.values())):
        if each.verb == verb and each.actor == BY_SCHEDULE.actor and each.ended_at is not None:
            pause = max(SOONEST, min(LATEST, timedelta(seconds=vm.schedule.every)))
            return None if each.outcome == "succeeded" else each.ended_at + pause
    return None


def _hindrance(fleet: Fleet, vm: Vm) -> str:
    """Why nothing can be done with the VM now; it is looked at again when that has changed."""
    if vm.host is None or vm.spec is None:
        return "it is on no host"
    if vm.active is not None:
        running = vm.operations[vm.active]
        return f"it is busy with {running.verb} {running.id}"
    if vm.frozen is not None:
        return "nobody can tell where it is"
    if vm.power not in SnapshotVm.needs:
        return f"it is {vm.power}"
    host = fleet.hosts.get(vm.host)
    if host is None or host.retired or host.agent != "connected":
        return f"{vm.host if host is None else host.name} is unreachable"
    return ""


def _crowded(vm: Vm) -> str:
    """Why there is no room for another snapshot of the VM."""
    if len(vm.snapshots) >= MOST_SNAPSHOTS:
        return f"it has {len(vm.snapshots)} snapshots, and {MOST_SNAPSHOTS} are allowed"
    # layers above each other cannot be more than there are
    if all(len(tree) < MOST_LAYERS for tree in vm.layers.values()) or depth(vm) < MOST_LAYERS:
        return ""
    return f"{MOST_LAYERS} layers lie above each other, and no more may"


def _under_way(fleet: Fleet) -> Load:
    found: Load = Counter()
    for vm in fleet.vms.values():
        if vm.active is None or vm.schedule is None:
            continue
        running = vm.operations[vm.active]
        kind = VERBS.get(running.verb)
        if kind is not None and running.actor == BY_SCHEDULE.actor:
            found[vm.host, kind] += 1
    return found


def _room(load: Load, vm: Vm, act: ScheduledAct) -> bool:
    return load[vm.host, type(act)] < AT_ONCE
