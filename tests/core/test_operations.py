"""Each operation: what it needs, what it does step by step, what is left when a step fails."""

from functools import partial
from typing import Any

import msgspec
import pytest

from tests.core.drive import drive, well
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.vm import (
    CancelRequested,
    StepDone,
    StepTimedOut,
    Vm,
    VmCommand,
    VmObserved,
    mac_address,
)
from vmorch.core.aggregates.volume import VolumeCreated, VolumeMade, volume_at
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Failed, Observed
from vmorch.core.ids import GiB, HostId, MiB, OperationId, Stream, VmId, stream
from vmorch.core.messages import COMMANDS, HostCommand
from vmorch.core.operations.attach_volume import AttachVolume
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.reboot import RebootVm
from vmorch.core.operations.rename import RenameVm
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.resume import ResumeVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.admission import admit_on_vm
from vmorch.core.resources import operation_resource, vm_resource
from vmorch.core.sealed import NONCE, Box, write_sealed
from vmorch.core.spec import Home


@pytest.fixture
def history() -> History:
    history = History()
    history.host("h1")
    history.image()
    return history


def begin(history: History, vm: VmId, command: VmCommand) -> None:
    """Admit a command on a VM and record its start."""
    operation = OperationId(f"op-{history.fleet.position}")
    history.take(admit_on_vm(history.fleet, history.fleet.vms[vm], command, operation=operation, who=WHO).changes)


def running(history: History, **fields: Any) -> Vm:
    vm = history.create(asked("web", **fields))
    drive(history, vm)
    return history.fleet.vms[vm]


def refused(history: History, vm: VmId, command: VmCommand) -> str:
    with pytest.raises(Rejected) as caught:
        begin(history, vm, command)
    return caught.value.code


def test_a_created_vm_runs_where_capacity_was_promised(history: History) -> None:
    vm = running(history)
    assert (vm.power, vm.host, vm.epoch, vm.active) == ("running", "host-h1", 1, None)
    assert history.fleet.hosts[vm.host].reservations[vm.id].memory == 512  # type: ignore[index]


