"""Random but legal histories: what operators might ask and hosts might answer, decided by a seed."""

import random

from tests.core.drains import cancel, look, plan, start
from tests.core.drive import advance, well
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.host import HostCordoned, HostReachable, HostUncordoned, HostUnreachable
from vmorch.core.aggregates.vm import (
    CancelRequested,
    StepDone,
    StepFailed,
    Vm,
    VmCommand,
    VmObserved,
    close_operation,
)
from vmorch.core.codec import unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Failed, Observed
from vmorch.core.ids import DrainId, HostId, MiB, OperationId, stream
from vmorch.core.operation import Finish, Look, Send, Settle, Withdraw, next_action
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.label import LabelVm
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.reboot import RebootVm
from vmorch.core.operations.rename import RenameVm
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.resume import ResumeVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.planning.admission import admit_on_vm


def random_history(seed: int, events: int) -> History:
    """At least `events` events of a small cluster; the same seed gives the same history."""
    chance = random.Random(seed)
    history = History()
    for index in range(3):
        history.host(f"h{index}")
    history.image("tiny")
    while history.fleet.position < events:
        deed = chance.choice((_ask, _ask, _answer, _answer, _answer, _answer, _answer, _host, _observe, _drain))
        deed(history, chance)
        look(history)
    return history


def _living(history: History) -> list[Vm]:
    return [vm for vm in history.fleet.vms.values() if vm.deleted_at is None]


def _ask(history: History, chance: random.Random) -> None:
    living = _living(history)
    number = chance.randrange(10**6)
    commands: list[VmCommand] = [
        StopVm(),
        StartVm(),
        RebootVm(),
        PauseVm(),
        ResumeVm(),
        DeleteVm(),
        RenameVm(name=f"vm-{number}"),
        LabelVm(set={"n": str(number)}),
        ResizeVm(memory=MiB(chance.randrange(64, 2048))),
    ]
    try:
        if len(living) < 8:
            history.create(asked(f"vm-{number}", max_memory=MiB(1024)))
            return
        vm = chance.choice(living)
        operation = OperationId(f"op-{history.fleet.position}")
        admission = admit_on_vm(history.fleet, vm, chance.choice(commands), operation=operation, who=WHO)
        history.take(admission.changes)
    except Rejected:
        return


def _answer(history: History, chance: random.Random) -> None:
    busy = [vm for vm in _living(history) if vm.active is not None]
    if not busy:
        return
    vm = chance.choice(busy)
    operation = vm.operations[vm.active]  # type: ignore[index]
    if chance.random() < 0.02 and not operation.progress.cancel:
        history.record(stream("vm", vm.id), CancelRequested(operation=operation.id))
        return
    match next_action(operation.steps, operation.progress):
        case Finish() as end:
            history.take(close_operation(vm, operation, end))
            return
        case Look() | Settle():
            advance(history, vm.id)
            return
        case Send(index=index, undo=undo):
            packed = operation.steps[index].undo if undo else operation.steps[index].command
            assert packed is not None
            said: Done | Failed = well(index, undo, unpack_host_command(packed))
        case Withdraw(index=index):
            undo, said = False, Failed(code="cancelled", message="withdrawn")
    if not undo and chance.random() < 0.05:
        said = Failed(code=chance.choice(["interrupted", "libvirt-refused"]), message="bad luck")
    attempt = operation.progress.attempt
    event: StepDone | StepFailed
    if isinstance(said, Done):
        event = StepDone(operation=operation.id, index=index, undo=undo, attempt=attempt, observed=said.observed)
    else:
        event = StepFailed(
            operation=operation.id, index=index, undo=undo, attempt=attempt, code=said.code, message=said.message
        )
    history.record(stream("vm", vm.id), event)
    if isinstance(said, Done) and not undo and operation.steps[index].judged is None:
        history.take(operation.steps[index].then)


def _drain(history: History, chance: random.Random) -> None:
    id = DrainId(f"drain-{history.fleet.position}")
    running = [drain for drain in history.fleet.drains.values() if drain.running]
    try:
        if running and chance.random() < 0.3:
            cancel(history, running[0].id)
        elif chance.random() < 0.3:
            host = f"h{chance.randrange(3)}"
            start(history, host, drain=id, on_blocked=chance.choice(["skip", "stop"]))  # type: ignore[arg-type]
        elif chance.random() < 0.1:
            plan(history, f"h{chance.randrange(3)}", drain=id)
    except Rejected:
        return


def _host(history: History, chance: random.Random) -> None:
    host = history.fleet.hosts[HostId(f"host-h{chance.randrange(3)}")]
    at = stream("host", host.id)
    if chance.random() < 0.5:
        history.record(at, HostUncordoned() if host.cordoned is not None else HostCordoned(reason="test"))
    elif host.agent == "connected":
        history.record(at, HostUnreachable(session=host.session, silent=9))
    elif host.session is not None:
        history.record(at, HostReachable(session=host.session))


def _observe(history: History, chance: random.Random) -> None:
    living = _living(history)
    if living:
        vm = chance.choice(living)
        assert vm.host is not None
        seen = Observed(power=chance.choice(("off", "running", "paused", "crashed")), reason="by chance", vcpus=1)
        history.record(stream("vm", vm.id), VmObserved(host=vm.host, observed=seen))
