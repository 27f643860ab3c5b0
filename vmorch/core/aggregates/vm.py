"""A VM: what was asked, where it is, what was seen of it, and the one operation that may be under way.

`power` is what its host saw last, never what somebody wished; being on the way somewhere is not a state
but `active`. Must not know any particular operation.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from msgspec.structs import replace

from vmorch.core.aggregates.host import Host
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import AwaitReady, Failed, Observed, Power, StartDomain
from vmorch.core.ids import BackupId, HostId, MiB, OperationId, VmId, stream
from vmorch.core.layers import Tree
from vmorch.core.messages import Command, Event, HostCommand, message
from vmorch.core.operation import (
    Change,
    Finish,
    Outcome,
    Plan,
    Progress,
    Step,
    change,
    step,
    step_done,
    step_failed,
    step_over,
)
from vmorch.core.snapshot import Schedule, Snapshot
from vmorch.core.spec import Labels, VmSpec
from vmorch.core.value import Value

_NOTHING = MiB(0)
KEPT_OPERATIONS = 10
"""How many finished operations a VM's state remembers; the log has all."""


class Operation(Value, frozen=True, kw_only=True):
    """One operation on a VM, folded from its events."""

    id: OperationId
    verb: str
    steps: tuple[Step, ...]
    actor: str
    reason: str
    started_at: datetime
    started_position: int
    success: tuple[Change, ...] = ()
    failure: tuple[Change, ...] = ()
    arguments: Mapping[str, Any] = {}
    progress: Progress = Progress()
    outcome: Outcome | None = None
    code: str = ""
    message: str = ""
    ended_at: datetime | None = None
    pause: float | None = None
    """Seconds that the guest stood still for it."""
    frozen: float | None = None
    """Seconds that the guest's file systems were held at rest for it."""


class Drift(Value, frozen=True, kw_only=True):
    """A difference between what the log says and what its host shows."""

    field: str
    recorded: str
    seen: str


class Frozen(Value, frozen=True, kw_only=True):
    """Nobody can tell where the VM is: what was seen at both ends when the operation gave up, and why it did not
    help. Nothing may be done with the VM until both ends were seen, or somebody says where it is."""

    operation: OperationId
    source: HostId
    destination: HostId
    why: str
    source_seen: Observed | None
    destination_seen: Observed | None
    since: datetime


class Vm(Value, frozen=True, kw_only=True):
    """A VM, folded from its stream. `traces` are hosts besides its own where something of it may be left.

    `layers` holds the tree of each disk that was ever split; `number` is the last one given to a layer or snapshot.
    """

    id: VmId
    name: str = ""
    version: int = 0
    spec: VmSpec | None = None
    labels: Mapping[str, str] = {}
    host: HostId | None = None
    epoch: int = 0
    power: Power = "absent"
    power_reason: str = ""
    live_vcpus: int = 0
    live_memory: MiB = _NOTHING
    live_max_vcpus: int = 0
    live_max_memory: MiB = _NOTHING
    addresses: tuple[str, ...] = ()
    observed_at: datetime | None = None
    created_at: datetime | None = None
    deleted_at: datetime | None = None
    kept_disks: tuple[str, ...] = ()
    drift: tuple[Drift, ...] = ()
    active: OperationId | None = None
    operations: Mapping[OperationId, Operation] = {}
    traces: frozenset[HostId] = frozenset()
    frozen: Frozen | None = None
    layers: Mapping[str, Tree] = {}
    snapshots: Mapping[str, Snapshot] = {}
    number: int = 0
    schedule: Schedule | None = None
    backup: BackupId | None = None
    """The last backup that was made of it. Its writes are noted since then, unless `unnoted` tells why not; only its
    host can tell for certain."""
    unnoted: str = ""

    def pending(self) -> dict[str, tuple[int, int]]:
        """What was asked but is not in force before the next start: field -> (in force, asked)."""
        if self.spec is None or self.power not in ("running", "paused"):
            return {}
        found: dict[str, tuple[int, int]] = {}
        if self.live_vcpus and self.live_vcpus != self.spec.vcpus:
            found["vcpus"] = (self.live_vcpus, self.spec.vcpus)
        # what is too much a running guest gives back; only what is beyond its maximum has to wait
        if self.live_memory and self.live_memory < self.spec.memory:
            found["memory"] = (self.live_memory, self.spec.memory)
        return found


