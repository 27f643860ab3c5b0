"""A drain: hosts emptied by a plan that was made first, and the ledger of what became of each VM.

Plan and drain are one stream: what is planned may be discarded or started, and what is started ends, with every VM
accounted for. The same serves for bringing VMs back. Must not choose (that is planning) and must not move anything:
each VM is moved by an operation of its own, which these events name.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.errors import Rejected
from vmorch.core.ids import DrainId, HostId, MiB, OperationId, Position, VmId
from vmorch.core.messages import Command, Event, message
from vmorch.core.spec import Name
from vmorch.core.value import Value

Purpose = Literal["drain", "return"]
"""Empty hosts, or bring back to a host what was moved away from it."""
How = Literal["live", "offline", "restart", "stop", "start"]
"""Moved while it runs, moved while it is off, moved by a restart, shut down where it is, started where it is."""
Result = Literal["moved", "stopped", "started", "failed", "blocked", "left", "gone"]
"""What became of a VM. `failed`: its operation did not succeed, wherever the VM is now; `blocked`: nothing was begun
because of what is named; `left`: nothing was begun, or it was taken back, because the drain ended before; `gone`: the
VM was deleted or moved by somebody else."""
OnBlocked = Literal["refuse", "abort", "skip", "stop"]
"""What a VM that cannot be moved means for the others. `refuse`: nothing begins if there is one, and later ones are
skipped; `abort`: likewise, and the first that turns up later ends the drain; `skip`: the rest moves; `stop`: it is shut
down."""
State = Literal["planned", "discarded", "running", "over"]
Outcome = Literal["done", "incomplete", "cancelled", "deadline", "aborted"]
"""`done`: every VM went as planned; `incomplete`: the ledger names those that did not."""

Within = Annotated[float, Meta(ge=1, le=30 * 24 * 3600, description="seconds from the start until it ends in any case")]
AtOnce = Annotated[int, Meta(ge=1, le=1000, description="VMs on the move at once, within the cluster's policy")]


class Cause(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Something that keeps a VM from moving: of the VM itself, or of `number` hosts as destinations, the first few of
    which are named."""

    why: str
    hosts: tuple[str, ...] = ()
    number: int = 0

    def text(self) -> str:
        """In words."""
        if not self.hosts:
            return self.why
        named = ", ".join(self.hosts[:3]) + (f" and {self.number - 3} more" if self.number > 3 else "")
        return f"{named}: {self.why}"


