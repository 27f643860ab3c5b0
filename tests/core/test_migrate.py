"""Migrating a VM: where it may go, what is done step by step, whose it is whatever happens on the way."""

from typing import Any

import pytest

from tests.core.drive import drive, well
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.host import HostUnreachable, retire
from vmorch.core.aggregates.passage import VmResolved
from vmorch.core.aggregates.vm import CancelRequested, StepTimedOut, Vm, VmCommand, VmObserved
from vmorch.core.codec import unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import AwaitReady, Done, Failed, Observed
from vmorch.core.ids import HostId, MiB, OperationId, VmId, stream
from vmorch.core.messages import HostCommand
from vmorch.core.operations.create import NicRequest
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.resolve import ResolveVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.planning.admission import admit_on_vm, admit_settling, admit_tidying
from vmorch.core.planning.surrender import give_up
from vmorch.core.spec import Placing

H1, H2 = HostId("host-h1"), HostId("host-h2")


@pytest.fixture
def history() -> History:
    history = History()
    history.host("h1")
    history.image()
    return history


def vm_on_h1(history: History, **fields: Any) -> VmId:
    """A VM that runs on h1, before there is an h2."""
    vm = history.create(asked("web", **{"storage": "shared", **fields}))
    drive(history, vm)
    return vm


def begin(history: History, vm: VmId, command: VmCommand) -> OperationId:
    operation = OperationId(f"op-{history.fleet.position}")
    history.take(admit_on_vm(history.fleet, history.fleet.vms[vm], command, operation=operation, who=WHO).changes)
    return operation


def refused(history: History, vm: VmId, command: VmCommand) -> Rejected:
    with pytest.raises(Rejected) as caught:
        begin(history, vm, command)
    return caught.value


def now(history: History, vm: VmId) -> Vm:
    return history.fleet.vms[vm]


def labels(history: History, vm: VmId) -> list[tuple[str, str]]:
    active = now(history, vm).active
    assert active is not None
    return [(step.label, step.host) for step in now(history, vm).operations[active].steps]


def ends(source: Observed | None, destination: Observed | None) -> Any:
    """What the two hosts show in every round."""
    return lambda host, _round: source if host == H1 else destination


def halted(reason: str = "migration") -> Observed:
    return Observed(power="paused", reason=reason)


RUNNING, OFF, ABSENT = Observed(power="running"), Observed(power="off"), Observed(power="absent")


def promises(history: History, vm: VmId) -> set[HostId]:
    return {id for id, host in history.fleet.hosts.items() if vm in host.reservations}


def test_a_moved_vm_belongs_to_its_destination_with_its_promise_and_a_new_epoch(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())
    assert promises(history, vm) == {H1, H2}
    assert drive(history, vm).outcome == "succeeded"
    assert (now(history, vm).host, now(history, vm).power, now(history, vm).epoch) == (H2, "running", 2)
    assert promises(history, vm) == {H2}
    assert not now(history, vm).traces


def test_a_live_migration_checks_first_and_clears_the_source_last(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm(to="h2"))
    assert labels(history, vm) == [
        ("check", H2), ("seed", H2), ("migrate", H1), ("claim", H2), ("clear", H1), ("delete seed", H1), ("ready", H2),
    ]  # fmt: skip


def test_local_disks_are_made_there_first_and_deleted_here_after(history: History) -> None:
    vm = vm_on_h1(history, storage="local")
    history.host("h2")
    assert refused(history, vm, MigrateVm(to="h2")).code == "cannot-migrate"
    begin(history, vm, MigrateVm(to="h2", copy_disks=True))
    assert labels(history, vm) == [
        ("check", H2), ("image", H2), ("disk", H2), ("seed", H2), ("migrate", H1), ("claim", H2), ("clear", H1),
        ("delete disk", H1), ("delete seed", H1), ("ready", H2),
    ]  # fmt: skip
    assert drive(history, vm).outcome == "succeeded"