class VmEvent(Event, frozen=True, kw_only=True):
    """A fact about one VM."""

    subject: ClassVar[str] = "vm"

    def apply(self, vm: Vm, at: datetime) -> Vm:
        """The VM after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


class VmCommand(Command, frozen=True, kw_only=True):
    """A request about one VM that exists. `needs` are the powers that it can start from; `resolves` tells that it is
    meant for a VM that is frozen because nobody can tell where it is, and for no other."""

    resolves: ClassVar[bool] = False
    needs: ClassVar[frozenset[Power]] = frozenset({"off", "running", "paused", "crashed", "absent", "unknown"})

    def plan(self, vm: Vm, host: Host) -> Plan:
        """How it is done, or Rejected. Pure; asked only when nothing else is active on the VM."""
        raise NotImplementedError(self.kind)


@message("vm.created")
class VmCreated(VmEvent, frozen=True, kw_only=True):
    """A VM of this name and spec belongs to that host from now on; its disks and domain come after."""

    name: str
    spec: VmSpec
    labels: Labels
    host: HostId
    epoch: int
    placement: Mapping[str, str] = {}
    """Why there: host name -> score or reason against, as placement saw it."""

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(
            vm,
            name=self.name,
            spec=self.spec,
            labels=self.labels,
            host=self.host,
            epoch=self.epoch,
            created_at=at,
        )


@message("vm.deleted")
class VmDeleted(VmEvent, frozen=True, kw_only=True):
    """The VM is gone from its host. `kept_disks` names the disks that were left there on purpose."""

    kept_disks: tuple[str, ...] = ()

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, deleted_at=at, power="absent", host=None, kept_disks=self.kept_disks, addresses=())


@message("vm.operation-started")
class OperationStarted(VmEvent, frozen=True, kw_only=True):
    """An operation owns the VM until it is finished. Its whole plan is here."""

    operation: OperationId
    verb: str
    steps: tuple[Step, ...]
    success: tuple[Change, ...] = ()
    failure: tuple[Change, ...] = ()
    arguments: Mapping[str, Any] = {}
    actor: str = ""
    reason: str = ""
    position: int = 0
    done: int = 0
    """Steps that an earlier operation has done already."""

    def apply(self, vm: Vm, at: datetime) -> Vm:
        started = Operation(
            id=self.operation,
            verb=self.verb,
            steps=self.steps,
            success=self.success,
            failure=self.failure,
            arguments=self.arguments,
            actor=self.actor,
            reason=self.reason,
            started_at=at,
            started_position=self.position,
            progress=Progress(done=self.done),
        )
        kept = dict(vm.operations)
        while len(kept) >= KEPT_OPERATIONS:
            kept.pop(next(iter(kept)))
        kept[self.operation] = started
        return replace(vm, active=self.operation, operations=kept)


class OperationEvent(VmEvent, frozen=True, kw_only=True):
    """A fact about an operation under way."""

    operation: OperationId

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, operations=self._advanced(vm, at))

    def advance(self, operation: Operation, at: datetime) -> Operation:
        """The operation after this fact."""
        raise NotImplementedError(self.kind)

    def _advanced(self, vm: Vm, at: datetime) -> Mapping[OperationId, Operation]:
        """The VM's operations after this fact; the same if it comes too late to move its operation."""
        running = vm.operations.get(self.operation)
        if running is None or running.outcome is not None:
            return vm.operations
        return {**vm.operations, self.operation: self.advance(running, at)}


@message("vm.step-done")
class StepDone(OperationEvent, frozen=True, kw_only=True):
    """A step's target is reached (or, with `undo`, taken back), as its host answered."""

    index: int
    step: str = ""
    """The step's label, so that the event can be read by itself."""
    undo: bool = False
    attempt: int = 1
    already: bool = False
    observed: Observed | None = None
    pause: float | None = None
    frozen: float | None = None

    def advance(self, operation: Operation, at: datetime) -> Operation:
        if self.pause is not None:
            operation = replace(operation, pause=self.pause)
        if self.frozen is not None:
            operation = replace(operation, frozen=self.frozen)
        if operation.steps[self.index].judged and not self.undo:
            return replace(operation, progress=step_over(operation.progress, self.index, None))
        return replace(operation, progress=step_done(operation.progress, self.index, undo=self.undo))

    def apply(self, vm: Vm, at: datetime) -> Vm:
        operations = self._advanced(vm, at)
        late = vm.operations.get(self.operation) if operations is vm.operations else None
        if late is not None and late.outcome == "stuck" and not self.undo:
            # it ends nothing any more, but the same answer must not count twice
            done = replace(late, progress=step_done(late.progress, self.index, undo=False))
            operations = {**operations, self.operation: done}
        return _see_step(vm, self.operation, self.index, self.observed, at, operations)