class Move(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What is planned for one VM. `on` is whether it ran when this was planned; `estimate` is in seconds."""

    vm: VmId
    name: str
    source: HostId
    destination: HostId | None = None
    how: How
    wave: int
    on: bool = True
    copy_disks: bool = False
    memory: MiB = MiB(0)
    estimate: float = 0.0
    why: str = ""


class Blocked(Value, frozen=True, kw_only=True):
    """A VM that cannot be moved, and everything that stands in the way."""

    vm: VmId
    name: str
    source: HostId
    on: bool
    causes: tuple[Cause, ...]


class HostAfter(Value, frozen=True, kw_only=True):
    """How full a host will be: promised shares of what it may promise, before and after."""

    host: HostId
    name: str
    vms: int
    memory: float
    vcpus: float
    disk: float
    memory_before: float


class HostLoss(Value, frozen=True, kw_only=True):
    """VMs that would find no other place if this host were lost after the plan."""

    host: HostId
    name: str
    vms: tuple[str, ...]


class Survival(Value, frozen=True, kw_only=True):
    """Whether the VMs of any one more host would find a place on the others. `losses` are the hosts that they would
    not, at most a few; `on_local_disks` counts VMs that would lose their disks with their host in any case."""

    survivable: bool
    losses: tuple[HostLoss, ...] = ()
    on_local_disks: int = 0


class DrainPlan(Value, frozen=True, kw_only=True):
    """What was decided at a log position: it follows from the state there and from `options` alone.

    `facts` are digests of what the hosts concerned said of themselves, to see whether that has changed since.
    """

    purpose: Purpose
    hosts: tuple[HostId, ...]
    position: Position
    moves: tuple[Move, ...]
    blocked: tuple[Blocked, ...]
    after: tuple[HostAfter, ...]
    survival: Survival
    seconds: float
    facts: Mapping[HostId, str] = {}
    kept: int = 0
    """How many moves of the plan before were kept."""


class DrainOptions(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How an operator wants it. `copy_disks`: VMs on local disks are carried with them, instead of being blocked."""

    deadline: Within | None = None
    max_parallel: AtOnce | None = None
    copy_disks: bool = True
    on_blocked: OnBlocked = "refuse"


class Entry(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the ledger: what became of one VM. `host` is where it is now, `message` holds the host's own words."""

    vm: VmId
    name: str
    source: HostId
    result: Result
    host: HostId | None = None
    how: How | None = None
    operation: OperationId | None = None
    code: str = ""
    message: str = ""
    causes: tuple[Cause, ...] = ()


class Begun(Value, frozen=True, kw_only=True):
    """A move under way, by an operation on the VM."""

    operation: OperationId
    destination: HostId | None
    how: How
    since: datetime


class Drain(Value, frozen=True, kw_only=True):
    """A drain, folded from its stream. `moved_at` is when something last happened in it; `operations` are all that it
    began, also those whose place others took."""

    id: DrainId
    version: int = 0
    state: State = "planned"
    plan: DrainPlan | None = None
    options: DrainOptions = DrainOptions()
    parent: str = ""
    planned_at: datetime | None = None
    started_at: datetime | None = None
    moved_at: datetime | None = None
    deadline: datetime | None = None
    ending: Literal["", "cancelled", "deadline", "aborted"] = ""
    """Nothing begins any more, and why; what is under way is being taken back or carried through."""
    ending_since: datetime | None = None
    waits: Mapping[VmId, str] = {}
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    actor: str = ""
    reason: str = ""
    begun: Mapping[VmId, Begun] = {}
    entries: Mapping[VmId, Entry] = {}
    operations: tuple[OperationId, ...] = ()

    @property
    def running(self) -> bool:
        return self.state == "running"

    def waiting(self) -> tuple[Move, ...]:
        """Planned moves that were neither begun nor given up."""
        assert self.plan is not None
        return tuple(each for each in self.plan.moves if each.vm not in self.begun and each.vm not in self.entries)


class DrainEvent(Event, frozen=True, kw_only=True):
    """A fact about one drain."""

    subject: ClassVar[str] = "drain"

    def apply(self, drain: Drain, at: datetime) -> Drain:
        """The drain after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("drain.planned")
class DrainPlanned(DrainEvent, frozen=True, kw_only=True):
    """This is how the hosts would be emptied. A later one of the same drain takes the place of an earlier one.

    `parent` names the maintenance that the drain is a part of.
    """

    plan: DrainPlan
    options: DrainOptions
    parent: str = ""

    def apply(self, drain: Drain, at: datetime) -> Drain:
        return replace(drain, plan=self.plan, options=self.options, parent=self.parent, planned_at=at)


@message("drain.discarded")
class DrainDiscarded(DrainEvent, frozen=True, kw_only=True):
    """The plan will not be carried out."""

    def apply(self, drain: Drain, at: datetime) -> Drain:
        return replace(drain, state="discarded", ended_at=at)


@message("drain.started")
class DrainStarted(DrainEvent, frozen=True, kw_only=True):
    """The plan is carried out from now on, with these options; its hosts were cordoned with the same append.

    `also` are the moves that follow from the options: with `stop`, the shutting down of what is blocked.
    """

    options: DrainOptions
    deadline: datetime | None = None
    also: tuple[Move, ...] = ()
    actor: str = ""
    reason: str = ""

    def apply(self, drain: Drain, at: datetime) -> Drain:
        assert drain.plan is not None
        taken = {each.vm for each in self.also}
        entries = {
            each.vm: Entry(
                vm=each.vm,
                name=each.name,
                source=each.source,
                result="blocked",
                host=each.source,
                causes=each.causes,
            )
            for each in drain.plan.blocked
            if each.vm not in taken
        }
        return replace(
            drain,
            state="running",
            plan=replace(drain.plan, moves=(*drain.plan.moves, *self.also)),
            options=self.options,
            deadline=self.deadline,
            started_at=at,
            moved_at=at,
            actor=self.actor,
            reason=self.reason,
            entries=entries,
        )


@message("drain.move-begun")
class MoveBegun(DrainEvent, frozen=True, kw_only=True):
    """The operation on the VM began with the same append. `why` tells where this is not what was planned."""

    vm: VmId
    operation: OperationId
    how: How
    destination: HostId | None = None
    why: str = ""

    def apply(self, drain: Drain, at: datetime) -> Drain:
        made = Begun(operation=self.operation, destination=self.destination, how=self.how, since=at)
        operations = (*drain.operations, self.operation)
        return replace(drain, begun={**drain.begun, self.vm: made}, operations=operations, moved_at=at)


@message("drain.move-ended")
class MoveEnded(DrainEvent, frozen=True, kw_only=True):
    """What became of a VM."""

    entry: Entry

    def apply(self, drain: Drain, at: datetime) -> Drain:
        begun = {vm: each for vm, each in drain.begun.items() if vm != self.entry.vm}
        return replace(drain, begun=begun, entries={**drain.entries, self.entry.vm: self.entry}, moved_at=at)


@message("drain.move-replaced")
class MoveReplaced(DrainEvent, frozen=True, kw_only=True):
    """A VM that turned out to be blocked, or whose move failed, is treated like this instead."""

    move: Move
    why: str

    def apply(self, drain: Drain, at: datetime) -> Drain:
        assert drain.plan is not None
        moves = tuple(each for each in drain.plan.moves if each.vm != self.move.vm)
        return replace(
            drain,
            plan=replace(drain.plan, moves=(*moves, self.move)),
            begun={vm: each for vm, each in drain.begun.items() if vm != self.move.vm},
            entries={vm: each for vm, each in drain.entries.items() if vm != self.move.vm},
            moved_at=at,
        )


@message("drain.ending")
class DrainEnding(DrainEvent, frozen=True, kw_only=True):
    """Nothing begins from now on: an operator cancelled it, its deadline passed, or a VM cannot move and `abort` holds.

    Moves that can still be taken back were asked to stop with the same append. `waits` tells what those that had not
    begun were waiting for.
    """

    why: Literal["cancelled", "deadline", "aborted"]
    detail: str = ""
    waits: Mapping[VmId, str] = {}

    def apply(self, drain: Drain, at: datetime) -> Drain:
        return replace(drain, ending=self.why, ending_since=at, moved_at=at, waits=self.waits)


@message("drain.ended")
class DrainEnded(DrainEvent, frozen=True, kw_only=True):
    """It is over. The ledger has every VM of the plan and every one that stands on its hosts all the same."""

    outcome: Outcome
    ledger: tuple[Entry, ...]

    def apply(self, drain: Drain, at: datetime) -> Drain:
        entries = {each.vm: each for each in self.ledger}
        return replace(drain, state="over", outcome=self.outcome, entries=entries, begun={}, ended_at=at)


@message("drain.plan")
class PlanDrain(Command, frozen=True, kw_only=True):
    """These hosts hold no VM any more, as far as their VMs' evictions and the cluster allow."""

    verb = "drain"
    summary = "Plan how hosts are emptied, or empty them at once"

    hosts: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=200, description="names of hosts")]
    deadline: Within | None = None
    max_parallel: AtOnce | None = None
    copy_disks: Annotated[bool, Meta(description="carry VMs on local disks with them")] = True
    on_blocked: OnBlocked = "refuse"
    start: Annotated[bool, Meta(description="carry the plan out at once")] = False


