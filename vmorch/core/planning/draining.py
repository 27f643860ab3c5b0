"""What to do now for a drain under way: which moves begin, what the others wait for, and when it is over.

Every drain ends. Whatever it waits for either ends by itself (operations do) or is given `PATIENCE`, after which the VM
counts as blocked by it. Must not choose destinations anew as long as the planned ones hold.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

from msgspec.structs import replace

from vmorch.core.aggregates.budget import unavailable
from vmorch.core.aggregates.drain import (
    Begun,
    Cause,
    Drain,
    DrainEnded,
    DrainEnding,
    DrainEvent,
    Entry,
    How,
    Move,
    MoveBegun,
    MoveEnded,
    MoveReplaced,
    Outcome,
)
from vmorch.core.aggregates.vm import Operation, Vm, VmCommand, request_cancel
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId, HostId, OperationId, VmId, stream
from vmorch.core.operation import Change, change
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.planning.acts import Act, Answer, Because, Later
from vmorch.core.planning.admission import Admission, Who, admit_on_vm
from vmorch.core.planning.drain import command_of, obstacles, stays_off, stopping, way_of
from vmorch.core.planning.groups import Groups, Use
from vmorch.core.planning.mobility import Traffic, traffic_of
from vmorch.core.planning.view import view_of
from vmorch.core.value import Value

PATIENCE = timedelta(seconds=60)
"""How long a move waits for what nothing under way will change, counted from when something last happened."""
SETTLING = timedelta(seconds=3)
"""How long moves in flight may take to be taken back until a drain that was cancelled ends without them."""
LIMITS = frozenset({"too-many-migrations", "operation-in-flight"})
"""Refusals that pass by themselves."""


class Wait(Value, frozen=True, kw_only=True):
    """Why a planned move has not begun yet. `until`: when it is waited for no longer."""

    vm: VmId
    name: str
    on: str
    until: datetime | None = None


class Draining(Value, frozen=True, kw_only=True):
    """The answer. `again` is when to ask again, if nothing happens before."""

    acts: tuple[Act, ...] = ()
    waits: tuple[Wait, ...] = ()
    again: datetime | None = None


class DrainAct(Act, frozen=True):
    """An act for a drain under way. It is wanted as long as asking anew gives it again."""

    drain: DrainId

    @property
    def subject(self) -> str:
        return stream("drain", self.drain)

    def because(self, fleet: Fleet) -> Because:
        drain = fleet.drains[self.drain]
        return Because(reason=drain.reason, correlation=drain.parent or drain.id)

    def changes(self, fleet: Fleet, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        drain = fleet.drains.get(self.drain)
        if drain is None or not drain.running or self not in draining(fleet, drain, now).acts:
            return ()
        return self.decided(fleet, drain, now, operation)

    def decided(self, fleet: Fleet, drain: Drain, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        """Everything to append on exactly this state."""
        raise NotImplementedError


class BeginMove(DrainAct, frozen=True):
    """Begin the move of this VM, or find that it is blocked."""

    vm: VmId

    @property
    def subject(self) -> str:
        return f"{stream('drain', self.drain)} {self.vm}"

    def decided(self, fleet: Fleet, drain: Drain, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        move = next(each for each in drain.waiting() if each.vm == self.vm)
        vm, who = fleet.vms[self.vm], Who(actor="system", reason=drain.reason)
        how = _how(drain, move, vm)
        refusals: list[Rejected] = []
        for command in _commands(fleet, drain, move, vm, how):
            try:
                admission = admit_on_vm(fleet, vm, command, operation=operation, who=who)
            except Rejected as refusal:
                if refusal.code in LIMITS:
                    return ()
                refusals.append(refusal)
                continue
            begun = _begun(move, how, admission, operation, refusals)
            return (*admission.changes, *_said(drain, begun))
        if refusals[-1].code in ("no-host-fits", "cannot-migrate"):
            causes = obstacles(view_of(fleet), drain, vm, how, copy_disks=move.copy_disks)
        else:
            causes = (Cause(why=refusals[-1].reason),)
        entry = _entry(move, vm, result="blocked", code=refusals[-1].code, causes=causes)
        return _unmovable(fleet, drain, move, entry)


    def refused(self, fleet: Fleet, now: datetime, refusal: Rejected) -> tuple[Change, ...]:
        drain = fleet.drains.get(self.drain)
        if refusal.code != "internal-error" or drain is None or self not in draining(fleet, drain, now).acts:
            return ()
        # a stream that cannot be read stands still, and nothing is ever decided on it again
        move = _planned(drain, self.vm)
        entry = _entry(
            move, fleet.vms.get(self.vm), result="blocked", code=refusal.code, causes=(Cause(why=refusal.reason),)
        )
        return _said(drain, MoveEnded(entry=entry))


class EndMove(DrainAct, frozen=True):
    """Take down what became of a VM."""

    entry: Entry

    def decided(self, fleet: Fleet, drain: Drain, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        move = _planned(drain, self.entry.vm)
        if self.entry.result in ("failed", "blocked"):
            return _unmovable(fleet, drain, move, self.entry)
        return _said(drain, MoveEnded(entry=self.entry))


class PassDeadline(DrainAct, frozen=True):
    """The drain's time is over."""

    def decided(self, fleet: Fleet, drain: Drain, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        return end_moves(fleet, drain, "deadline", now)


class EndDrain(DrainAct, frozen=True):
    """Everything that will be done is done."""

    def decided(self, fleet: Fleet, drain: Drain, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        ledger = _ledger(fleet, drain)
        outcome: Outcome = drain.ending or (
            "incomplete" if any(each.result in ("failed", "blocked", "left") for each in ledger) else "done"
        )
        return _said(drain, DrainEnded(outcome=outcome, ledger=ledger))


def policy(fleet: Fleet, now: datetime) -> list[Answer]:
    """What to do now for all drains."""
    found: list[Answer] = []
    for drain in fleet.drains.values():
        if drain.running:
            answer = draining(fleet, drain, now)
            found += answer.acts
            if answer.again is not None:
                found.append(Later(answer.again))
    return found


def end_moves(
    fleet: Fleet, drain: Drain, why: Literal["cancelled", "deadline"], now: datetime
) -> tuple[Change, ...]:
    """Nothing begins from now on, and what is under way is asked to stop unless it can only go on."""
    found = list(_said(drain, DrainEnding(why=why, waits=_waits(fleet, drain, now))))
    for id, begun in drain.begun.items():
        vm = fleet.vms.get(id)
        if vm is None:
            continue
        try:
            asked = request_cancel(vm, begun.operation)
        except Rejected:
            continue  # over, being cancelled already, or past its point of no return
        found += [change(stream("vm", id), event) for event in asked]
    return tuple(found)


def draining(fleet: Fleet, drain: Drain, now: datetime) -> Draining:
    """What to do now for a drain that is running."""
    ended = [EndMove(drain.id, entry) for entry in _ended(fleet, drain)]
    if ended:
        return Draining(acts=tuple(ended))
    if drain.deadline is not None and now >= drain.deadline and drain.ending in ("", "aborted"):
        return Draining(acts=(PassDeadline(drain.id),))
    if drain.ending:
        return _ending(drain, now)
    if not drain.waiting() and not drain.begun:
        return Draining(acts=(EndDrain(drain.id),))
    return _Round(fleet, drain, now).answer()


def _ending(drain: Drain, now: datetime) -> Draining:
    assert drain.ending_since is not None
    if not drain.begun:
        return Draining(acts=(EndDrain(drain.id),))
    if drain.ending == "aborted":
        # nobody asked these to stop; they are moves like any other and end by themselves
        return Draining(again=drain.deadline)
    settled = drain.ending_since + SETTLING
    return Draining(acts=(EndDrain(drain.id),)) if now >= settled else Draining(again=settled)


def _ended(fleet: Fleet, drain: Drain) -> Iterator[Entry]:
    """Entries for moves whose operation is over."""
    for id, begun in drain.begun.items():
        move, vm = _planned(drain, id), fleet.vms.get(id)
        if vm is None or vm.deleted_at is not None:
            yield _entry(move, vm, result="gone", operation=begun.operation, message="it was deleted")
            continue
        operation = vm.operations.get(begun.operation)
        if operation is None or operation.outcome is not None:
            yield _outcome(drain, move, vm, begun, operation)


def _outcome(drain: Drain, move: Move, vm: Vm, begun: Begun, operation: Operation | None) -> Entry:
    code = "" if operation is None or operation.outcome == "succeeded" else operation.code or str(operation.outcome)
    message = "" if operation is None else operation.message
    failed = None if operation is None or not code else operation.progress.failed
    entry = _entry(
        move,
        vm,
        result="failed",
        how=begun.how,
        operation=begun.operation,
        code=code,
        message=message,
        causes=() if failed is None else tuple(Cause(why=why) for why in failed.blockers),
    )
    if begun.how in ("stop", "start"):
        wanted = vm.power in ("running", "paused") if begun.how == "start" else vm.power not in ("running", "paused")
        done = not code and (operation is not None or wanted)
        good: Entry = replace(entry, result="stopped" if begun.how == "stop" else "started")
    else:
        done = not code and vm.host != move.source
        good = replace(entry, result="moved")
    if done:
        return good
    taken_back = operation is not None and operation.outcome == "cancelled"
    if drain.ending in ("cancelled", "deadline") and taken_back and vm.host == move.source:
        return replace(entry, result="left", message="its move was taken back")
    return entry


class _Round:
    """One look at a drain in which moves may begin."""

    def __init__(self, fleet: Fleet, drain: Drain, now: datetime) -> None:
        assert drain.plan is not None
        self.fleet, self.drain, self.now = fleet, drain, now
        self.acts: list[Act] = []
        self.waits: list[Wait] = []
        self.again = [] if drain.deadline is None else [drain.deadline]
        self.begun = len(drain.begun)
        self.out: dict[HostId, int] = {}
        self.into: dict[HostId, int] = {}

    @cached_property
    def traffic(self) -> Traffic:
        return traffic_of(self.fleet.vms.values())

    @cached_property
    def groups(self) -> Groups:
        return Groups(budget for budget in self.fleet.budgets.values() if not budget.deleted)

    @cached_property
    def use(self) -> Use:
        return Use(self.groups, self.fleet.vms.values())

    def answer(self) -> Draining:
        waiting = self.drain.waiting()
        waves = {_planned(self.drain, id).wave for id in self.drain.begun} | {move.wave for move in waiting}
        wave = min(waves)
        for move in waiting:
            if move.wave == wave:
                self._move(move)
            else:
                self._wait(move, f"wave {wave}, which is checked before wave {move.wave} begins")
        return Draining(
            acts=tuple(self.acts), waits=tuple(self.waits), again=min(self.again) if self.again else None
        )

    def _move(self, move: Move) -> None:
        vm = self.fleet.vms.get(move.vm)
        gone = _gone(self.fleet, move, vm)
        if vm is None or gone is not None:
            assert gone is not None
            self.acts.append(EndMove(self.drain.id, gone))
            return
        if vm.active is not None:
            operation = vm.operations[vm.active]
            self._wait(move, f"its {operation.verb} {operation.id}")
            return
        if vm.spec is not None and vm.spec.eviction == "never" and move.how != "stop":
            entry = _entry(move, vm, result="blocked", causes=(Cause(why="its eviction is never"),))
            self.acts.append(EndMove(self.drain.id, entry))
            return
        standing = self._standing(move, vm)
        if standing:
            self._lose_patience(move, vm, standing)
            return
        how = _how(self.drain, move, vm)
        if how == "stop" and vm.power not in ("running", "paused"):
            entry = _entry(move, vm, result="stopped", how="stop", message="it was off already")
            self.acts.append(EndMove(self.drain.id, entry))
            return
        busy = self._limits(move, how)
        if busy:
            self._wait(move, busy)
            return
        bounding = () if how == "start" or unavailable(vm) else self.groups.of(vm)
        for budget in bounding:
            exhausted, full = self.use.exhausted(budget), self.use.full(budget)
            if exhausted:
                self._lose_patience(move, vm, exhausted)
                return
            if full:
                self._wait(move, full)
                return
        for budget in bounding:
            self.use.passing[budget.id].append(vm.name)
        self.begun += 1
        if how not in ("stop", "start"):
            self.out[move.source] = self.out.get(move.source, 0) + 1
            if move.destination is not None:
                self.into[move.destination] = self.into.get(move.destination, 0) + 1
        self.acts.append(BeginMove(self.drain.id, move.vm))

    def _standing(self, move: Move, vm: Vm) -> str:
        """What keeps the VM from being moved that may pass, but that nothing under way is known to change."""
        source = self.fleet.hosts[move.source]
        if source.agent != "connected":
            return f"{source.name}, which is unreachable"
        if vm.frozen is not None:
            return f"both hosts of its last migration: {vm.frozen.why}"
        if vm.power in ("absent", "unknown"):
            return f"{source.name}, which shows it as {vm.power}"
        return ""

    def _limits(self, move: Move, how: How) -> str:
        policy, drain = self.fleet.cluster.policy, self.drain
        at_once = drain.options.max_parallel
        if at_once is not None and self.begun >= at_once:
            return f"another move: {at_once} at once were asked for"
        if how in ("stop", "start"):
            return ""
        total = self.traffic.total + sum(self.out.values())
        leaving = self.traffic.out.get(move.source, 0) + self.out.get(move.source, 0)
        if leaving >= policy.migrations_out:
            return f"another guest that leaves {self.fleet.hosts[move.source].name}"
        if total >= policy.migrations:
            return f"another guest that travels in the cluster: {policy.migrations} may"
        if move.destination is not None:
            coming = self.traffic.into.get(move.destination, 0) + self.into.get(move.destination, 0)
            if coming >= policy.migrations_in:
                return f"another guest that comes to {self.fleet.hosts[move.destination].name}"
        return ""

    def _wait(self, move: Move, on: str, until: datetime | None = None) -> None:
        self.waits.append(Wait(vm=move.vm, name=move.name, on=on, until=until))

    def _lose_patience(self, move: Move, vm: Vm, on: str) -> None:
        assert self.drain.moved_at is not None
        until = self.drain.moved_at + PATIENCE
        if self.now < until:
            self._wait(move, on, until)
            self.again.append(until)
            return
        entry = _entry(move, vm, result="blocked", causes=(Cause(why=f"waited in vain for {on}"),))
        self.acts.append(EndMove(self.drain.id, entry))


def _gone(fleet: Fleet, move: Move, vm: Vm | None) -> Entry | None:
    """An entry for a VM that is no longer where it was when this was planned."""
    if vm is None or vm.deleted_at is not None:
        return _entry(move, vm, result="gone", message="it was deleted")
    if vm.host == move.source:
        return None
    host = None if vm.host is None else fleet.hosts.get(vm.host)
    where = "nowhere" if host is None else host.name
    return _entry(move, vm, result="gone", message=f"somebody else moved it to {where}")


def _how(drain: Drain, move: Move, vm: Vm) -> How:
    """How the VM is moved as it is now: it may have been started or stopped since."""
    assert drain.plan is not None
    if move.how in ("stop", "start"):
        return move.how
    return way_of(vm, returning=drain.plan.purpose == "return")


def _commands(fleet: Fleet, drain: Drain, move: Move, vm: Vm, how: How) -> Iterator[VmCommand]:
    """The ways to carry a move out, the planned one first."""
    assert drain.plan is not None
    if how == "stop":
        yield StopVm()
    elif how == "start":
        yield StartVm()
    else:
        planned = None if move.destination is None else fleet.hosts.get(move.destination)
        copy = move.copy_disks
        if planned is not None:
            yield command_of(vm, how, planned.name, copy_disks=copy)
        if drain.plan.purpose == "drain":
            yield command_of(vm, how, None, copy_disks=copy)


def _begun(
    move: Move, how: How, admission: Admission, operation: OperationId, refusals: list[Rejected]
) -> MoveBegun:
    ends = next((each.judged for each in admission.plan.steps if each.judged), None)
    against = [reason for refusal in refusals for reasons in refusal.facts.values() for reason in reasons]
    why = f"elsewhere than planned: {'; '.join(against) or refusals[0].reason}" if refusals else ""
    return MoveBegun(
        vm=move.vm, operation=operation, how=how, destination=None if ends is None else ends[1], why=why
    )


def _unmovable(fleet: Fleet, drain: Drain, move: Move, entry: Entry) -> tuple[Change, ...]:
    """What follows from a VM that is blocked or whose move failed."""
    if drain.ending:
        return _said(drain, MoveEnded(entry=entry))
    why = entry.message or "; ".join(cause.text() for cause in entry.causes) or entry.code
    match drain.options.on_blocked:
        case "abort":
            ending = DrainEnding(why="aborted", detail=f"{move.name}: {why}")
            return _said(drain, MoveEnded(entry=entry), ending)
        case "stop" if _can_stop(fleet, move):
            stop = stopping(fleet.vms[move.vm], move.source, move.wave, f"could not be moved: {why}")
            return _said(drain, MoveReplaced(move=stop, why=why))
    return _said(drain, MoveEnded(entry=entry))


def _can_stop(fleet: Fleet, move: Move) -> bool:
    vm = fleet.vms.get(move.vm)
    if move.how == "stop" or vm is None or vm.host != move.source or vm.frozen is not None:
        return False
    groups = Groups(budget for budget in fleet.budgets.values() if not budget.deleted)
    use = Use(groups, fleet.vms.values())
    return vm.power in ("running", "paused") and not any(use.exhausted(each) for each in groups.of(vm))


def _waits(fleet: Fleet, drain: Drain, now: datetime) -> dict[VmId, str]:
    """What each move that has not begun waits for."""
    waits = _Round(fleet, drain, now).answer().waits if drain.waiting() else ()
    return {wait.vm: wait.on for wait in waits}


def _ledger(fleet: Fleet, drain: Drain) -> tuple[Entry, ...]:
    """A line for each VM of the plan, in its order, and for each that stands on the hosts beside them."""
    assert drain.plan is not None
    found = dict(drain.entries)
    for move in drain.plan.moves:
        vm = fleet.vms.get(move.vm)
        if move.vm in drain.begun:
            found[move.vm] = _under_way(fleet, move, vm, drain.begun[move.vm])
        elif move.vm not in found:
            on = drain.waits.get(move.vm, "")
            message = "not begun" + (f"; it waited for {on}" if on else "")
            found[move.vm] = _entry(move, vm, result="left", code="drain-ended", message=message)
    if drain.plan.purpose == "drain":
        for vm in fleet.vms.values():
            if vm.host in drain.plan.hosts and vm.deleted_at is None and vm.spec and vm.id not in found:
                off = stays_off(vm)
                found[vm.id] = Entry(
                    vm=vm.id,
                    name=vm.name,
                    source=vm.host,
                    host=vm.host,
                    result="stopped" if off else "left",
                    message="it was off already" if off else "it was not in the plan",
                )
    order = {move.vm: (move.wave, at) for at, move in enumerate(drain.plan.moves)}
    last = (len(order) + 1, 0)
    return tuple(sorted(found.values(), key=lambda each: (order.get(each.vm, last), each.name, each.vm)))


def _under_way(fleet: Fleet, move: Move, vm: Vm | None, begun: Begun) -> Entry:
    """The line of a move that the drain ends without."""
    host = None if begun.destination is None else fleet.hosts.get(begun.destination)
    where = "" if host is None else f" to {host.name}"
    taken_back = False
    if vm is not None and begun.operation in vm.operations:
        taken_back = vm.operations[begun.operation].progress.cancel
    said = "is being taken back" if taken_back else f"can only go on{where}"
    return _entry(
        move,
        vm,
        result="left",
        how=begun.how,
        operation=begun.operation,
        code="being-cancelled" if taken_back else "point-of-no-return",
        message=f"its move {said}: vmorch op watch {begun.operation}",
    )


def _entry(move: Move, vm: Vm | None, **fields: object) -> Entry:
    host = None if vm is None else vm.host
    name = move.name if vm is None or not vm.name else vm.name
    return Entry(**{"vm": move.vm, "name": name, "source": move.source, "host": host, "how": move.how, **fields})  # type: ignore[arg-type]


def _planned(drain: Drain, vm: VmId) -> Move:
    assert drain.plan is not None
    return next(move for move in drain.plan.moves if move.vm == vm)


def _said(drain: Drain, *events: DrainEvent) -> tuple[Change, ...]:
    return tuple(change(stream("drain", drain.id), event) for event in events)
