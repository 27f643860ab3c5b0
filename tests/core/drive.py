"""Drive an operation to its end with answers that a test chooses."""

from collections.abc import Callable

from tests.core.world import History
from vmorch.core.aggregates.backup import consequences, heard
from vmorch.core.aggregates.passage import EndSeen, LooksEnded, StepJudged
from vmorch.core.aggregates.vm import Operation, StepDone, StepFailed, VmEvent, close_operation
from vmorch.core.codec import unpack_host_command
from vmorch.core.hostcommands import (
    DefineDomain,
    Done,
    Failed,
    Observed,
    RestoreGuest,
    ResumeDomain,
    SaveGuest,
    StartDomain,
    StopDomain,
    SuspendDomain,
    UndefineDomain,
)
from vmorch.core.ids import HostId, VmId, stream
from vmorch.core.messages import HostCommand
from vmorch.core.operation import Finish, Look, Send, Settle, Withdraw, next_action

Answering = Callable[[int, bool, HostCommand], Done | Failed]
Seeing = Callable[[HostId, int], Observed | None]
"""What a host shows in the n-th round of looks; None if it cannot be asked."""


def well(_index: int, _undo: bool, command: HostCommand) -> Done:
    """Every step works and shows what it should."""
    match command:
        case DefineDomain():
            return Done(observed=Observed(power="off"))
        case StartDomain(halted=True) | RestoreGuest(halted=True):
            return Done(observed=Observed(power="paused", vcpus=1, memory=512))  # type: ignore[arg-type]
        case StartDomain() | ResumeDomain() | RestoreGuest():
            return Done(observed=Observed(power="running", vcpus=1, memory=512))  # type: ignore[arg-type]
        case SuspendDomain():
            return Done(observed=Observed(power="paused", vcpus=1, memory=512))  # type: ignore[arg-type]
        case StopDomain() | SaveGuest():
            return Done(observed=Observed(power="off"))
        case UndefineDomain():
            return Done(observed=Observed(power="absent"))
        case _:
            return Done()


def moved(history: History, vm: VmId) -> Seeing:
    """The guest is where its operation takes it, and nowhere else."""
    active = history.fleet.vms[vm].active
    assert active is not None
    ends = next((step.judged for step in history.fleet.vms[vm].operations[active].steps if step.judged), None)
    power = history.fleet.vms[vm].power

    def see(host: HostId, _round: int) -> Observed:
        there = ends is not None and host == ends[1]
        return Observed(power=power if there else "absent")

    return see


def drive(
    history: History, vm: VmId, answer: Answering = well, see: Seeing | None = None, limit: int = 200
) -> Operation:
    """The VM's active operation once it is over; every answer goes through the log."""
    id = history.fleet.vms[vm].active
    assert id is not None
    see = see or moved(history, vm)
    for _ in range(limit):
        advance(history, vm, answer, see)
        operation = history.fleet.vms[vm].operations[id]
        if operation.outcome is not None:
            return operation
    raise AssertionError(f"no end after {limit} steps")


def advance(history: History, vm: VmId, answer: Answering = well, see: Seeing | None = None) -> None:
    """Take the VM's active operation one action further."""
    now = history.fleet.vms[vm]
    id, at, see = now.active, stream("vm", vm), see or moved(history, vm)
    assert id is not None
    operation = now.operations[id]
    match next_action(operation.steps, operation.progress):
        case Finish() as end:
            history.take(close_operation(now, operation, end))
            return
        case Send(index=index, undo=undo):
            packed = operation.steps[index].undo if undo else operation.steps[index].command
            assert packed is not None
            command = unpack_host_command(packed)
            said = answer(index, undo, command)
            if isinstance(command, DefineDomain) and isinstance(said, Done) and now.power in ("running", "paused"):
                said = Done()  # redefining does not touch a domain that is on
        case Withdraw(index=index):
            undo, said = False, Failed(code="cancelled", message="withdrawn")
        case Look(index=index, round=round, hosts=hosts):
            for host in hosts:
                seen = see(host, round) if round < 20 else None
                if seen is not None:
                    seen_event = EndSeen(operation=id, index=index, round=round, host=host, observed=seen)
                    history.record(at, seen_event)
                else:
                    history.record(at, LooksEnded(operation=id, index=index, why="not seen"))
            return
        case Settle(index=index, verdict=verdict, why=why):
            ends = operation.steps[index].judged
            assert ends is not None
            sights = operation.progress.sights
            source, destination = (sights[end].observed if end in sights else None for end in ends)
            history.record(
                at,
                StepJudged(
                    operation=id, index=index, verdict=verdict, why=why,
                    source_seen=source, destination_seen=destination,
                ),
            )  # fmt: skip
            history.take(operation.steps[index].then if verdict == "moved" else ())
            return
    step = operation.steps[index]
    said = said if undo else heard(step, said)
    history.record(at, _event(operation, index, undo, said))
    if not undo:
        history.take(consequences(vm, operation, index, said))
    if isinstance(said, Done) and not undo and step.judged is None:
        history.take(step.then)


def _event(operation: Operation, index: int, undo: bool, said: Done | Failed) -> VmEvent:
    attempt = operation.progress.attempt
    if isinstance(said, Done):
        return StepDone(
            operation=operation.id, index=index, undo=undo, attempt=attempt, observed=said.observed, frozen=said.frozen
        )
    return StepFailed(
        operation=operation.id, index=index, undo=undo, attempt=attempt, code=said.code, message=said.message,
        blockers=said.blockers,
    )