@message("drain.apply")
class ApplyPlan(Command, frozen=True, kw_only=True):
    """The plan is carried out as it is, or refused if the cluster has moved. What is not given holds as planned."""

    verb = "apply"
    summary = "Carry a plan out"

    rebase: Annotated[bool, Meta(description="plan anew first, keeping the moves that still hold")] = False
    on_blocked: OnBlocked | None = None
    deadline: Within | None = None
    max_parallel: AtOnce | None = None


@message("drain.activate")
class ActivateHost(Command, frozen=True, kw_only=True):
    """The host takes VMs again. With `bring_back`, those that its last drain moved away are moved back."""

    verb = "activate"
    summary = "Return a host to service"

    bring_back: Annotated[bool, Meta(description="move back what its last drain moved away")] = False


def check_planned(drain: Drain) -> DrainPlan:
    """The plan of a drain that was not started. Raises Rejected `already-over` or `already-so`."""
    if drain.state == "running":
        raise Rejected("already-so", f"plan {drain.id} is being carried out", hint=f"vmorch drain watch {drain.id}")
    if drain.state != "planned":
        word = "discarded" if drain.state == "discarded" else "carried out"
        raise Rejected("already-over", f"plan {drain.id} was {word}", hint="vmorch plan list")
    assert drain.plan is not None
    return drain.plan


def discard(drain: Drain) -> list[DrainEvent]:
    """Give a plan up. Raises Rejected `already-over` or `already-so`."""
    check_planned(drain)
    return [DrainDiscarded()]
