"""Public vocabulary for tests of schedules: VMs with a schedule, and the policy acting on them."""

from tests.core.drive import Answering, drive, well
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.vm import Operation, Vm, VmCommand
from vmorch.core.codec import unpack_event
from vmorch.core.ids import HostId, OperationId, VmId
from vmorch.core.operations.schedule_snapshots import SetSnapshotPolicy
from vmorch.core.planning.acts import Act, Later
from vmorch.core.planning.admission import admit_on_vm
from vmorch.core.planning.snapshotting import ScheduledAct, policy
from vmorch.core.snapshot import Snapshot


def ask(history: History, vm: VmId, command: VmCommand) -> None:
    """Have a command done on a VM, through to its end."""
    operation = OperationId(f"op-{history.fleet.position}")
    admission = admit_on_vm(history.fleet, history.fleet.vms[vm], command, operation=operation, who=WHO)
    history.take(admission.changes)
    if admission.starts_operation:
        drive(history, vm)


def scheduled(history: History, name: str, on: str = "h1", *, every: float = 3600, **fields: object) -> VmId:
    """A running VM with a schedule."""
    vm = history.create(asked(name), on=HostId(f"host-{on}"))
    drive(history, vm)
    kept = fields if {"last", "hourly", "daily", "weekly"} & fields.keys() else {"last": 3, **fields}
    ask(history, vm, SetSnapshotPolicy(every=every, **kept))  # type: ignore[arg-type]
    return vm


def wanted(history: History) -> list[ScheduledAct]:
    """What the policy wants to be done now."""
    return [each for each in policy(history.fleet, history.now) if isinstance(each, ScheduledAct)]


def seconds_to_next(history: History) -> float | None:
    """When the policy wants to be asked again, from now on."""
    laters = [each.at for each in policy(history.fleet, history.now) if isinstance(each, Later)]
    return (laters[0] - history.now).total_seconds() if laters else None


def look(history: History) -> list[Act]:
    """Let the policy act once; what it began."""
    begun: list[Act] = []
    for act in wanted(history):
        changes = act.changes(history.fleet, history.now, OperationId(f"op-{history.fleet.position}"))
        for each in changes:
            history.record(each.stream, unpack_event(each.event))
        if changes:
            begun.append(act)
    return begun


def work(history: History, answer: Answering = well, limit: int = 100) -> list[Operation]:
    """Let the policy act until it wants nothing more; the operations that it began, over."""
    ended = []
    for _ in range(limit):
        begun = look(history)
        if not begun:
            return ended
        busy = [vm.id for vm in history.fleet.vms.values() if vm.active is not None]
        ended += [drive(history, vm, answer) for vm in busy]
    raise AssertionError("the policy finds no end")


def automatic(vm: Vm) -> list[Snapshot]:
    """What the schedule has now, oldest first."""
    return [each for each in vm.snapshots.values() if each.origin == "schedule"]


def wait_until_due(history: History) -> None:
    """Let time pass until the policy wants to be asked again."""
    seconds = seconds_to_next(history)
    assert seconds is not None
    assert seconds > 0
    history.wait(seconds)
