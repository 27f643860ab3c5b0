"""Snapshots, ways back and deletions: which steps they take, what the log has after each, and when they are refused."""

import pytest
from msgspec.structs import replace

from tests.core.disks import failing
from tests.core.drive import advance, drive
from tests.core.snapshots import Guest, facts, kinds, labels, orders, undos
from vmorch.core.aggregates.layering import (
    MOST_LAYERS,
    SnapshotTaken,
    VmRolledBack,
    current_parent,
    depth,
    descendants,
    parent_of,
    tree_of,
)
from vmorch.core.aggregates.vm import CancelRequested, StepTimedOut, VmObserved
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import (
    AwaitReady,
    DefineDomain,
    Done,
    DropLayers,
    Failed,
    MakeLayers,
    Memory,
    MergeLayers,
    Observed,
    RestoreGuest,
    SaveGuest,
    StartDomain,
    TakeSnapshot,
)
from vmorch.core.ids import MiB, SessionId, stream
from vmorch.core.layers import Layer
from vmorch.core.messages import HostCommand
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.evict import SetEviction
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.rollback import RollbackVm, prospect
from vmorch.core.operations.schedule_snapshots import SetSnapshotPolicy
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import MOST_SNAPSHOTS, SnapshotVm
from vmorch.core.snapshot import Schedule
from vmorch.engine.reports import changes_of, order_id
from vmorch.wire.envelopes import Answered, Report


@pytest.fixture
def guest() -> Guest:
    return Guest(max_memory=MiB(4096))


# taking


def test_a_snapshot_is_one_order_and_one_fact(guest: Guest) -> None:
    taken = guest.take("first")
    assert labels(taken) == ["snapshot"]
    assert kinds(taken) == [["vm.snapshot-taken"]]
    assert taken.steps[0].commits
    order = orders(taken)[0]
    assert isinstance(order, TakeSnapshot)
    assert [(stack.disk.name, stack.layers) for stack in order.stacks] == [
        ("vda", (Layer(number=0),)), ("vdb", (Layer(number=0),)),
    ]  # fmt: skip
    assert [disk.layer for disk in order.spec.disks] == [1, 1]
    assert (order.next, order.memory, order.freeze) == (1, None, None)


def test_after_a_snapshot_the_guest_writes_to_new_layers(guest: Guest) -> None:
    guest.write(1)
    guest.take("first")
    guest.write(2)
    first = guest.vm.snapshots["first"]
    assert dict(first.layers) == {"vda": 0, "vdb": 0}
    assert (first.quality, first.power, first.origin) == ("crash-consistent", "running", "operator")
    assert first.taken_at is not None
    assert (guest.layer, guest.tree, depth(guest.vm)) == (1, {0: None, 1: 0}, 2)
    assert guest.disks.shown("vda", 0) == {0: 1}
    assert guest.read() == 2


def test_a_snapshot_without_a_name_is_named_by_its_number(guest: Guest) -> None:
    guest.ask(SnapshotVm())
    guest.ask(SnapshotVm())
    assert list(guest.vm.snapshots) == ["snap-1", "snap-2"]


def test_a_quiesced_snapshot_tells_how_long_the_guest_was_held(guest: Guest) -> None:
    guest.ask(SnapshotVm(name="quiet", quiesce=True, freeze_within=7), lambda *_: Done(frozen=0.25))
    quiet = guest.vm.snapshots["quiet"]
    assert (quiet.quality, quiet.frozen) == ("frozen", 0.25)
    operation = list(guest.vm.operations.values())[-1]
    order = orders(operation)[0]
    assert isinstance(order, TakeSnapshot)
    assert order.freeze == 7


def test_a_guest_that_cannot_be_frozen_leaves_nothing_behind(guest: Guest) -> None:
    before = guest.vm
    end = guest.ask(SnapshotVm(quiesce=True), lambda *_: Failed(code="freeze-failed", message="no agent"))
    assert (end.outcome, end.code) == ("undone", "freeze-failed")
    assert (guest.vm.spec, guest.vm.layers, guest.vm.snapshots) == (before.spec, before.layers, before.snapshots)