@message("vm.step-failed")
class StepFailed(OperationEvent, frozen=True, kw_only=True):
    """A step's target is not reached; `message` holds the host's own words."""

    index: int
    step: str = ""
    code: str
    message: str
    undo: bool = False
    attempt: int = 1
    observed: Observed | None = None
    blockers: tuple[str, ...] = ()

    def advance(self, operation: Operation, at: datetime) -> Operation:
        failure = Failed(code=self.code, message=self.message, blockers=self.blockers)
        if operation.steps[self.index].judged and not self.undo:
            return replace(operation, progress=step_over(operation.progress, self.index, failure))
        return replace(
            operation, progress=step_failed(operation.progress, self.index, failure, undo=self.undo)
        )

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return _see_step(vm, self.operation, self.index, self.observed, at, self._advanced(vm, at))


@message("vm.step-timed-out")
class StepTimedOut(OperationEvent, frozen=True, kw_only=True):
    """A step's host did not answer within the step's deadline. What became of it is not known."""

    index: int
    step: str = ""
    message: str

    def advance(self, operation: Operation, at: datetime) -> Operation:
        progress = operation.progress
        if self.index != progress.done and progress.failed is None:
            return operation
        if operation.steps[self.index].judged and progress.failed is None:
            silent = Failed(code="host-silent", message=self.message)
            return replace(operation, progress=step_over(progress, self.index, silent))
        return replace(operation, progress=replace(progress, timed_out=self.message))


@message("vm.cancel-requested")
class CancelRequested(OperationEvent, frozen=True, kw_only=True):
    """The operation shall stop and take back what it did."""

    def advance(self, operation: Operation, at: datetime) -> Operation:
        return replace(operation, progress=replace(operation.progress, cancel=True))


@message("vm.operation-finished")
class OperationFinished(OperationEvent, frozen=True, kw_only=True):
    """The operation is over and the VM free for another."""

    outcome: Outcome
    code: str = ""
    message: str = ""

    def advance(self, operation: Operation, at: datetime) -> Operation:
        # what is not settled yet is carried through or taken back later, by the same facts
        kept = self.code == "outcome-unknown"
        return replace(
            operation,
            outcome=self.outcome,
            code=self.code,
            message=self.message,
            ended_at=at,
            success=operation.success if kept else (),
            failure=operation.failure if kept else (),
        )

    def apply(self, vm: Vm, at: datetime) -> Vm:
        active = None if vm.active == self.operation else vm.active
        return replace(vm, operations=self._advanced(vm, at), active=active)


@message("vm.observed")
class VmObserved(VmEvent, frozen=True, kw_only=True):
    """The VM's host saw a change that no step of an operation accounts for."""

    unasked = True

    host: HostId
    observed: Observed

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return see(vm, self.observed, at) if vm.host == self.host and vm.deleted_at is None else vm


@message("vm.drifted")
class VmDrifted(VmEvent, frozen=True, kw_only=True):
    """The domain's configuration on its host is not what the log says; empty when it is again."""

    unasked = True

    host: HostId
    drift: tuple[Drift, ...]

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, drift=self.drift)


def _see_step(
    vm: Vm,
    operation: OperationId,
    index: int,
    seen: Observed | None,
    at: datetime,
    operations: Mapping[OperationId, Operation],
) -> Vm:
    """The VM with its operations after a step showed something. What another host than its own shows says nothing
    about it."""
    running = operations.get(operation)
    if seen is None or running is None or index >= len(running.steps) or running.steps[index].host != vm.host:
        return replace(vm, operations=operations)
    return see(vm, seen, at, operations)


def see(vm: Vm, seen: Observed, at: datetime, operations: Mapping[OperationId, Operation] | None = None) -> Vm:
    """The VM as just observed, with its operations after that if they are others. Figures that an observation leaves
    out stay as they were while it runs."""
    on = seen.power in ("running", "paused")
    # the domain was started with what was asked then; a later resize does not reach beyond it
    started = vm.spec if on and vm.power not in ("running", "paused", "unknown") else None
    return replace(
        vm,
        power=seen.power,
        power_reason=seen.reason,
        live_vcpus=(seen.vcpus or vm.live_vcpus) if on else 0,
        live_memory=(seen.memory or vm.live_memory) if on else _NOTHING,
        live_max_vcpus=vm.live_max_vcpus if started is None else started.max_vcpus,
        live_max_memory=vm.live_max_memory if started is None else started.max_memory,
        addresses=(seen.addresses or vm.addresses) if on else (),
        observed_at=at,
        operations=vm.operations if operations is None else operations,
    )


