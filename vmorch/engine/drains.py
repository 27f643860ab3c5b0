"""Drains, plans and budgets as callers ask for them: decide on the world, append, answer.

Everything that a drain causes carries its id as correlation. Must not wait for a drain: its policy drives it from the
log.
"""

from collections.abc import Callable, Iterable

import msgspec

from vmorch.core.aggregates import budget as budgets
from vmorch.core.aggregates import drain as drains
from vmorch.core.aggregates.budget import CreateBudget
from vmorch.core.aggregates.drain import ActivateHost, ApplyPlan, Drain, DrainPlan, PlanDrain
from vmorch.core.codec import Fact, Unreadable, decode, unpack_event
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId, Position, split_stream, stream
from vmorch.core.operation import Change, change
from vmorch.core.planning.admission import Who
from vmorch.core.planning.staleness import Touch, may_touch, touching
from vmorch.core.planning.undertakings import (
    admit_activate,
    admit_apply,
    admit_budget,
    admit_cancel,
    admit_plan,
)
from vmorch.engine.caller import Accepted, Caller
from vmorch.engine.effects import Ids
from vmorch.engine.recorder import Recorder, fingerprint

BATCH = 5000


class Drains:
    """What callers may ask about emptying hosts. Every method raises Rejected or LogUnavailable."""

    def __init__(self, recorder: Recorder, ids: Ids) -> None:
        self.recorder = recorder
        self.ids = ids

    @property
    def fleet(self) -> Fleet:
        """The live state; read only."""
        return self.recorder.world.fleet

    async def plan(self, command: PlanDrain, caller: Caller) -> Accepted:
        """Store how hosts would be emptied, and with `start` begin at once."""
        id = DrainId(self.ids())
        print = fingerprint(caller.actor, "drain", " ".join(command.hosts), command)
        now = self.recorder.clock.now
        return await self._record(
            lambda: admit_plan(self.fleet, command, id, _who(caller), now()), caller, print, correlation=id
        )

    async def apply(self, ref: str, command: ApplyPlan, caller: Caller) -> Accepted:
        """Begin a stored plan, unless the cluster has moved away from it."""
        id = self.fleet.find_drain(ref).id
        print = fingerprint(caller.actor, "apply", ref, command)
        world, clock = self.recorder.world, self.recorder.clock
        later: list[Fact] = []
        # what happens while the log is read counts too
        ignore = world.on_fact(later.append)
        try:
            known = await self._since(_planned(self.fleet.drains[id]), self.fleet.position)
            seen = self.fleet.position

            def decide() -> tuple[Change, ...]:
                drain = self.fleet.drains[id]
                facts = [*known, *(fact for fact in later if fact.position > seen)]
                touches = [] if command.rebase else touching(self.fleet, drains.check_planned(drain), facts)
                return admit_apply(self.fleet, drain, command, touches, _who(caller), clock.now())

            return await self._record(decide, caller, print, correlation=id)
        finally:
            ignore()

    def foresee(self, command: PlanDrain, caller: Caller, fleet: Fleet) -> Drain:
        """The plan that would be made, or begun, in this fleet; nothing is recorded."""
        id = DrainId(self.ids())
        at = fleet.recorded_at or self.recorder.clock.now()
        drain = Drain(id=id)
        for each in admit_plan(fleet, command, id, _who(caller), at):
            event = unpack_event(each.event)
            if isinstance(event, drains.DrainEvent):
                drain = event.apply(drain, at)
        return msgspec.structs.replace(drain, actor=caller.actor, reason=caller.reason)

    async def touches(self, drain: Drain, fleet: Fleet | None = None) -> list[Touch]:
        """The events since a plan was made that touch it, up to now or to a fleet of the past."""
        seen = self.fleet if fleet is None else fleet
        return touching(seen, _planned(drain), await self._since(_planned(drain), seen.position))

    async def discard(self, ref: str, caller: Caller) -> Accepted:
        """Give a stored plan up."""
        return await self._on_drain(ref, "discard", caller, lambda drain: _said(drain, drains.discard(drain)))

    async def cancel(self, ref: str, caller: Caller) -> Accepted:
        """End a drain: nothing begins any more, and what is under way is taken back as far as it can be."""
        now = self.recorder.clock.now
        return await self._on_drain(ref, "cancel-drain", caller, lambda drain: admit_cancel(self.fleet, drain, now()))

    async def activate(self, ref: str, command: ActivateHost, caller: Caller) -> Accepted:
        """Return a host to service; the subject is the drain that brings its VMs back, if there is one to do."""
        id = DrainId(self.ids())
        now = self.recorder.clock.now
        print = fingerprint(caller.actor, "activate", ref, command)
        return await self._record(
            lambda: admit_activate(self.fleet, self.fleet.find_host(ref), command, id, _who(caller), now()),
            caller,
            print,
            correlation=id if command.bring_back else None,
        )

    async def create_budget(self, command: CreateBudget, caller: Caller) -> Accepted:
        """Bound how many VMs of a group are away at once."""
        id = self.ids()
        print = fingerprint(caller.actor, "create-budget", command.name, command)
        return await self._record(lambda: admit_budget(self.fleet, command, id), caller, print)

    async def delete_budget(self, ref: str, caller: Caller) -> Accepted:
        """Give a budget up."""

        def decide() -> list[Change]:
            budget = self.fleet.find_budget(ref)
            return [change(stream("budget", budget.id), event) for event in budgets.delete(budget)]

        return await self._record(decide, caller, fingerprint(caller.actor, "delete-budget", ref, None))

    async def past(self, ref: str, until: Position | None = None) -> Drain | None:
        """A drain that the state no longer remembers, from its stream up to a position."""
        records = await self.recorder.world.log.read_stream(stream("drain", ref), until=until)
        drain = Drain(id=DrainId(ref))
        try:
            for record in records:
                fact = decode(record)
                assert isinstance(fact.event, drains.DrainEvent)
                drain = msgspec.structs.replace(fact.event.apply(drain, fact.recorded_at), version=fact.version)
        except Unreadable as error:
            raise Rejected("internal-error", f"drain {ref} holds an unreadable event: {error}") from error
        return drain if drain.plan is not None else None

    async def _on_drain(
        self, ref: str, verb: str, caller: Caller, decide: Callable[[Drain], Iterable[Change]]
    ) -> Accepted:
        id = self.fleet.find_drain(ref).id
        print = fingerprint(caller.actor, verb, ref, None)
        return await self._record(lambda: decide(self.fleet.drains[id]), caller, print, correlation=id)

    async def _since(self, plan: DrainPlan, until: Position) -> list[Fact]:
        """Every fact after a plan that may touch it and can be read, up to a position."""
        log, concerns = self.recorder.world.log, may_touch(plan)
        found: list[Fact] = []
        at = plan.position
        while at < until:
            for record in await log.read(at, BATCH, until):
                at = Position(record.position)
                if not concerns(record.stream, record.kind):
                    continue
                try:
                    found.append(decode(record))
                except Unreadable:
                    continue  # its stream stands still, and nothing is decided on it
        return found

    async def _record(
        self,
        decide: Callable[[], Iterable[Change]],
        caller: Caller,
        print: str,
        *,
        correlation: str | None = None,
    ) -> Accepted:
        """Append what `decide` says, or find what a repeat of the request appended."""
        meta = self.recorder.meta_of(caller, print=print, correlation=correlation)
        facts: list[Fact] = await self.recorder.once(lambda: (decide(), None), lambda _: meta, caller, print)
        subjects = dict(split_stream(fact.stream) for fact in facts)
        kind = next(each for each in ("drain", "maintenance", "budget", "host") if each in subjects)
        id = subjects[kind]
        return Accepted(subject=id, name=self._name(kind, id), position=facts[-1].position)

    def _name(self, kind: str, id: str) -> str:
        match kind:
            case "budget":
                return self.fleet.budgets[id].name
            case "host":
                return next((host.name for host in self.fleet.hosts.values() if host.id == id), "")
        return kind


def _planned(drain: Drain) -> DrainPlan:
    assert drain.plan is not None
    return drain.plan


def _who(caller: Caller) -> Who:
    return Who(actor=caller.actor, reason=caller.reason)


def _said(drain: Drain, events: Iterable[drains.DrainEvent]) -> list[Change]:
    return [change(stream("drain", drain.id), event) for event in events]
