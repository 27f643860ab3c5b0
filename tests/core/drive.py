"""Drive an operation to its end with answers that a test chooses."""

from collections.abc import Callable

from tests.core.world import History
from vmorch.core.aggregates.vm import Operation, StepDone, StepFailed, VmEvent, close_operation
from vmorch.core.codec import unpack_host_command
from vmorch.core.hostcommands import (
    DefineDomain,
    Done,
    Failed,
    Observed,
    ResumeDomain,
    StartDomain,
    StopDomain,
    SuspendDomain,
    UndefineDomain,
)
from vmorch.core.ids import VmId, stream
from vmorch.core.messages import HostCommand
from vmorch.core.operation import Finish, Send, Withdraw, next_action

Answering = Callable[[int, bool, HostCommand], Done | Failed]


def well(_index: int, _undo: bool, command: HostCommand) -> Done:
    """Every step works and shows what it should."""
    match command:
        case DefineDomain():
            return Done(observed=Observed(power="off"))
        case StartDomain() | ResumeDomain():
            return Done(observed=Observed(power="running", vcpus=1, memory=512))  # type: ignore[arg-type]
        case SuspendDomain():
            return Done(observed=Observed(power="paused", vcpus=1, memory=512))  # type: ignore[arg-type]
        case StopDomain():
            return Done(observed=Observed(power="off"))
        case UndefineDomain():
            return Done(observed=Observed(power="absent"))
        case _:
            return Done()


def drive(history: History, vm: VmId, answer: Answering = well, limit: int = 200) -> Operation:
    """The VM's active operation once it is over; every answer goes through the log."""
    id = history.fleet.vms[vm].active
    assert id is not None
    for _ in range(limit):
        now = history.fleet.vms[vm]
        operation = now.operations[id]
        match next_action(operation.steps, operation.progress):
            case Finish() as end:
                history.take(close_operation(now, operation, end))
                return history.fleet.vms[vm].operations[id]
            case Send(index=index, undo=undo):
                packed = operation.steps[index].undo if undo else operation.steps[index].command
                assert packed is not None
                command = unpack_host_command(packed)
                said = answer(index, undo, command)
                if isinstance(command, DefineDomain) and isinstance(said, Done) and now.power == "running":
                    said = Done()  # redefining does not touch a running domain
            case Withdraw(index=index):
                undo, said = False, Failed(code="cancelled", message="withdrawn")
        history.record(stream("vm", vm), _event(operation, index, undo, said))
    raise AssertionError(f"no end after {limit} steps")


def _event(operation: Operation, index: int, undo: bool, said: Done | Failed) -> VmEvent:
    attempt = operation.progress.attempt
    if isinstance(said, Done):
        return StepDone(operation=operation.id, index=index, undo=undo, attempt=attempt, observed=said.observed)
    return StepFailed(
        operation=operation.id, index=index, undo=undo, attempt=attempt, code=said.code, message=said.message
    )