def test_memory_is_kept_beside_the_root_disk(guest: Guest) -> None:
    guest.take("warm", memory=True)
    warm = guest.vm.snapshots["warm"]
    assert (warm.quality, warm.memory) == ("memory", Memory(number=1, storage="local"))


def test_a_snapshot_of_a_vm_that_is_off_is_called_so(guest: Guest) -> None:
    guest.ask(StopVm())
    guest.take("cold")
    assert (guest.vm.snapshots["cold"].quality, guest.vm.snapshots["cold"].power) == ("off", "off")


def test_what_a_guest_cannot_do_is_refused(guest: Guest) -> None:
    assert guest.refused(SnapshotVm(memory=True, quiesce=True)) == "bad-spec"
    guest.ask(PauseVm())
    assert guest.refused(SnapshotVm(quiesce=True)) == "wrong-power-state"
    guest.ask(StopVm())
    assert guest.refused(SnapshotVm(quiesce=True)) == "wrong-power-state"
    assert guest.refused(SnapshotVm(memory=True)) == "wrong-power-state"


def test_a_vm_that_nobody_can_see_is_not_snapshotted(guest: Guest) -> None:
    guest.history.record(stream("vm", guest.id), VmObserved(host=guest.host, observed=Observed(power="unknown")))
    assert guest.refused(SnapshotVm()) == "wrong-power-state"


def test_a_name_is_given_once(guest: Guest) -> None:
    guest.take("first")
    assert guest.refused(SnapshotVm(name="first")) == "name-taken"
    guest.delete("first")
    assert guest.take("first").outcome == "succeeded"


def test_layers_do_not_pile_up_without_end(guest: Guest) -> None:
    for _ in range(MOST_LAYERS - 1):
        guest.ask(SnapshotVm())
    assert depth(guest.vm) == MOST_LAYERS
    assert guest.refused(SnapshotVm()) == "chain-too-deep"
    guest.delete("snap-7")
    assert guest.ask(SnapshotVm()).outcome == "succeeded"


def test_snapshots_do_not_pile_up_without_end_either(guest: Guest) -> None:
    guest.take("first")
    first = guest.vm.snapshots["first"]
    many = {f"s{number}": replace(first, name=f"s{number}") for number in range(MOST_SNAPSHOTS)}
    with pytest.raises(Rejected) as caught:
        SnapshotVm().plan(replace(guest.vm, snapshots=many), guest.history.fleet.hosts[guest.host])
    assert caught.value.code == "too-many-snapshots"


# deleting


def test_the_way_back_is_closed_before_anything_is_merged(guest: Guest) -> None:
    guest.take("first")
    deleted = guest.delete("first")
    assert labels(deleted) == ["drop", "merge", "merge"]
    assert kinds(deleted) == [["vm.snapshots-deleted"], ["vm.layers-merged"], ["vm.layers-merged"]]
    assert all(step.commits for step in deleted.steps)


def test_deleting_the_only_snapshot_leaves_one_layer_and_the_guest_as_it_was(guest: Guest) -> None:
    guest.write(1)
    guest.take("first")
    guest.write(2)
    guest.delete("first")
    assert (guest.vm.snapshots, guest.tree, guest.layer, depth(guest.vm)) == ({}, {0: None}, 0, 1)
    assert guest.read() == 2


def test_each_merge_is_told_how_the_one_before_it_left_the_disks(guest: Guest) -> None:
    guest.take("first")
    _, one, two = orders(guest.delete("first"))
    assert isinstance(one, MergeLayers)
    assert isinstance(two, MergeLayers)
    assert [len(stack.layers) for stack in one.stacks] == [2, 2]
    assert [len(stack.layers) for stack in two.stacks] == [1, 2]
    assert [disk.layer for disk in one.spec.disks] == [0, 1]
    assert [disk.layer for disk in two.spec.disks] == [0, 0]