def boot(vm: VmId, spec: VmSpec, host: HostId, undo: HostCommand | None = None) -> tuple[Step, ...]:
    """The steps that make a defined domain run and wait until it is what its spec calls ready.

    A guest that does not get ready is left running: the operation is then stuck and says so.
    """
    started = step(host, StartDomain(vm=vm), undo=undo, deadline=120)
    if spec.ready.by == "none":
        return (started,)
    ready = AwaitReady(vm=vm, ready=spec.ready, nics=spec.nics)
    return (started, step(host, ready, keep=True, deadline=spec.ready.within + 15))


def mac_address(vm: VmId, index: int) -> str:
    """The MAC address of a VM's n-th card: the same for ever, in QEMU's 52:54:00 range."""
    tail = hashlib.sha256(f"{vm}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail[:3])


def admit(vm: Vm, command: VmCommand, host: Host, plan: Callable[[], Plan] | None = None) -> Plan:
    """The plan of a command, after the guards that hold for every one of them. `plan` makes it where the command
    cannot by itself, because it takes more than the VM and its host.

    Raises Rejected: `vm-gone`, `operation-in-flight`, `outcome-unknown`, `wrong-power-state`, `host-offline`, or the
    command's own.
    """
    if vm.deleted_at is not None or vm.spec is None:
        raise Rejected("vm-gone", f"{vm.name} was deleted")
    if vm.active is not None:
        running = vm.operations[vm.active]
        raise Rejected(
            "operation-in-flight",
            f"{vm.name} is busy with {running.verb} {running.id}",
            hint=f"vmorch op wait {running.id}",
            facts={"operation": running.id},
        )
    if vm.frozen is not None and not command.resolves:
        raise Rejected(
            "outcome-unknown",
            f"nobody can tell where {vm.name} is after its migration: {vm.frozen.why}",
            hint=f"it settles when both hosts answer; else: vmorch vm describe {vm.name}, vmorch vm resolve {vm.name}",
            facts={"operation": vm.frozen.operation},
        )
    if vm.frozen is None and command.resolves:
        raise Rejected("already-so", f"it is known where {vm.name} is")
    if vm.power not in command.needs:
        wanted = " or ".join(sorted(command.needs))
        raise Rejected("wrong-power-state", f"{vm.name} is {vm.power}; {command.verb} needs it {wanted}")
    made = command.plan(vm, host) if plan is None else plan()
    if made.steps and host.agent != "connected":
        raise Rejected(
            "host-offline",
            f"{host.name} is unreachable and {vm.name} stands on it",
            hint=f"vmorch host describe {host.name}",
        )
    return made


def open_operation(
    vm: VmId,
    operation: OperationId,
    plan: Plan,
    *,
    verb: str,
    arguments: Mapping[str, Any],
    actor: str,
    reason: str,
    position: int,
) -> tuple[Change, ...]:
    """Everything to append when a plan begins: its opening facts and, if it has steps, its start.

    `position` is the log position that the plan was computed at.
    """
    if not plan.steps:
        return plan.opening
    opened = OperationStarted(
        operation=operation,
        verb=verb,
        steps=plan.steps,
        success=plan.success,
        failure=plan.failure,
        arguments=arguments,
        actor=actor,
        reason=reason,
        position=position,
        done=plan.done,
    )
    return (*plan.opening, change(stream("vm", vm), opened))


def close_operation(vm: Vm, operation: Operation, end: Finish) -> tuple[Change, ...]:
    """Everything to append when an operation ends as `end` says: its end, then the facts that follow from it."""
    finished = OperationFinished(
        operation=operation.id, outcome=end.outcome, code=end.code, message=end.message
    )
    then: tuple[Change, ...] = ()
    if end.outcome == "succeeded":
        then = operation.success
    elif end.outcome in ("undone", "cancelled"):
        then = operation.failure
    return (change(stream("vm", vm.id), finished), *then)


def request_cancel(vm: Vm, operation: OperationId) -> list[VmEvent]:
    """Ask an operation to stop. Raises Rejected `already-over`, `already-so`, `point-of-no-return`."""
    running = vm.operations.get(operation)
    if running is None or running.outcome is not None:
        raise Rejected("already-over", f"operation {operation} is over")
    if any(step.commits for step in running.steps[: running.progress.done]):
        raise Rejected(
            "point-of-no-return",
            f"{running.verb} {operation} can no longer be taken back; it will be carried through",
            hint=f"vmorch op wait {operation}",
        )
    if running.progress.cancel:
        raise Rejected("already-so", f"operation {operation} is already being cancelled")
    return [CancelRequested(operation=operation)]