def test_every_blocker_is_named_at_once(history: History) -> None:
    vm = vm_on_h1(history, storage="local", nics=(NicRequest(network="lab"),))
    history.host("h2", memory=256, networks=(), encrypts=False, qemu="7.0.0", machines=())
    problem = refused(history, vm, MigrateVm(to="h2"))
    told = " | ".join(problem.facts["h2"])
    for each in ("no network lab", "MiB", "local storage", "machine type pc-q35-7.2", "older", "certificate"):
        assert each in told, each


def test_without_a_destination_the_best_one_is_taken_and_every_host_has_its_reasons(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2", memory=8192)
    history.host("h3")
    history.host("h4", encrypts=False)
    admission = admit_on_vm(
        history.fleet, now(history, vm), MigrateVm(), operation=OperationId("op"), who=WHO
    )
    assert admission.placement is not None
    assert [each.name for each in admission.placement.verdicts] == ["h3", "h2", "h4"]
    assert admission.placement.verdicts[-1].against
    begin(history, vm, MigrateVm())
    assert labels(history, vm)[0] == ("check", HostId("host-h3"))


def test_a_vm_never_moves_next_to_one_that_it_keeps_away_from(history: History) -> None:
    vm = vm_on_h1(history, labels={"app": "db"}, placing=Placing(away_from={"app": "db"}))
    history.host("h2")
    other = history.create(asked("other", storage="shared", labels={"app": "db"}))
    drive(history, other)
    assert now(history, other).host == H2
    assert "must keep away from other" in refused(history, vm, MigrateVm(to="h2")).facts["h2"]


def test_a_blocked_arrival_leaves_the_vm_as_it_was_with_all_that_libvirt_found(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())

    def blocked(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if command.kind == "host.prepare-arrival":
            return Failed(code="arrival-blocked", message="cpu; memory", blockers=("cpu", "memory"))
        return well(index, undo, command)

    end = drive(history, vm, blocked)
    assert (end.outcome, end.code) == ("undone", "arrival-blocked")
    assert end.progress.failed is not None
    assert end.progress.failed.blockers == ("cpu", "memory")
    assert (now(history, vm).host, promises(history, vm), now(history, vm).traces) == (H1, {H1}, frozenset())


def failing_migration(index: int, undo: bool, command: HostCommand) -> Done | Failed:
    if command.kind == "host.migrate-domain":
        return Failed(code="migration-failed", message="connection lost")
    return well(index, undo, command)


def test_a_migration_that_failed_but_arrived_has_arrived(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())
    assert drive(history, vm, failing_migration, ends(halted(), RUNNING)).outcome == "succeeded"
    assert now(history, vm).host == H2


def test_a_migration_that_succeeded_but_did_not_arrive_is_taken_back(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())
    end = drive(history, vm, well, ends(RUNNING, ABSENT))
    assert (end.outcome, end.code) == ("undone", "not-moved")
    assert (now(history, vm).host, now(history, vm).power, promises(history, vm)) == (H1, "running", {H1})


def test_a_halted_source_runs_on_only_after_the_destination_was_seen_empty(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())
    undone: list[tuple[str, Any]] = []

    def note(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if undo:
            undone.append((command.kind, getattr(command, "run", None)))
        return failing_migration(index, undo, command)

    def see(host: HostId, round: int) -> Observed:
        return halted() if host == H1 or round < 3 else ABSENT

    assert drive(history, vm, note, see).outcome == "undone"
    assert undone == [("host.claim-domain", True), ("host.delete-seed", None), ("host.clear-domain", None)]


def test_an_unknown_outcome_freezes_the_vm_with_what_was_seen(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    operation = begin(history, vm, MigrateVm())
    end = drive(history, vm, failing_migration, ends(None, RUNNING))
    assert (end.outcome, end.code) == ("stuck", "outcome-unknown")
    frozen = now(history, vm).frozen
    assert frozen is not None
    assert (frozen.operation, frozen.source, frozen.destination) == (operation, H1, H2)
    assert (frozen.source_seen, frozen.destination_seen) == (None, RUNNING)
    assert promises(history, vm) == {H1, H2}
    for command in (StopVm(), StartVm(), MigrateVm(), PauseVm()):
        assert refused(history, vm, command).code == "outcome-unknown"


def test_a_frozen_vm_settles_when_both_ends_are_seen_wherever_it_is(history: History) -> None:
    for source, destination, host in ((halted(), RUNNING, H2), (RUNNING, ABSENT, H1), (OFF, ABSENT, H1)):
        history = History()
        history.host("h1")
        history.image()
        vm = vm_on_h1(history)
        history.host("h2")
        begin(history, vm, MigrateVm())
        drive(history, vm, failing_migration, ends(None, None))
        assert now(history, vm).frozen is not None
        history.take(admit_settling(history.fleet, now(history, vm), operation=OperationId("settle-1")))
        assert drive(history, vm, well, ends(source, destination)).outcome in ("succeeded", "undone")
        assert (now(history, vm).host, now(history, vm).frozen) == (host, None)
        assert promises(history, vm) == {host}
        assert not now(history, vm).traces


def test_settling_may_fail_and_be_tried_again(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())
    drive(history, vm, failing_migration, ends(None, None))
    for attempt in range(25):
        history.take(admit_settling(history.fleet, now(history, vm), operation=OperationId(f"settle-{attempt}")))
        drive(history, vm, well, ends(RUNNING, RUNNING))
        assert now(history, vm).frozen is not None
    history.take(admit_settling(history.fleet, now(history, vm), operation=OperationId("settle-last")))
    drive(history, vm, well, ends(ABSENT, RUNNING))
    assert (now(history, vm).host, now(history, vm).frozen) == (H2, None)


def test_an_operator_may_say_where_a_frozen_vm_is_and_the_evidence_is_kept(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())
    drive(history, vm, failing_migration, ends(None, RUNNING))
    assert refused(history, vm, ResolveVm(on="h9")).code == "bad-spec"
    begin(history, vm, ResolveVm(on="h2"))
    after = now(history, vm)
    assert (after.host, after.power, after.frozen, after.traces) == (H2, "running", None, {H1})
    assert after.epoch == 3
    resolved = history.facts[-1].event
    assert isinstance(resolved, VmResolved)
    assert resolved.evidence["destination"] == {"power": "running"}


def test_only_a_frozen_vm_can_be_resolved(history: History) -> None:
    vm = vm_on_h1(history)
    assert refused(history, vm, ResolveVm(on="h1")).code == "already-so"


def test_traces_on_a_host_that_was_silent_are_cleared_later_with_their_promise(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    operation = begin(history, vm, MigrateVm())

    def silent_source(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if command.kind == "host.clear-domain":
            late = StepTimedOut(operation=operation, index=index, message="silent")
            history.record(stream("vm", vm), late)
        return well(index, undo, command)

    assert drive(history, vm, silent_source).code == "host-silent"
    assert (now(history, vm).host, now(history, vm).traces, promises(history, vm)) == (H2, {H1}, {H1, H2})
    history.take(admit_tidying(history.fleet, now(history, vm), H1, operation=OperationId("tidy")))
    assert drive(history, vm).outcome == "succeeded"
    assert (now(history, vm).traces, promises(history, vm)) == (frozenset(), {H2})


def test_what_another_host_shows_says_nothing_about_the_vm(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())

    def showing(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if command.kind in ("host.clear-domain", "host.prepare-arrival"):
            return Done(observed=ABSENT)
        return failing_migration(index, undo, command)

    drive(history, vm, showing, ends(RUNNING, ABSENT))
    assert now(history, vm).power == "running"


def test_a_cancelled_migration_is_judged_like_any_other(history: History) -> None:
    for see, outcome, host in ((ends(RUNNING, ABSENT), "cancelled", H1), (ends(ABSENT, RUNNING), "succeeded", H2)):
        history = History()
        history.host("h1")
        history.image()
        vm = vm_on_h1(history)
        history.host("h2")
        operation = begin(history, vm, MigrateVm())

        def cancel(index: int, undo: bool, command: HostCommand) -> Done | Failed:
            if command.kind == "host.migrate-domain":
                history.record(stream("vm", vm), CancelRequested(operation=operation))  # noqa: B023
                return Failed(code="cancelled", message="withdrawn")
            return well(index, undo, command)

        assert drive(history, vm, cancel, see).outcome == outcome
        assert now(history, vm).host == host


def test_a_cold_migration_stops_here_and_starts_there(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm(cold=True))
    assert labels(history, vm) == [
        ("check", H2), ("seed", H2), ("stop", H1), ("define", H2), ("clear", H1), ("delete seed", H1), ("start", H2),
        ("ready", H2),
    ]  # fmt: skip
    assert drive(history, vm, well, ends(ABSENT, OFF)).outcome == "succeeded"
    assert (now(history, vm).host, now(history, vm).power) == (H2, "running")


@pytest.mark.parametrize(("cold", "known"), [(False, ("10.64.1.2",)), (True, ())])
def test_only_a_guest_that_moves_as_it_runs_keeps_its_addresses(
    history: History, cold: bool, known: tuple[str, ...]
) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    seen = Observed(power="running", addresses=("10.64.1.2",))
    history.record(stream("vm", vm), VmObserved(host=H1, observed=seen))
    operation = begin(history, vm, MigrateVm(cold=cold))
    ready = unpack_host_command(now(history, vm).operations[operation].steps[-1].command)
    assert isinstance(ready, AwaitReady)
    assert ready.known == known


def test_a_vm_that_is_off_moves_without_being_started(history: History) -> None:
    vm = vm_on_h1(history)
    begin(history, vm, StopVm())
    drive(history, vm)
    history.host("h2")
    begin(history, vm, MigrateVm())
    assert drive(history, vm, well, ends(ABSENT, OFF)).outcome == "succeeded"
    assert (now(history, vm).host, now(history, vm).power) == (H2, "off")


def test_a_paused_guest_arrives_paused_and_is_not_resumed(history: History) -> None:
    vm = vm_on_h1(history)
    begin(history, vm, PauseVm())
    drive(history, vm)
    history.host("h2")
    begin(history, vm, MigrateVm())
    resumed: list[Any] = []

    def note(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        resumed.extend([command.run] if command.kind == "host.claim-domain" else [])  # type: ignore[attr-defined]
        return well(index, undo, command)

    drive(history, vm, note, ends(ABSENT, halted("user")))
    assert resumed == [False]
    assert now(history, vm).power == "paused"


def test_more_guests_than_the_policy_allows_do_not_leave_a_host_at_once(history: History) -> None:
    vms = []
    for index in range(5):
        vms.append(history.create(asked(f"web-{index}", storage="shared", memory=MiB(256))))
        drive(history, vms[-1])
    history.host("h2")
    for vm in vms[:4]:
        begin(history, vm, MigrateVm())
    assert refused(history, vms[4], MigrateVm()).code == "too-many-migrations"


def test_a_vm_that_was_created_on_a_named_host_may_move_from_there(history: History) -> None:
    vm = vm_on_h1(history, placing=Placing(host="h1"))
    history.host("h2")
    begin(history, vm, MigrateVm())
    assert drive(history, vm).outcome == "succeeded"
    assert now(history, vm).host == H2


def lose(history: History, name: str) -> None:
    """The host is silent, and an operator gives it up."""
    host = next(each for each in history.fleet.hosts.values() if each.name == name)
    history.record(stream("host", host.id), HostUnreachable(session=host.session, silent=9))
    gone = history.fleet.hosts[host.id]
    changes = give_up(history.fleet, gone)
    history.record(stream("host", host.id), *retire(gone, lost=True)).take(changes)


def test_a_host_is_not_given_up_while_a_vm_may_have_left_it(history: History) -> None:
    vm = vm_on_h1(history)
    history.host("h2")
    begin(history, vm, MigrateVm())
    with pytest.raises(Rejected, match="on their way"):
        lose(history, "h1")
    drive(history, vm, failing_migration, ends(None, RUNNING))
    with pytest.raises(Rejected, match="on their way") as caught:
        lose(history, "h1")
    assert caught.value.facts == {"vms": ["web"]}
    begin(history, vm, ResolveVm(on="h2"))
    lose(history, "h1")
    assert (now(history, vm).host, now(history, vm).deleted_at, now(history, vm).traces) == (H2, None, frozenset())
    assert promises(history, vm) == {H2}