def test_deleting_one_in_the_middle_keeps_those_around_it(guest: Guest) -> None:
    for number, name in enumerate(("one", "two", "three")):
        guest.write(number)
        guest.take(name)
    guest.delete("two")
    assert guest.tree == {0: None, 1: 0, 3: 1}
    assert {name: each.layers["vda"] for name, each in guest.vm.snapshots.items()} == {"one": 0, "three": 1}
    assert [guest.disks.shown("vda", layer)[0] for layer in (0, 1)] == [0, 2]
    assert parent_of(guest.vm, guest.vm.snapshots["three"].layers["vda"]) == "one"


def test_kept_memory_goes_with_its_snapshot(guest: Guest) -> None:
    guest.take("warm", memory=True)
    deleted = guest.delete("warm")
    order = orders(deleted)[0]
    assert isinstance(order, DropLayers)
    assert order.memory == (Memory(number=1, storage="local"),)
    assert guest.disks.memories == {}


def test_with_its_children_a_whole_branch_goes(guest: Guest) -> None:
    guest.take("base")
    guest.take("left")
    guest.take("leftmost")
    guest.back("base", safety_snapshot=False)
    guest.take("right")
    assert descendants(guest.vm, "base") == ["left", "leftmost", "right"]
    deleted = guest.delete("left", with_children=True)
    assert facts(deleted.steps[0].then)[0].names == ("left", "leftmost")  # type: ignore[attr-defined]
    assert set(guest.vm.snapshots) == {"base", "right"}
    assert current_parent(guest.vm) == "right"


def test_without_its_children_only_that_one_goes(guest: Guest) -> None:
    guest.take("base")
    guest.take("child")
    guest.delete("base")
    assert set(guest.vm.snapshots) == {"child"}
    assert parent_of(guest.vm, guest.vm.snapshots["child"].layers["vda"]) is None


def test_a_fork_keeps_its_foot_while_two_branches_stand_on_it(guest: Guest) -> None:
    guest.write(1)
    guest.take("base")
    guest.write(2)
    guest.take("left")
    guest.back("base", safety_snapshot=False)
    deleted = guest.delete("base")
    assert labels(deleted) == ["drop"]
    assert guest.tree[1] == guest.tree[guest.layer] == 0
    guest.delete("left")
    assert guest.tree == {0: None}
    assert guest.read() == 1


