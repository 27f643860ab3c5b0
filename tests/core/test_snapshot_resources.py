"""What people see of snapshots: where each came from, what a VM is now, how it differs."""

import time

import pytest

from tests.core.drive import drive
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.errors import Rejected
from vmorch.core.ids import GiB, MiB, OperationId, VmId
from vmorch.core.operations.create import DiskRequest
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.schedule_snapshots import SetSnapshotPolicy
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.admission import admit_on_vm
from vmorch.core.resources import VmResource, snapshot_detail, vm_resource


@pytest.fixture
def history() -> History:
    history = History()
    history.host("h1")
    history.image()
    return history


@pytest.fixture
def vm(history: History) -> VmId:
    id = history.create(asked("db", extra_disks=(DiskRequest(size=GiB(5)),), user_data="#cloud-config\nsecret: yes"))
    drive(history, id)
    return id


def do(history: History, vm: VmId, *commands: VmCommand) -> None:
    for command in commands:
        operation = OperationId(f"op-{history.fleet.position}")
        changes = admit_on_vm(history.fleet, history.fleet.vms[vm], command, operation=operation, who=WHO).changes
        history.take(changes)
        if history.fleet.vms[vm].active is not None:
            assert drive(history, vm).outcome == "succeeded"


def shown(history: History, vm: VmId) -> VmResource:
    return vm_resource(history.fleet, history.fleet.vms[vm])


def test_a_vm_shows_its_snapshots_in_order_with_what_each_came_from(history: History, vm: VmId) -> None:
    assert (shown(history, vm).snapshots, shown(history, vm).layers_deep) == ((), 1)
    do(history, vm, SnapshotVm(name="a"), SnapshotVm(name="b", quiesce=True), RollbackVm(to="a"), SnapshotVm(name="c"))
    found = shown(history, vm)
    assert [(each.name, each.parent, each.current) for each in found.snapshots] == [
        ("a", None, False),
        ("b", "a", False),
        ("safety-3", "b", False),
        ("c", "a", True),
    ]
    assert [(each.quality, each.memory, each.origin) for each in found.snapshots] == [
        ("crash-consistent", False, "operator"),
        ("frozen", False, "operator"),
        ("memory", True, "safety"),
        ("crash-consistent", False, "operator"),
    ]
    assert (found.layers_deep, found.layers_most) == (3, 32)
    assert set(found.snapshots[0].layers) == {"vda", "vdb"}


def test_a_snapshot_shows_what_came_from_it_and_how_the_vm_differs_now(history: History, vm: VmId) -> None:
    do(history, vm, SnapshotVm(name="a"), SnapshotVm(name="b"), SnapshotVm(name="c"), StopVm())
    do(history, vm, ResizeVm(memory=MiB(1024), vcpus=2))
    found = snapshot_detail(history.fleet.vms[vm], "a")
    assert (found.children, found.descendants) == (("b",), ("b", "c"))
    assert {each.field: (each.then, each.now) for each in found.differs} == {
        "vcpus": ("1", "2"),
        "max_vcpus": ("1", "2"),
        "memory": ("512 MiB", "1024 MiB"),
        "max_memory": ("512 MiB", "1024 MiB"),
    }
    with pytest.raises(Rejected, match="has no snapshot z") as refused:
        snapshot_detail(history.fleet.vms[vm], "z")
    assert refused.value.code == "no-such-snapshot"


def test_a_snapshot_tells_no_secret_of_its_guest(history: History, vm: VmId) -> None:
    do(history, vm, SnapshotVm(name="a"))
    seed = snapshot_detail(history.fleet.vms[vm], "a").spec.seed
    assert seed is not None
    assert "secret" not in seed.user_data


def test_branches_go_on_without_the_snapshot_that_they_began_at(history: History, vm: VmId) -> None:
    do(history, vm, SnapshotVm(name="a"), SnapshotVm(name="b"), RollbackVm(to="a"), DeleteSnapshot(snapshot="a"))
    assert [(each.name, each.parent, each.current) for each in shown(history, vm).snapshots] == [
        ("b", None, False),
        ("safety-3", "b", False),
    ]


def test_a_vm_says_what_is_being_done_and_by_which_schedule(history: History, vm: VmId) -> None:
    do(history, vm, SetSnapshotPolicy(every=3600, hourly=12))
    schedule = shown(history, vm).schedule
    assert schedule is not None
    assert (schedule.every, schedule.hourly) == (3600, 12)
    states = []
    for command in (SnapshotVm(name="a"), RollbackVm(to="a"), DeleteSnapshot(snapshot="a")):
        operation = OperationId(f"op-{history.fleet.position}")
        history.take(
            admit_on_vm(history.fleet, history.fleet.vms[vm], command, operation=operation, who=WHO).changes
        )
        states.append(shown(history, vm).state)
        drive(history, vm)
    assert states == ["snapshotting", "rolling-back", "deleting-snapshot"]


def test_a_vm_with_all_the_snapshots_that_it_may_have_is_shown_in_milliseconds(history: History, vm: VmId) -> None:
    do(history, vm, SnapshotVm(name="base"))
    while len(history.fleet.vms[vm].snapshots) < 127:
        do(history, vm, RollbackVm(to="base", safety_snapshot=False), SnapshotVm())
    began = time.perf_counter()
    for _ in range(10):
        shown(history, vm)
    assert (time.perf_counter() - began) / 10 < 0.05
