"""Schedules: when a snapshot is taken without being asked for, which are deleted again, and when neither is done."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from msgspec.structs import replace

from tests.core.drains import start as start_drain
from tests.core.drive import Answering, drive, well
from tests.core.schedules import ask, automatic, look, scheduled, seconds_to_next, wait_until_due, wanted, work
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.host import HostReachable, HostUnreachable
from vmorch.core.aggregates.layering import MOST_LAYERS, depth, reductions
from vmorch.core.aggregates.vm import CancelRequested, VmObserved
from vmorch.core.codec import unpack_event, unpack_host_command
from vmorch.core.hostcommands import Answer, Done, DropLayers, Failed, MergeLayers, Observed, TakeSnapshot
from vmorch.core.ids import HostId, OperationId, VmId, stream
from vmorch.core.messages import HostCommand
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.schedule_snapshots import SetSnapshotPolicy
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.acts import Act
from vmorch.core.planning.admission import admit_on_vm
from vmorch.core.planning.snapshotting import (
    AT_ONCE,
    DeleteSurplus,
    Outlook,
    Snapshotting,
    TakeScheduled,
    due,
    name_at,
    outlook,
    retained,
    surplus,
)
from vmorch.core.snapshot import Origin, Schedule, Snapshot
from vmorch.core.spec import DiskSpec, VmSpec

HOUR = 3600.0
H1 = HostId("host-h1")
NOW = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)  # a Wednesday
DISK = DiskSpec(name="vda", size=1)  # type: ignore[arg-type]
SPEC = VmSpec(vcpus=1, max_vcpus=1, memory=512, max_memory=512, disks=(DISK,))  # type: ignore[arg-type]


@pytest.fixture
def history() -> History:
    history = History()
    history.host("h1", cpus=64, memory=65536)
    history.image()
    return history


def snapshot(name: str, at: datetime, *, origin: Origin = "schedule") -> Snapshot:
    number = int(at.timestamp()) // 60 - 29_000_000
    return Snapshot(
        name=name, number=number, layers={}, spec=SPEC, power="off", quality="off", origin=origin, taken_at=at
    )


def at(*moments: str) -> list[Snapshot]:
    """Snapshots that are named by when they were taken."""
    return [snapshot(moment, datetime.fromisoformat(f"2026-{moment}:00+00:00")) for moment in moments]


def begin(history: History, vm: VmId, operation: OperationId, command: StopVm | SnapshotVm | None = None) -> None:
    """Have something begun on a VM."""
    wish = command or StopVm()
    history.take(admit_on_vm(history.fleet, history.fleet.vms[vm], wish, operation=operation, who=WHO).changes)


def outlook_of(history: History, vm: VmId) -> Outlook:
    found = outlook(history.fleet, history.fleet.vms[vm], history.now)
    assert found is not None
    return found


def surplus_of(history: History, vm: VmId) -> tuple[str, ...]:
    found = history.fleet.vms[vm]
    assert found.schedule is not None
    return surplus(found.schedule, found.snapshots.values())


# which are kept


def test_the_first_one_is_due_at_once_and_the_next_so_long_after_it() -> None:
    schedule = Schedule(every=HOUR, last=3)
    assert due(schedule, [], NOW) == NOW
    assert due(schedule, [snapshot("a", NOW - timedelta(minutes=50))], NOW) == NOW + timedelta(minutes=10)


def test_snapshots_that_somebody_took_do_not_count_for_when_one_is_due() -> None:
    assert due(Schedule(every=HOUR, last=3), [snapshot("mine", NOW, origin="operator")], NOW) == NOW


def test_the_newest_are_kept() -> None:
    taken = at("03-04T10:00", "03-04T11:00", "03-04T12:00")
    assert retained(Schedule(every=HOUR, last=2), taken) == {"03-04T11:00", "03-04T12:00"}
    assert surplus(Schedule(every=HOUR, last=2), taken) == ("03-04T10:00",)


def test_of_each_hour_the_newest_is_kept() -> None:
    taken = at("03-04T10:05", "03-04T10:50", "03-04T11:10", "03-04T11:59", "03-04T12:00")
    assert retained(Schedule(every=60, hourly=2), taken) == {"03-04T11:59", "03-04T12:00"}
    assert retained(Schedule(every=60, hourly=3), taken) == {"03-04T10:50", "03-04T11:59", "03-04T12:00"}


def test_a_day_without_a_snapshot_is_not_counted() -> None:
    taken = at("01-01T00:00", "02-28T00:00", "02-28T23:59", "03-04T00:00")
    assert retained(Schedule(every=60, daily=3), taken) == {"01-01T00:00", "02-28T23:59", "03-04T00:00"}


def test_weeks_begin_on_monday_in_utc() -> None:
    taken = at("02-22T23:59", "02-23T00:00", "03-01T23:59", "03-02T00:00")  # Sunday, Monday, Sunday, Monday
    assert retained(Schedule(every=60, weekly=2), taken) == {"03-01T23:59", "03-02T00:00"}
    assert retained(Schedule(every=60, weekly=3), taken) == {"02-22T23:59", "03-01T23:59", "03-02T00:00"}


def test_hours_are_those_of_utc_wherever_a_moment_was_written_down() -> None:
    east = datetime.fromisoformat("2026-03-04T05:45:00+05:45")  # midnight
    taken = [snapshot("yesterday", east - timedelta(seconds=1)), snapshot("today", east)]
    assert retained(Schedule(every=60, daily=2), taken) == {"yesterday", "today"}


def test_one_snapshot_can_be_kept_for_several_reasons() -> None:
    taken = at("03-04T10:00", "03-04T11:00", "03-04T12:00")
    assert retained(Schedule(every=HOUR, last=1, hourly=2, daily=1, weekly=1), taken) == {"03-04T11:00", "03-04T12:00"}


def test_names_tell_when_a_snapshot_was_taken_and_are_given_once() -> None:
    assert name_at(NOW, ()) == "auto-20260304-123000"
    assert name_at(NOW.astimezone(tz=None), ()) == "auto-20260304-123000"
    taken = {"auto-20260304-123000", "auto-20260304-123000-2"}
    assert name_at(NOW, taken) == "auto-20260304-123000-3"


# taking


def test_a_schedule_takes_its_first_snapshot_at_once(history: History) -> None:
    vm = scheduled(history, "web")
    [operation] = work(history)
    [taken] = automatic(history.fleet.vms[vm])
    assert re.fullmatch(r"auto-\d{8}-\d{6}", taken.name)
    assert (taken.origin, taken.quality) == ("schedule", "crash-consistent")
    assert (operation.actor, operation.reason) == ("system", "by its schedule")
    assert operation.arguments.keys() == {"name", "due"}
    assert operation.arguments["name"] == name_at(datetime.fromisoformat(operation.arguments["due"]), ()) == taken.name


def test_a_snapshot_is_taken_each_time_that_one_is_due(history: History) -> None:
    vm = scheduled(history, "web", every=HOUR, last=5)
    for _ in range(4):
        work(history)
        wait_until_due(history)
    moments = [each.taken_at for each in automatic(history.fleet.vms[vm])]
    assert len(moments) == 4
    assert all(HOUR <= (b - a).total_seconds() < HOUR + 10 for a, b in pairwise(moments) if a and b)


def test_a_day_that_nobody_looked_costs_one_snapshot(history: History) -> None:
    vm = scheduled(history, "web", every=HOUR)
    work(history)
    history.wait(24 * HOUR)
    assert len(work(history)) == 1
    assert len(automatic(history.fleet.vms[vm])) == 2
    assert seconds_to_next(history) == pytest.approx(HOUR, abs=10)


def test_without_a_schedule_nothing_is_done(history: History) -> None:
    vm = scheduled(history, "web")
    ask(history, vm, SetSnapshotPolicy(off=True))
    history.create(asked("other"))
    assert look(history) == []
    assert seconds_to_next(history) is None


def order_of(history: History, vm: VmId) -> TakeSnapshot:
    look(history)
    operation = history.fleet.vms[vm].operations[history.fleet.vms[vm].active]  # type: ignore[index]
    order = unpack_host_command(operation.steps[0].command)
    assert isinstance(order, TakeSnapshot)
    return order


def test_a_running_guest_is_held_at_rest_if_its_schedule_says_so(history: History) -> None:
    assert order_of(history, scheduled(history, "web", quiesce=True)).freeze == 10


def test_a_guest_that_is_off_or_halted_is_not_asked_to_hold_still(history: History) -> None:
    off, halted = scheduled(history, "off", quiesce=True), scheduled(history, "halted", quiesce=True)
    ask(history, off, StopVm())
    ask(history, halted, PauseVm())
    work(history)
    assert [each.quality for each in automatic(history.fleet.vms[off])] == ["off"]
    assert [each.quality for each in automatic(history.fleet.vms[halted])] == ["crash-consistent"]


# when nothing is done


def test_a_busy_vm_is_left_alone_until_it_is_free(history: History) -> None:
    vm = history.create(asked("web"))
    drive(history, vm)
    ask(history, vm, SetSnapshotPolicy(every=HOUR, last=3))
    stop = OperationId("stop")
    begin(history, vm, stop)
    assert look(history) == []
    assert outlook_of(history, vm).waits == "it is busy with stop stop"
    drive(history, vm)
    assert look(history) == [TakeScheduled(vm)]


def test_a_vm_on_an_unreachable_host_is_left_alone_until_it_is_back(history: History) -> None:
    vm = scheduled(history, "web")
    session = history.fleet.hosts[H1].session
    history.record(stream("host", H1), HostUnreachable(session=session, silent=9))
    assert look(history) == []
    assert outlook_of(history, vm).waits == "h1 is unreachable"
    assert session is not None
    history.record(stream("host", H1), HostReachable(session=session))
    assert look(history) == [TakeScheduled(vm)]


@pytest.mark.parametrize("power", ["unknown", "absent"])
def test_a_vm_that_nobody_can_see_is_left_alone(history: History, power: str) -> None:
    vm = scheduled(history, "web")
    seen = Observed(power=power)  # type: ignore[arg-type]
    history.record(stream("vm", vm), VmObserved(host=H1, observed=seen))
    assert look(history) == []
    assert outlook_of(history, vm).waits == f"it is {power}"


def test_a_deleted_vm_is_forgotten(history: History) -> None:
    vm = scheduled(history, "web")
    work(history)
    ask(history, vm, DeleteVm())
    history.wait(24 * HOUR)
    assert look(history) == []
    assert seconds_to_next(history) is None


def test_an_act_that_was_overtaken_does_nothing(history: History) -> None:
    vm = scheduled(history, "web")
    [act] = wanted(history)
    begin(history, vm, OperationId("stop"))
    assert act.changes(history.fleet, history.now, OperationId("late")) == ()
    drive(history, vm)
    ask(history, vm, SetSnapshotPolicy(off=True))
    assert act.changes(history.fleet, history.now, OperationId("late")) == ()


# what goes wrong


def no_agent(index: int, undo: bool, command: HostCommand) -> Answer:
    if isinstance(command, TakeSnapshot):
        return Failed(code="freeze-failed", message="no agent")
    return well(index, undo, command)


@pytest.mark.parametrize(("every", "pause"), [(60, 60), (300, 300), (24 * HOUR, 900)])
def test_what_failed_is_tried_again_after_a_while(history: History, every: float, pause: float) -> None:
    vm = scheduled(history, "web", every=every)
    [failed] = work(history, no_agent)
    assert failed.outcome == "undone"
    assert "the last one failed" in outlook_of(history, vm).waits
    assert failed.ended_at is not None
    assert seconds_to_next(history) == (failed.ended_at - history.now).total_seconds() + pause
    history.wait(pause - 2)
    assert look(history) == []
    history.wait(2)
    assert look(history) == [TakeScheduled(vm)]


def test_a_scheduled_snapshot_that_was_cancelled_is_not_begun_again_at_once(history: History) -> None:
    vm = scheduled(history, "web")
    look(history)
    operation = history.fleet.vms[vm].active
    assert operation is not None
    history.record(stream("vm", vm), CancelRequested(operation=operation))
    assert drive(history, vm).outcome == "cancelled"
    assert look(history) == []
    assert seconds_to_next(history) == pytest.approx(900, abs=10)


def test_what_somebody_tried_in_vain_does_not_hold_the_schedule_up(history: History) -> None:
    vm = scheduled(history, "web")
    begin(history, vm, OperationId("mine"), SnapshotVm(quiesce=True))
    drive(history, vm, no_agent)
    assert look(history) == [TakeScheduled(vm)]


def test_a_chain_that_is_too_deep_is_waited_for_without_a_try(history: History) -> None:
    vm = scheduled(history, "web")
    for _ in range(MOST_LAYERS - 1):
        ask(history, vm, SnapshotVm())
    assert look(history) == []
    assert seconds_to_next(history) is None
    assert "32 layers" in outlook_of(history, vm).waits
    ask(history, vm, DeleteSnapshot(snapshot="snap-3"))
    assert look(history) == [TakeScheduled(vm)]


def test_a_chain_that_is_too_deep_is_cleared_of_what_is_too_much_first(history: History) -> None:
    vm = scheduled(history, "web", every=60, last=20)
    for _ in range(20):
        work(history)
        history.wait(60)
    ask(history, vm, SetSnapshotPolicy(every=60, last=2))
    for _ in range(MOST_LAYERS - 1 - 20):
        ask(history, vm, SnapshotVm())
    assert depth(history.fleet.vms[vm]) == MOST_LAYERS
    assert look(history) == [DeleteSurplus(vm)]
    drive(history, vm)
    assert depth(history.fleet.vms[vm]) == MOST_LAYERS - 18
    assert look(history) == [TakeScheduled(vm)]


# deleting


def test_what_is_not_kept_is_deleted_in_one_operation(history: History) -> None:
    vm = scheduled(history, "web", last=6)
    for _ in range(6):
        work(history)
        wait_until_due(history)
    ask(history, vm, SetSnapshotPolicy(every=24 * HOUR, last=2))
    before = [each.name for each in automatic(history.fleet.vms[vm])]
    assert outlook_of(history, vm).surplus == tuple(before[:4])
    [deletion] = work(history)
    assert (deletion.verb, deletion.actor, deletion.reason) == ("delete-snapshot", "system", "by its schedule")
    assert deletion.arguments == {"snapshots": before[:4]}
    assert [each.name for each in automatic(history.fleet.vms[vm])] == before[4:]
    assert list(reductions(history.fleet.vms[vm])) == []
    assert look(history) == []


def test_a_snapshot_that_is_due_is_taken_before_others_are_deleted(history: History) -> None:
    vm = scheduled(history, "web", last=1)
    work(history)
    wait_until_due(history)
    assert look(history) == [TakeScheduled(vm)]
    drive(history, vm)
    assert look(history) == [DeleteSurplus(vm)]


def test_snapshots_of_operators_and_of_rollbacks_are_left_alone(history: History) -> None:
    vm = scheduled(history, "web", every=60, last=1)
    ask(history, vm, SnapshotVm(name="mine"))
    ask(history, vm, RollbackVm(to="mine"))
    for _ in range(5):
        work(history)
        history.wait(60)
    left = history.fleet.vms[vm].snapshots.values()
    assert sorted(each.origin for each in left) == ["operator", "safety", "schedule"]


def test_nothing_is_deleted_because_time_passes(history: History) -> None:
    vm = scheduled(history, "web", every=60, hourly=2, daily=2)
    for _ in range(4):
        work(history)
        history.wait(60)
    ask(history, vm, SetSnapshotPolicy(every=31 * 24 * HOUR, hourly=2, daily=2))
    kept = automatic(history.fleet.vms[vm])
    history.wait(30 * 24 * HOUR)
    assert look(history) == []
    assert automatic(history.fleet.vms[vm]) == kept


def test_a_vm_without_a_schedule_any_more_keeps_its_snapshots(history: History) -> None:
    vm = scheduled(history, "web", every=60, last=2)
    for _ in range(2):
        work(history)
        history.wait(60)
    ask(history, vm, SetSnapshotPolicy(off=True))
    history.wait(24 * HOUR)
    assert look(history) == []
    assert len(automatic(history.fleet.vms[vm])) == 2


def refusing(kind: type[HostCommand]) -> Answering:
    def answer(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        return Failed(code="no-space", message="") if isinstance(command, kind) else well(index, undo, command)

    return answer


def test_a_deletion_that_failed_is_tried_again_after_a_while(history: History) -> None:
    vm = scheduled(history, "web", every=HOUR, last=1)
    work(history)
    wait_until_due(history)
    ended = work(history, refusing(DropLayers))
    assert [(each.verb, each.outcome) for each in ended] == [("snapshot", "succeeded"), ("delete-snapshot", "undone")]
    assert look(history) == []
    assert seconds_to_next(history) == pytest.approx(900, abs=10)
    wait_until_due(history)
    assert look(history) == [DeleteSurplus(vm)]


def test_a_merge_that_failed_is_made_up_for_though_no_snapshot_is_too_many(history: History) -> None:
    vm = scheduled(history, "web", every=24 * HOUR, last=1)
    work(history)
    wait_until_due(history)
    taken, deletion = work(history, refusing(MergeLayers))
    assert (taken.outcome, deletion.outcome) == ("succeeded", "stuck")
    assert surplus_of(history, vm) == ()
    assert list(reductions(history.fleet.vms[vm])) != []
    assert look(history) == []
    wait_until_due(history)
    assert look(history) == [DeleteSurplus(vm)]
    assert drive(history, vm).outcome == "succeeded"
    assert list(reductions(history.fleet.vms[vm])) == []


def test_nothing_is_merged_on_a_host_that_is_being_emptied(history: History) -> None:
    vm = scheduled(history, "web", every=HOUR, last=1)
    work(history)
    wait_until_due(history)
    start_drain(history, "h1", on_blocked="skip")
    [taken] = work(history)
    assert taken.verb == "snapshot"
    assert len(surplus_of(history, vm)) == 1
    assert look(history) == []


# many


def test_few_are_taken_at_once_on_one_host(history: History) -> None:
    for number in range(10):
        scheduled(history, f"vm-{number}")
    assert len(look(history)) == AT_ONCE
    assert look(history) == []
    drive(history, next(vm.id for vm in history.fleet.vms.values() if vm.active is not None))
    assert len(look(history)) == 1


def test_hosts_do_not_wait_for_each_other(history: History) -> None:
    history.host("h2", cpus=64, memory=65536)
    for number in range(12):
        scheduled(history, f"vm-{number}", on="h1" if number % 2 else "h2")
    assert len(look(history)) == 2 * AT_ONCE


def test_those_that_are_overdue_longest_come_first(history: History) -> None:
    made = [scheduled(history, f"vm-{number}", every=HOUR) for number in range(6)]
    work(history)
    for vm in (made[4], made[2]):
        ask(history, vm, SetSnapshotPolicy(every=60, last=3))
    ask(history, made[0], SetSnapshotPolicy(every=2 * HOUR, last=3))
    history.wait(24 * HOUR)
    order = [act.vm for act in wanted(history)]
    assert order[:2] == [made[2], made[4]]
    assert made[0] not in order


def test_those_that_always_fail_do_not_keep_others_from_their_turn(history: History) -> None:
    failing = [scheduled(history, f"bad-{number}", every=60) for number in range(12)]
    good = scheduled(history, "good", every=60)

    def answer_of(vm: VmId) -> Answering:
        return no_agent if vm in failing else well

    for _ in range(10):
        look(history)
        for vm in [each.id for each in history.fleet.vms.values() if each.active is not None]:
            drive(history, vm, answer_of(vm))
        history.wait(20)
    assert len(automatic(history.fleet.vms[good])) >= 2


def test_acts_of_one_look_do_not_exceed_the_limit_when_another_looked_too(history: History) -> None:
    for number in range(10):
        scheduled(history, f"vm-{number}")
    acts = [*wanted(history), *(TakeScheduled(VmId(f"vm-vm-{number}")) for number in range(10))]
    begun = 0
    for number, act in enumerate(acts):
        changes = act.changes(history.fleet, history.now, OperationId(f"op-{number}"))
        for each in changes:
            history.record(each.stream, unpack_event(each.event))
        begun += bool(changes)
    assert begun == AT_ONCE


def test_what_the_policy_remembers_changes_no_answer(history: History) -> None:
    vm = scheduled(history, "web", every=60, last=2)
    remembering = Snapshotting()
    for _ in range(8):
        found = remembering(history.fleet, history.now)
        assert found == Snapshotting()(history.fleet, history.now)
        look(history)
        if history.fleet.vms[vm].active is not None:
            drive(history, vm)
        history.wait(20)


def test_the_policy_can_be_asked_about_another_fleet_in_between(history: History) -> None:
    scheduled(history, "web")
    past = history.fleet.copy()
    work(history)
    asked_both = Snapshotting()
    assert [isinstance(each, Act) for each in asked_both(past, history.now)] == [True]
    assert [isinstance(each, Act) for each in asked_both(history.fleet, history.now)] == [False]
    assert [isinstance(each, Act) for each in asked_both(past, history.now)] == [True]


def test_a_vm_without_a_schedule_has_no_outlook(history: History) -> None:
    vm = scheduled(history, "web")
    assert outlook(history.fleet, replace(history.fleet.vms[vm], schedule=None), history.now) is None


def test_a_server_whose_clock_is_ahead_of_the_logs_takes_one_and_not_one_after_the_other(history: History) -> None:
    vm = scheduled(history, "web", every=HOUR)
    ahead = history.now + timedelta(hours=5)
    (act,) = [each for each in Snapshotting()(history.fleet, ahead) if isinstance(each, TakeScheduled)]
    history.take(act.changes(history.fleet, ahead, OperationId("op-ahead")))
    drive(history, vm)
    assert [each for each in Snapshotting()(history.fleet, ahead) if isinstance(each, Act)] == []
    later = ahead + timedelta(hours=1)
    assert len([each for each in Snapshotting()(history.fleet, later) if isinstance(each, TakeScheduled)]) == 1