def test_a_deletion_that_fails_halfway_leaves_the_tree_that_is_on_disk(guest: Guest) -> None:
    guest.take("first")

    def full(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        """A host that has no room for the second merge."""
        return Failed(code="no-space", message="") if index == 2 else guest.disks.answer(index, undo, command)

    end = guest.ask(DeleteSnapshot(snapshot="first"), full)
    assert (end.outcome, end.code) == ("stuck", "no-space")
    assert guest.vm.snapshots == {}
    assert (tree_of(guest.vm, "vda"), tree_of(guest.vm, "vdb")) == ({0: None}, {0: None, 1: 0})
    guest.take("second")
    guest.delete("second")
    assert tree_of(guest.vm, "vdb") == guest.disks.on["vdb"] == {0: None}


def test_a_deletion_that_cannot_begin_deletes_nothing(guest: Guest) -> None:
    guest.take("first")
    before = guest.vm
    end = guest.ask(DeleteSnapshot(snapshot="first"), failing(guest.disks, DropLayers, "chain-drift"))
    assert (end.outcome, end.code) == ("undone", "chain-drift")
    assert guest.vm.snapshots == before.snapshots


def test_what_is_not_there_is_not_deleted_nor_come_back_to(guest: Guest) -> None:
    assert guest.refused(DeleteSnapshot(snapshot="none")) == "no-such-snapshot"
    assert guest.refused(RollbackVm(to="none")) == "no-such-snapshot"


# going back


def test_a_rollback_of_a_running_guest_keeps_its_memory_first(guest: Guest) -> None:
    guest.take("first")
    rolled = guest.back("first")
    assert labels(rolled) == ["layers", "save", "define", "start", "ready"]
    assert [type(each) for each in undos(rolled)] == [DropLayers, RestoreGuest, DefineDomain, type(None), type(None)]
    assert [step.commits for step in rolled.steps] == [False, False, False, True, False]
    assert kinds(rolled) == [[], [], [], ["vm.rolled-back"], []]


def test_a_guest_with_kept_memory_goes_on_from_it(guest: Guest) -> None:
    guest.write(1)
    guest.take("warm", memory=True)
    guest.write(2)
    rolled = guest.back("warm")
    assert labels(rolled) == ["layers", "save", "restore", "ready"]
    assert (guest.read(), guest.disks.ram, guest.vm.power) == (1, 1, "running")


def test_a_guest_whose_memory_was_kept_while_it_was_halted_is_halted_again(guest: Guest) -> None:
    guest.ask(PauseVm())
    guest.take("still", memory=True)
    rolled = guest.back("still")
    assert labels(rolled) == ["layers", "save", "restore"]
    assert guest.vm.power == "paused"


def test_a_vm_that_is_off_stays_off_unless_memory_was_kept(guest: Guest) -> None:
    guest.take("warm", memory=True)
    guest.ask(StopVm())
    guest.take("cold")
    assert labels(guest.back("cold")) == ["layers", "define"]
    assert guest.vm.power == "off"
    guest.back("warm")
    assert guest.vm.power == "running"


def test_the_layers_of_a_snapshot_are_never_written_to(guest: Guest) -> None:
    guest.write(1)
    guest.take("first")
    guest.write(2)
    guest.back("first")
    guest.write(3)
    assert guest.disks.shown("vda", guest.vm.snapshots["first"].layers["vda"]) == {0: 1}
    assert guest.tree == {0: None, 1: 0, 2: 0}
    assert guest.layer == 2


def test_a_rollback_can_be_rolled_back(guest: Guest) -> None:
    guest.write(1)
    guest.take("first")
    guest.write(2)
    guest.back("first")
    guest.write(3)
    safety = guest.vm.snapshots["safety-2"]
    assert (safety.origin, safety.quality, safety.power) == ("safety", "memory", "running")
    guest.back("safety-2")
    assert (guest.read(), guest.disks.ram) == (2, 2)
    assert guest.tree[guest.layer] == safety.layers["vda"] == 1
    assert current_parent(guest.vm) == "safety-2"
    guest.back("safety-3")
    assert guest.read() == 3


def test_without_a_safety_snapshot_what_was_is_dropped(guest: Guest) -> None:
    guest.write(1)
    guest.take("first")
    guest.write(2)
    rolled = guest.back("first", safety_snapshot=False)
    assert labels(rolled) == ["layers", "stop", "define", "start", "ready", "drop", "drop"]
    assert set(guest.vm.snapshots) == {"first"}
    assert guest.tree == {0: None, 2: 0}
    assert guest.read() == 1


@pytest.mark.parametrize("kind", [MakeLayers, SaveGuest, RestoreGuest])
def test_a_rollback_that_fails_leaves_everything_as_it_was(guest: Guest, kind: type[HostCommand]) -> None:
    guest.write(1)
    guest.take("warm", memory=True)
    guest.write(2)
    before = guest.vm
    end = guest.back("warm", failing(guest.disks, kind))
    assert (end.outcome, end.code) == ("undone", "libvirt-refused")
    now = guest.vm
    assert (now.spec, now.layers, now.snapshots, now.number) == (
        before.spec, before.layers, before.snapshots, before.number,
    )  # fmt: skip
    assert (now.power, guest.read(), guest.disks.ram) == ("running", 2, 2)
    assert guest.disks.on["vda"] == {0: None, 1: 0}
    assert set(guest.disks.memories) == {1}


def test_a_rollback_that_is_cancelled_in_time_leaves_everything_as_it_was(guest: Guest) -> None:
    guest.take("first")
    guest.write(2)
    before = guest.vm
    operation = guest.begin(RollbackVm(to="first"))
    for _ in range(2):
        advance(guest.history, guest.id, guest.disks.answer)
    guest.history.record(stream("vm", guest.id), CancelRequested(operation=operation.id))
    assert drive(guest.history, guest.id, guest.disks.answer).outcome == "cancelled"
    assert (guest.vm.spec, guest.vm.layers, guest.vm.snapshots) == (before.spec, before.layers, before.snapshots)
    assert (guest.read(), guest.disks.ram) == (2, 2)


def test_a_guest_that_does_not_get_ready_after_a_rollback_was_rolled_back(guest: Guest) -> None:
    guest.take("first")
    end = guest.back("first", failing(guest.disks, AwaitReady, "not-ready"))
    assert (end.outcome, end.code) == ("stuck", "not-ready")
    assert guest.layer == 2


def test_a_guest_does_not_go_on_from_memory_that_it_does_not_fit(guest: Guest) -> None:
    guest.take("warm", memory=True)
    guest.ask(StopVm())
    guest.ask(ResizeVm(memory=MiB(1024)))
    assert guest.refused(RollbackVm(to="warm")) == "config-differs"
    assert guest.back("warm", config_too=True).outcome == "succeeded"
    assert guest.vm.spec is not None
    assert guest.vm.spec.memory == 512


def test_vcpus_and_memory_stay_unless_they_are_asked_for(guest: Guest) -> None:
    guest.take("first")
    guest.ask(ResizeVm(memory=MiB(1024)))
    guest.back("first")
    assert guest.vm.spec is not None
    assert guest.vm.spec.memory == 1024


def test_what_becomes_of_a_vm_when_its_host_is_emptied_is_not_rolled_back(guest: Guest) -> None:
    guest.take("first")
    guest.begin_facts(SetEviction(eviction="stop"))
    guest.back("first", config_too=True)
    assert guest.vm.spec is not None
    assert guest.vm.spec.eviction == "stop"


def test_a_larger_vm_is_promised_its_room_before_it_comes_back(guest: Guest) -> None:
    guest.take("small")
    guest.ask(ResizeVm(memory=MiB(8192)))
    guest.back("small", config_too=True)
    assert guest.promised() == 4096
    guest.begin(RollbackVm(to="safety-2", config_too=True))
    assert guest.promised() == 8192
    drive(guest.history, guest.id, failing(guest.disks, MakeLayers))
    assert guest.promised() == 4096
    guest.back("safety-2", config_too=True)
    assert guest.promised() == 8192


def test_a_snapshot_whose_disk_was_deleted_since_cannot_be_come_back_to(guest: Guest) -> None:
    guest.take("first")
    host = guest.history.fleet.hosts[guest.host]
    with pytest.raises(Rejected) as caught:
        RollbackVm(to="first").plan(replace(guest.vm, layers={"vda": {1: None}, "vdb": {0: None, 1: 0}}), host)
    assert caught.value.code == "bad-spec"


def test_a_disk_that_the_snapshot_does_not_hold_goes_on_above_what_is_kept_of_it(guest: Guest) -> None:
    guest.take("first")
    first = guest.vm.snapshots["first"]
    partly = replace(guest.vm, snapshots={"first": replace(first, layers={"vda": 0})})
    plan = RollbackVm(to="first").plan(partly, guest.history.fleet.hosts[guest.host])
    rolled = next(event for step in plan.steps for event in facts(step.then) if isinstance(event, VmRolledBack))
    assert rolled.on == {"vda": 0, "vdb": 1}
    assert rolled.safety is not None
    assert all(rolled.safety.layers[disk.name] != disk.layer for disk in rolled.spec.disks)


def test_a_prospect_says_what_is_lost_and_what_is_kept(guest: Guest) -> None:
    guest.take("warm", memory=True)
    kept = prospect(RollbackVm(to="warm"), guest.vm)
    assert (kept.lost, kept.stops, kept.boots, kept.memory) == ((), True, False, 1024)
    assert "safety-2" in kept.kept[0]
    lost = prospect(RollbackVm(to="warm", safety_snapshot=False), guest.vm)
    assert lost.lost == ("the present state of vda, vdb, and of the guest's memory",)
    with pytest.raises(Rejected, match="no snapshot"):
        prospect(RollbackVm(to="none"), guest.vm)


# the VM as a whole


def test_a_deleted_vm_leaves_no_layer_and_no_memory(guest: Guest) -> None:
    guest.take("warm", memory=True)
    deleted = guest.begin(DeleteVm())
    gone = [each.disk for each in orders(deleted) if each.kind == "host.delete-disk"]  # type: ignore[attr-defined]
    assert [(disk.name, disk.layer) for disk in gone] == [("vda", 1), ("vda", 0), ("vdb", 1), ("vdb", 0)]
    drops = [each for each in orders(deleted) if isinstance(each, DropLayers)]
    assert drops[0].memory == (Memory(number=1, storage="local"),)


def test_a_schedule_is_a_fact_and_no_operation(guest: Guest) -> None:
    guest.begin_facts(SetSnapshotPolicy(every=3600, last=2, daily=7, quiesce=True))
    assert guest.vm.schedule == Schedule(every=3600, last=2, daily=7, quiesce=True)
    assert guest.refused(SetSnapshotPolicy(every=3600, last=2, daily=7, quiesce=True)) == "already-so"
    guest.begin_facts(SetSnapshotPolicy(off=True))
    assert guest.vm.schedule is None


@pytest.mark.parametrize(
    "command",
    [
        SetSnapshotPolicy(),
        SetSnapshotPolicy(every=3600),
        SetSnapshotPolicy(last=3),
        SetSnapshotPolicy(every=3600, last=1, off=True),
        SetSnapshotPolicy(every=3600, last=20, weekly=20),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(guest: Guest, command: SetSnapshotPolicy) -> None:
    assert guest.refused(command) == "bad-spec"


# answers that end an operation


@pytest.mark.parametrize("halted", [False, True])
def test_the_last_answer_ends_its_operation_unless_that_concerns_a_stream_that_stands_still(
    guest: Guest, halted: bool
) -> None:
    guest.begin(SnapshotVm(name="one"))
    operation = list(guest.vm.operations.values())[-1]
    item = Answered(id=order_id(operation.id, 0, undo=False, attempt=1), answer=Done())
    report = Report(host=guest.host, session=SessionId("session-h1"), through=1, items=(item, item))
    fleet = guest.history.fleet
    still = frozenset({stream("vm", guest.id)}) if halted else frozenset()
    changes = changes_of(fleet, fleet.hosts[guest.host], report, still)
    told = [each.event.kind for each in changes]
    assert told[:2] == ["vm.step-done", SnapshotTaken.kind]
    assert told[2:] == ([] if halted else ["vm.operation-finished"])


def test_an_end_that_takes_a_name_is_not_told_with_the_answer_before_it(guest: Guest) -> None:
    guest.begin(DeleteVm(keep_disks=True))
    while (operation := list(guest.vm.operations.values())[-1]).progress.done < len(operation.steps):
        item = Answered(id=order_id(operation.id, operation.progress.done, undo=False, attempt=1), answer=Done())
        report = Report(host=guest.host, session=SessionId("session-h1"), through=1, items=(item,))
        fleet = guest.history.fleet
        guest.history.take(changes_of(fleet, fleet.hosts[guest.host], report))
    assert operation.outcome is None
    assert drive(guest.history, guest.id).outcome == "succeeded"


# answers that come late


def late(guest: Guest, answer: Done | Failed, *, index: int = 0) -> list[str]:
    """The kinds of what the newest operation's answer adds to the log, once it is given twice."""
    operation = list(guest.vm.operations.values())[-1]
    item = Answered(id=order_id(operation.id, index, undo=False, attempt=1), answer=answer)
    report = Report(host=guest.host, session=SessionId("session-h1"), through=1, items=(item, item))
    fleet = guest.history.fleet
    changes = changes_of(fleet, fleet.hosts[guest.host], report)
    guest.history.take(changes)
    assert changes_of(fleet, fleet.hosts[guest.host], report) == []
    return [each.event.kind for each in changes]


def hang(guest: Guest, index: int = 0) -> None:
    operation = guest.vm.active
    assert operation is not None
    timed_out = StepTimedOut(operation=operation, index=index, message="silent")
    guest.history.record(stream("vm", guest.id), timed_out)
    assert drive(guest.history, guest.id).outcome == "stuck"


def test_a_snapshot_that_was_waited_for_in_vain_is_recorded_once_when_its_answer_comes(guest: Guest) -> None:
    guest.begin(SnapshotVm(name="slow"))
    hang(guest)
    assert guest.vm.snapshots == {}
    assert late(guest, Done()) == ["vm.step-done", SnapshotTaken.kind]
    assert set(guest.vm.snapshots) == {"slow"}
    assert (guest.layer, guest.vm.active) == (1, None)
    assert list(guest.vm.operations.values())[-1].outcome == "stuck"


def test_a_snapshot_that_failed_after_it_was_given_up_adds_nothing(guest: Guest) -> None:
    guest.begin(SnapshotVm(name="slow"))
    hang(guest)
    assert late(guest, Failed(code="freeze-failed", message="")) == []
    assert guest.vm.snapshots == {}


def test_a_merge_that_was_waited_for_in_vain_is_recorded_when_its_answer_comes(guest: Guest) -> None:
    guest.take("first")
    guest.begin(DeleteSnapshot(snapshot="first"))
    advance(guest.history, guest.id, guest.disks.answer)
    hang(guest, index=1)
    assert late(guest, Done(), index=1) == ["vm.step-done", "vm.layers-merged"]
    assert (tree_of(guest.vm, "vda"), tree_of(guest.vm, "vdb")) == ({0: None}, {0: None, 1: 0})


def test_a_guest_that_started_after_its_rollback_was_given_up_was_rolled_back(guest: Guest) -> None:
    guest.take("first")
    guest.begin(RollbackVm(to="first"))
    for _ in range(3):
        advance(guest.history, guest.id, guest.disks.answer)
    hang(guest, index=3)
    seen = Observed(power="running", vcpus=1, memory=MiB(512))
    assert late(guest, Done(observed=seen), index=3) == ["vm.step-done", "vm.rolled-back"]
    assert (guest.layer, guest.vm.power) == (2, "running")


def test_an_answer_to_another_step_than_the_one_that_was_given_up_adds_nothing(guest: Guest) -> None:
    guest.take("first")
    guest.begin(DeleteSnapshot(snapshot="first"))
    hang(guest)
    assert late(guest, Done(), index=1) == []


def test_an_answer_that_comes_after_another_operation_began_still_counts(guest: Guest) -> None:
    guest.begin(SnapshotVm(name="slow"))
    hang(guest)
    slow = list(guest.vm.operations.values())[-1]
    guest.begin(StopVm())
    item = Answered(id=order_id(slow.id, 0, undo=False, attempt=1), answer=Done())
    report = Report(host=guest.host, session=SessionId("session-h1"), through=1, items=(item,))
    fleet = guest.history.fleet
    guest.history.take(changes_of(fleet, fleet.hosts[guest.host], report))
    assert set(guest.vm.snapshots) == {"slow"}
    assert drive(guest.history, guest.id).outcome == "succeeded"


def test_only_the_host_that_a_step_was_given_to_can_say_that_it_is_done(guest: Guest) -> None:
    guest.begin(SnapshotVm(name="slow"))
    hang(guest)
    slow = list(guest.vm.operations.values())[-1]
    other = guest.history.host("h2")
    fleet = guest.history.fleet
    fleet.vms[guest.id] = replace(guest.vm, host=other)
    item = Answered(id=order_id(slow.id, 0, undo=False, attempt=1), answer=Done())
    report = Report(host=other, session=SessionId("session-h2"), through=1, items=(item,))
    assert changes_of(fleet, fleet.hosts[other], report) == []


def test_a_started_vm_writes_to_the_layer_that_the_log_says(guest: Guest) -> None:
    guest.take("first")
    guest.ask(StopVm())
    guest.ask(StartVm())
    guest.write(5)
    assert guest.disks.shown("vda", guest.layer) == {0: 5}
    assert guest.disks.shown("vda", 0) == {}
    assert isinstance(guest.disks.orders[-2], StartDomain)