def test_a_create_that_fails_leaves_no_promise_and_no_vm(history: History) -> None:
    vm = history.create(asked("web"))

    def no_start(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if command.kind == "host.start-domain":
            return Failed(code="libvirt-refused", message="no")
        return well(index, undo, command)

    end = drive(history, vm, no_start)
    assert (end.outcome, end.code) == ("undone", "libvirt-refused")
    assert history.fleet.vms[vm].deleted_at is not None
    assert not next(iter(history.fleet.hosts.values())).reservations


def test_a_guest_that_never_gets_ready_is_left_running_with_the_code_said(history: History) -> None:
    vm = history.create(asked("web"))

    def not_ready(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if command.kind == "host.await-ready":
            return Failed(code="not-ready", message="no ping")
        return well(index, undo, command)

    end = drive(history, vm, not_ready)
    assert (end.outcome, end.code) == ("stuck", "not-ready")
    assert history.fleet.vms[vm].power == "running"


def test_stop_start_pause_resume_and_reboot_end_where_they_say(history: History) -> None:
    vm = running(history).id
    for command, power in (
        (PauseVm(), "paused"),
        (ResumeVm(), "running"),
        (RebootVm(), "running"),
        (StopVm(), "off"),
        (StartVm(), "running"),
    ):
        begin(history, vm, command)
        assert drive(history, vm).outcome == "succeeded"
        assert history.fleet.vms[vm].power == power


def test_a_guest_that_ignores_a_stop_stays_running(history: History) -> None:
    vm = running(history).id
    begin(history, vm, StopVm(grace=1))
    ignoring = Failed(code="guest-did-not-stop", message="still running")
    assert drive(history, vm, lambda *_: ignoring).outcome == "undone"
    assert history.fleet.vms[vm].power == "running"


def test_two_operations_on_one_vm_are_refused(history: History) -> None:
    vm = running(history).id
    begin(history, vm, StopVm())
    assert refused(history, vm, StopVm()) == "operation-in-flight"


def test_a_command_in_the_wrong_power_state_is_refused(history: History) -> None:
    vm = running(history).id
    assert refused(history, vm, StartVm()) == "wrong-power-state"
    assert refused(history, vm, ResumeVm()) == "wrong-power-state"


def test_a_deleted_vm_gives_its_capacity_back_and_takes_no_command(history: History) -> None:
    vm = running(history).id
    begin(history, vm, DeleteVm())
    assert drive(history, vm).outcome == "succeeded"
    assert not next(iter(history.fleet.hosts.values())).reservations
    assert refused(history, vm, StartVm()) == "vm-gone"


def test_kept_disks_are_named_and_not_deleted(history: History) -> None:
    vm = running(history).id
    begin(history, vm, DeleteVm(keep_disks=True))
    operation = drive(history, vm)
    assert not any(step.command.kind == "host.delete-disk" for step in operation.steps)
    assert history.fleet.vms[vm].kept_disks == ("vda",)


def test_a_rename_needs_no_host(history: History) -> None:
    vm = running(history).id
    begin(history, vm, RenameVm(name="shop"))
    assert history.fleet.vms[vm].name == "shop"
    assert history.fleet.vms[vm].active is None


def test_memory_within_the_maximum_changes_at_once(history: History) -> None:
    vm = running(history, max_memory=MiB(2048))
    begin(history, vm.id, ResizeVm(memory=MiB(1024)))
    operation = history.fleet.vms[vm.id].operations[history.fleet.vms[vm.id].active]  # type: ignore[index]
    assert [step.label for step in operation.steps] == ["define", "memory"]


def test_memory_beyond_the_maximum_waits_for_the_next_start_and_says_so(history: History) -> None:
    vm = running(history)
    begin(history, vm.id, ResizeVm(memory=MiB(1024)))
    assert drive(history, vm.id).outcome == "succeeded"
    assert history.fleet.vms[vm.id].pending() == {"memory": (512, 1024)}


def test_vcpus_are_never_taken_from_a_running_guest(history: History) -> None:
    vm = running(history, max_vcpus=4)
    history.record(
        stream("vm", vm.id),
        VmObserved(host=vm.host, observed=Observed(power="running", vcpus=4, memory=MiB(512))),  # type: ignore[arg-type]
    )
    begin(history, vm.id, ResizeVm(memory=MiB(256), vcpus=2))
    operation = history.fleet.vms[vm.id].operations[history.fleet.vms[vm.id].active]  # type: ignore[index]
    assert "vcpus" not in [step.label for step in operation.steps]


def test_a_resize_beyond_the_host_is_refused(history: History) -> None:
    vm = running(history).id
    assert refused(history, vm, ResizeVm(memory=MiB(1024 * 1024))) == "no-capacity"


def test_a_failed_resize_gives_the_larger_promise_back(history: History) -> None:
    vm = running(history)
    begin(history, vm.id, ResizeVm(memory=MiB(4096)))
    assert history.fleet.hosts[vm.host].reservations[vm.id].memory == 4096  # type: ignore[index]
    refusal = Failed(code="libvirt-refused", message="no")
    drive(history, vm.id, lambda i, undo, c: Done() if undo else refusal)
    assert history.fleet.hosts[vm.host].reservations[vm.id].memory == 512  # type: ignore[index]


def test_a_cancelled_create_takes_back_what_it_did(history: History) -> None:
    vm = history.create(asked("web"))
    operation = history.fleet.vms[vm].active
    undone: list[str] = []

    def cancel_at_define(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if undo:
            undone.append(command.kind)
        if command.kind == "host.define-domain":
            history.record(stream("vm", vm), CancelRequested(operation=operation))  # type: ignore[arg-type]
        return well(index, undo, command)

    assert drive(history, vm, cancel_at_define).outcome == "cancelled"
    assert undone == ["host.stop-domain", "host.undefine-domain", "host.delete-seed", "host.delete-disk"]


def test_an_interrupted_step_is_sent_again_a_bounded_number_of_times(history: History) -> None:
    vm = history.create(asked("web"))
    sent: list[int] = []

    def always_interrupted(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        sent.append(index)
        return Failed(code="interrupted", message="agent died") if not undo else Done()

    assert drive(history, vm, always_interrupted).outcome == "undone"
    assert sent.count(0) == 5


def failing_at(step: int, index: int, undo: bool, command: HostCommand) -> Done | Failed:
    """One step fails; everything else, undoing included, works."""
    if index == step and not undo:
        return Failed(code="libvirt-refused", message="no")
    return well(index, undo, command)


def volume(history: History, name: str) -> None:
    """A volume on shared storage that nobody uses."""
    home = Home(vm=VmId("0192f0c1-0000-7000-8000-0000000000aa"), name="vda")
    made = VolumeCreated(name=name, size=GiB(2), storage="shared", host=HostId("host-h1"), home=home)
    history.record(stream("volume", volume_at(home)), made, VolumeMade())


@pytest.mark.parametrize(
    "kind", [kind for kind, made in COMMANDS.items() if issubclass(made, VmCommand) and not made.resolves]
)
def test_every_step_of_every_operation_can_fail_and_the_operation_ends(kind: str) -> None:
    arguments: dict[str, dict[str, Any]] = {
        "vm.rename": {"name": "other"},
        "vm.resize": {"memory": 1024, "vcpus": 2},
        "vm.label": {"set": {"a": "b"}},
        "vm.set-eviction": {"eviction": "stop"},
        "vm.delete-snapshot": {"snapshot": "first"},
        "vm.rollback": {"to": "first", "safety_snapshot": False},
        "vm.set-snapshot-policy": {"every": 3600.0, "last": 3},
        "vm.attach-volume": {"volume": "data"},
        "vm.detach-volume": {"volume": "data"},
        "vm.grow-disk": {"disk": "vdb", "size": 3},
    }
    command = COMMANDS[kind](**arguments.get(kind, {}))
    assert isinstance(command, VmCommand)
    for failing in range(10):
        history = History()
        history.host("h1")
        history.image()
        vm = running(history, max_vcpus=4, max_memory=MiB(4096), storage="shared").id
        history.host("h2")
        for name in ("first", "second"):
            begin(history, vm, SnapshotVm(name=name, memory=True))
            drive(history, vm)
        volume(history, "data")
        if kind in ("vm.detach-volume", "vm.grow-disk"):
            begin(history, vm, AttachVolume(volume="data"))
            drive(history, vm)
        if "running" not in command.needs:
            begin(history, vm, PauseVm() if "paused" in command.needs else StopVm())
            drive(history, vm)
        begin(history, vm, command)
        if history.fleet.vms[vm].active is None:
            return
        end = drive(history, vm, partial(failing_at, failing))
        assert end.outcome in ("succeeded", "undone", "stuck")
        assert history.fleet.vms[vm].active is None


def test_mac_addresses_are_stable_and_differ_by_card() -> None:
    assert mac_address(VmId("a"), 0) == mac_address(VmId("a"), 0) != mac_address(VmId("a"), 1)


def test_a_second_resize_does_not_reach_beyond_what_the_running_domain_was_started_with(history: History) -> None:
    vm = running(history, max_vcpus=2)
    begin(history, vm.id, ResizeVm(vcpus=4))
    drive(history, vm.id)
    begin(history, vm.id, ResizeVm(vcpus=3))
    operation = history.fleet.vms[vm.id].operations[history.fleet.vms[vm.id].active]  # type: ignore[index]
    assert [step.label for step in operation.steps] == ["define"]


def test_a_resize_that_got_stuck_can_be_asked_for_again(history: History) -> None:
    vm = running(history)
    begin(history, vm.id, ResizeVm(memory=MiB(4096)))
    operation = history.fleet.vms[vm.id].active
    assert operation is not None
    late = StepTimedOut(operation=operation, index=0, message="silent")
    history.record(stream("vm", vm.id), late)
    assert drive(history, vm.id).outcome == "stuck"
    begin(history, vm.id, ResizeVm(memory=MiB(512)))
    drive(history, vm.id)
    assert history.fleet.hosts[vm.host].reservations[vm.id].memory == 512  # type: ignore[index]


def test_more_user_data_than_a_message_holds_is_refused(history: History) -> None:
    keys = tuple("ssh-ed25519 " + "A" * 16000 for _ in range(30))
    with pytest.raises(Rejected) as caught:
        history.create(asked("web", ssh_keys=keys))
    assert caught.value.code == "bad-spec"


def test_a_timeout_of_a_step_that_was_answered_meanwhile_changes_nothing(history: History) -> None:
    vm = history.create(asked("web"))
    operation = history.fleet.vms[vm].active
    assert operation is not None
    history.record(stream("vm", vm), StepDone(operation=operation, index=0))
    history.record(stream("vm", vm), StepTimedOut(operation=operation, index=0, message="silent"))
    assert drive(history, vm).outcome == "succeeded"


def test_user_data_is_not_shown_to_whoever_reads_vms_and_operations(history: History) -> None:
    secret = write_sealed(Box(Stream("vm/web"), b"n" * NONCE, b"canary" * 10))
    vm = history.create(asked("web", user_data=secret))
    state = history.fleet.vms[vm]
    shown = [
        vm_resource(history.fleet, state),
        *(operation_resource(history.fleet, state, each) for each in state.operations.values()),
    ]
    assert secret.encode() not in msgspec.json.encode(shown)
    assert msgspec.json.encode(shown).count(b"(44 bytes, sealed)") == 2


def test_a_pause_that_finds_the_vm_off_is_undone_and_not_stuck(history: History) -> None:
    vm = running(history).id
    begin(history, vm, PauseVm())
    off = Failed(code="libvirt-refused", message="domain is not running")
    assert drive(history, vm, lambda *_: off).outcome == "undone"
