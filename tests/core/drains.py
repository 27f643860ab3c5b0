"""Public vocabulary for tests of drains: hosts with VMs on them, and a drain carried out move by move."""

from collections.abc import Callable

from tests.core.drive import Answering, Seeing, advance, drive, moved, well
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.budget import CreateBudget
from vmorch.core.aggregates.drain import ApplyPlan, Drain, DrainPlan, Entry, Move, OnBlocked, PlanDrain
from vmorch.core.codec import unpack_event
from vmorch.core.hostcommands import AwaitReady, Done, Failed, MigrateDomain, Observed
from vmorch.core.ids import DrainId, HostId, OperationId, VmId
from vmorch.core.messages import HostCommand
from vmorch.core.planning.acts import Act, Later
from vmorch.core.planning.draining import policy
from vmorch.core.planning.staleness import touching
from vmorch.core.planning.undertakings import admit_apply, admit_budget, admit_cancel, admit_plan

DRAIN = DrainId("drain-1")


def vm_on(history: History, name: str, host: str, **fields: object) -> VmId:
    """A VM that runs on this host, put there although others may be emptier."""
    vm = history.create(asked(name, **{"storage": "shared", **fields}), on=HostId(f"host-{host}"))
    drive(history, vm)
    return vm


def budget(history: History, name: str, max_unavailable: int, **labels: str) -> None:
    command = CreateBudget(name=name, selector=labels, max_unavailable=max_unavailable)
    history.take(admit_budget(history.fleet, command, f"budget-{name}"))


def plan(history: History, *hosts: str, drain: DrainId = DRAIN, **fields: object) -> DrainPlan:
    """A stored plan."""
    command = PlanDrain(hosts=hosts, **fields)  # type: ignore[arg-type]
    history.take(admit_plan(history.fleet, command, drain, WHO, history.now))
    found = history.fleet.drains[drain].plan
    assert found is not None
    return found


def start(
    history: History, *hosts: str, drain: DrainId = DRAIN, on_blocked: OnBlocked = "refuse", **fields: object
) -> Drain:
    """A drain that was planned and started at once."""
    command = PlanDrain(hosts=hosts, start=True, on_blocked=on_blocked, **fields)  # type: ignore[arg-type]
    history.take(admit_plan(history.fleet, command, drain, WHO, history.now))
    return history.fleet.drains[drain]


def apply(history: History, drain: DrainId = DRAIN, **fields: object) -> Drain:
    now = history.fleet.drains[drain]
    assert now.plan is not None
    touches = touching(history.fleet, now.plan, history.facts)
    command = ApplyPlan(**fields)  # type: ignore[arg-type]
    history.take(admit_apply(history.fleet, now, command, touches, WHO, history.now))
    return history.fleet.drains[drain]


def cancel(history: History, drain: DrainId = DRAIN) -> None:
    history.take(admit_cancel(history.fleet, history.fleet.drains[drain], history.now))


def look(history: History) -> list[Act]:
    """Let the policy act once; what it did."""
    done = []
    for answer in policy(history.fleet, history.now):
        if isinstance(answer, Later):
            continue
        operation = OperationId(f"op-{history.fleet.position}")
        changes = answer.changes(history.fleet, history.now, operation)
        for each in changes:
            history.record(each.stream, unpack_event(each.event))
        if changes:
            done.append(answer)
    return done


def in_flight(history: History) -> list[VmId]:
    """VMs with an operation under way, by name."""
    return sorted((vm.id for vm in history.fleet.vms.values() if vm.active is not None), key=str)


def step(history: History, vm: VmId, answer: Answering = well, see: Seeing | None = None) -> None:
    advance(history, vm, answer, see or moved(history, vm))


def run(
    history: History,
    drain: DrainId = DRAIN,
    answers: dict[VmId, Answering] | None = None,
    sees: dict[VmId, Seeing] | None = None,
    each: Callable[[], None] = lambda: None,
    limit: int = 2000,
) -> dict[str, Entry]:
    """The ledger by VMs' names once the drain is over; operations advance in turn."""
    answers, sees = answers or {}, sees or {}
    for _ in range(limit):
        look(history)
        each()
        if not history.fleet.drains[drain].running:
            return ledger(history, drain)
        busy = in_flight(history)
        if not busy:
            history.wait(5)
        for vm in busy:
            step(history, vm, answers.get(vm, well), sees.get(vm))
            each()
    raise AssertionError(f"the drain did not end: {history.fleet.drains[drain]}")


def ledger(history: History, drain: DrainId = DRAIN) -> dict[str, Entry]:
    return {entry.name: entry for entry in history.fleet.drains[drain].entries.values()}


def results(found: dict[str, Entry]) -> dict[str, str]:
    return {name: entry.result for name, entry in found.items()}


def moves(found: DrainPlan) -> dict[str, Move]:
    return {move.name: move for move in found.moves}


def refusing(code: str, words: str, kind: type[HostCommand] = MigrateDomain) -> Answering:
    """A host that fails at one kind of step."""

    def answer(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if isinstance(command, kind) and not undo:
            return Failed(code=code, message=words)
        return well(index, undo, command)

    return answer


def never_ready(index: int, undo: bool, command: HostCommand) -> Done | Failed:
    """A guest that runs on but does not pass its check."""
    if isinstance(command, AwaitReady):
        return Failed(code="not-ready", message="the guest was not up", observed=Observed(power="running"))
    return well(index, undo, command)


def stayed(history: History, vm: VmId) -> Seeing:
    """A guest that did not leave."""
    source = history.fleet.vms[vm].host

    def see(host: HostId, _round: int) -> Observed:
        return Observed(power="running" if host == source else "absent")

    return see

