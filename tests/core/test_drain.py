"""Draining hosts: what is planned, what is shown, what becomes of each VM, and that it always ends."""

import pytest
from msgspec.structs import replace

from tests.core.drains import (
    DRAIN,
    apply,
    budget,
    cancel,
    in_flight,
    look,
    moves,
    never_ready,
    plan,
    refusing,
    results,
    run,
    start,
    stayed,
    step,
    vm_on,
)
from tests.core.drive import drive
from tests.core.world import WHO, History
from vmorch.core.aggregates.cluster import Policy, PolicySet
from vmorch.core.aggregates.drain import ActivateHost, Drain, DrainDiscarded
from vmorch.core.aggregates.host import HostCordoned, HostLabelled, HostReachable, HostUncordoned, HostUnreachable
from vmorch.core.aggregates.vm import VmObserved
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Observed
from vmorch.core.ids import DrainId, HostId, MiB, OperationId, VmId, stream
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.evict import SetEviction
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.admission import admit_on_vm
from vmorch.core.planning.draining import draining
from vmorch.core.planning.undertakings import admit_activate
from vmorch.core.spec import Placing

H1, H2, H3 = HostId("host-h1"), HostId("host-h2"), HostId("host-h3")


@pytest.fixture
def history() -> History:
    history = History()
    for name in ("h1", "h2", "h3"):
        history.host(name)
    history.image()
    return history


def drain(history: History) -> Drain:
    return history.fleet.drains[DRAIN]


def lose(history: History, host: HostId) -> None:
    history.record(stream("host", host), HostUnreachable(session=history.fleet.hosts[host].session, silent=9))


def ask(history: History, vm: VmId, command: StopVm | SetEviction) -> None:
    operation = OperationId(f"op-{history.fleet.position}")
    history.take(admit_on_vm(history.fleet, history.fleet.vms[vm], command, operation=operation, who=WHO).changes)


# the plan


def test_a_plan_that_nobody_begins_is_forgotten_after_many_newer_ones(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmorch.core.fleet.KEPT_PLANS", 2)
    vm_on(history, "db", "h1")
    begun, *others = [DrainId(f"drain-{number}") for number in range(4)]
    plan(history, "h1", drain=begun)
    apply(history, begun)
    for each in others:
        plan(history, "h2", drain=each)
    assert list(history.fleet.drains) == [begun, *others[1:]]
    history.record(stream("drain", others[0]), DrainDiscarded())
    assert list(history.fleet.drains) == [begun, *others[1:]]
    plan(history, "h2", drain=others[0])
    assert list(history.fleet.drains) == [begun, others[2], others[0]]


def test_a_plan_says_where_how_and_why_for_each_vm(history: History) -> None:
    vm_on(history, "db", "h1", memory=MiB(8192))
    vm_on(history, "ci", "h1", eviction="restart")
    vm_on(history, "gone", "h1", eviction="stop")
    found = moves(plan(history, "h1"))
    assert {name: (move.how, move.destination) for name, move in found.items()} == {
        "db": ("live", H2),
        "ci": ("restart", H3),
        "gone": ("stop", None),
    }
    assert found["db"].why == "50% of memory left"
    assert "its eviction is restart" in found["ci"].why


def test_a_blocked_vm_is_shown_with_everything_in_its_way(history: History) -> None:
    vm_on(history, "pet", "h1", eviction="never")
    history.record(stream("host", H1), HostLabelled(labels={"disk": "ssd"}))
    vm_on(history, "db", "h1", placing=Placing(host_labels={"disk": "ssd"}))
    vm_on(history, "big", "h1", memory=MiB(12000))
    for other in ("h2", "h3"):
        vm_on(history, f"fat-{other}", other, memory=MiB(6000))
    blocked = {each.name: [cause.text() for cause in each.causes] for each in plan(history, "h1").blocked}
    assert blocked == {
        "pet": ["its eviction is never"],
        "db": ["h2, h3: lacks label disk=ssd"],
        "big": ["h2, h3: needs 12000 MiB, at most 10384 left"],
    }


def test_a_vm_on_local_disks_takes_them_along(history: History) -> None:
    vm_on(history, "db", "h1", storage="local", disk=20)
    move = moves(plan(history, "h1"))["db"]
    assert move.copy_disks
    assert "carries 20 GiB of local disks" in move.why
    assert move.estimate > 60


def test_a_vm_on_local_disks_blocks_if_they_shall_not_be_copied(history: History) -> None:
    vm_on(history, "db", "h1", storage="local")
    (blocked,) = plan(history, "h1", copy_disks=False).blocked
    assert "local storage" in blocked.causes[0].text()


def test_hosts_drained_together_never_take_each_others_vms(history: History) -> None:
    vm_on(history, "a", "h1")
    vm_on(history, "b", "h2")
    assert {move.destination for move in plan(history, "h1", "h2").moves} == {H3}


def test_vms_that_keep_away_from_each_other_go_to_different_hosts(history: History) -> None:
    away = Placing(away_from={"app": "db"})
    vm_on(history, "db-1", "h1", labels={"app": "db"}, placing=away)
    vm_on(history, "db-2", "h2", labels={"app": "db"}, placing=away)
    vm_on(history, "fat", "h3", memory=MiB(8000))
    assert moves(plan(history, "h1"))["db-1"].destination == H3


def test_a_budget_spreads_a_group_over_waves(history: History) -> None:
    budget(history, "web", 1, app="web")
    for number in range(3):
        vm_on(history, f"web-{number}", "h1", labels={"app": "web"})
    vm_on(history, "other", "h1")
    found = plan(history, "h1")
    assert [move.wave for move in found.moves if move.name.startswith("web")] == [1, 2, 3]
    assert moves(found)["other"].wave == 1


def test_a_budget_that_is_used_up_blocks_and_says_by_whom(history: History) -> None:
    budget(history, "web", 1, app="web")
    vm_on(history, "web-1", "h1", labels={"app": "web"})
    vm_on(history, "web-2", "h2", labels={"app": "web"}, start=False)
    (blocked,) = plan(history, "h1").blocked
    assert blocked.causes[0].text() == "budget web allows 1 of its VMs away at once: web-2 already"


def test_limits_bound_how_many_move_at_once(history: History) -> None:
    history.record(stream("cluster", "policy"), PolicySet(policy=Policy(migrations_out=2, migrations_in=1)))
    for number in range(5):
        vm_on(history, f"vm-{number}", "h1")
    found = plan(history, "h1")
    assert [move.wave for move in found.moves] == [1, 1, 2, 2, 3]
    assert {move.destination for move in found.moves if move.wave == 1} == {H2, H3}


def test_another_move_makes_room_where_that_helps(history: History) -> None:
    history.record(stream("host", H2), HostLabelled(labels={"disk": "ssd"}))
    vm_on(history, "fat", "h2", memory=MiB(8000))
    vm_on(history, "fatter", "h3", memory=MiB(9000))
    vm_on(history, "anywhere", "h1", memory=MiB(6000))
    vm_on(history, "picky", "h1", memory=MiB(5000), placing=Placing(host_labels={}))
    found = moves(plan(history, "h1"))
    assert (found["anywhere"].destination, found["picky"].destination) == (H2, H3)
    vm = history.fleet.vms[VmId("vm-picky")]
    assert vm.spec is not None
    picky = replace(vm, spec=replace(vm.spec, placing=Placing(host_labels={"disk": "ssd"})))
    history.fleet.vms[vm.id] = picky
    again = moves(plan(history, "h1", drain=DrainId("drain-2")))
    assert (again["anywhere"].destination, again["picky"].destination) == (H3, H2)
    assert again["picky"].why == "in place of anywhere"


def test_a_plan_says_whether_one_more_host_could_be_lost(history: History) -> None:
    for number in range(3):
        vm_on(history, f"a-{number}", "h1", memory=MiB(4000))
    assert plan(history, "h1").survival.survivable
    for host in ("h2", "h3"):
        vm_on(history, f"fat-{host}", host, memory=MiB(9000))
    found = plan(history, "h1", drain=DrainId("drain-2"))
    assert not found.survival.survivable
    assert {loss.name for loss in found.survival.losses} == {"h2", "h3"}


def test_the_same_view_gives_the_same_plan(history: History) -> None:
    for number in range(6):
        vm_on(history, f"vm-{number}", "h1")
    first, second = plan(history, "h1"), plan(history, "h1", drain=DrainId("drain-2"))
    assert (first.moves, first.survival) == (second.moves, second.survival)


# beginning


def test_all_hosts_are_cordoned_before_the_first_move(history: History) -> None:
    vm_on(history, "a", "h1")
    start(history, "h1", "h2")
    assert history.fleet.hosts[H1].cordoned == history.fleet.hosts[H2].cordoned == f"drain {DRAIN}"
    assert not in_flight(history)


@pytest.mark.parametrize("on_blocked", ["refuse", "abort"])
def test_nothing_begins_if_anything_is_blocked_unless_that_was_said(history: History, on_blocked: str) -> None:
    vm_on(history, "a", "h1")
    vm_on(history, "pet", "h1", eviction="never")
    with pytest.raises(Rejected) as caught:
        start(history, "h1", on_blocked=on_blocked)  # type: ignore[arg-type]
    assert caught.value.code == "drain-blocked"
    assert caught.value.facts == {"pet": ["its eviction is never"]}
    assert history.fleet.hosts[H1].cordoned is None


def test_a_host_is_drained_once_at_a_time(history: History) -> None:
    vm_on(history, "a", "h1")
    start(history, "h1")
    with pytest.raises(Rejected, match="being drained"):
        start(history, "h1", drain=DrainId("drain-2"))


def test_a_stale_plan_is_refused_with_the_events_that_touch_it(history: History) -> None:
    vm_on(history, "a", "h1", memory=MiB(4096))
    vm_on(history, "fat", "h3", memory=MiB(1024))
    plan(history, "h1")
    history.record(stream("host", H2), HostCordoned(reason="raid rebuild"))
    cordoned = history.fleet.position
    vm_on(history, "b", "h3")  # nothing goes there
    with pytest.raises(Rejected) as caught:
        apply(history)
    assert caught.value.code == "plan-stale"
    assert caught.value.facts == {str(cordoned): "host.cordoned  host/h2  tester"}


def test_snapshots_of_its_vms_do_not_make_a_plan_stale(history: History) -> None:
    vm = vm_on(history, "a", "h1")
    plan(history, "h1")
    for number, command in enumerate((SnapshotVm(name="one"), DeleteSnapshot(snapshot="one"))):
        now, operation = history.fleet.vms[vm], OperationId(f"taken-{number}")
        history.take(admit_on_vm(history.fleet, now, command, operation=operation, who=WHO).changes)
        drive(history, vm)
    assert apply(history).running


def test_a_rebased_plan_keeps_the_moves_that_still_hold(history: History) -> None:
    vm_on(history, "a", "h1", memory=MiB(4096))
    vm_on(history, "b", "h1", memory=MiB(2048))
    before = moves(plan(history, "h1"))
    assert (before["a"].destination, before["b"].destination) == (H2, H3)
    history.record(stream("host", H3), HostCordoned(reason="raid rebuild"))
    after = apply(history, rebase=True).plan
    assert after is not None
    assert {move.destination for move in after.moves} == {H2}
    assert after.kept == 1


def test_what_does_not_concern_a_plan_leaves_it_fresh(history: History) -> None:
    vm = vm_on(history, "a", "h1")
    plan(history, "h1")
    seen = Observed(power="running", addresses=("10.0.0.9",))
    history.record(stream("vm", vm), VmObserved(host=H1, observed=seen))
    history.record(stream("host", H1), HostCordoned(), HostUncordoned())
    assert apply(history).running


# the way


def test_a_drain_moves_everything_and_says_where(history: History) -> None:
    for number in range(6):
        vm_on(history, f"vm-{number}", "h1")
    vm_on(history, "off", "h1", start=False)
    vm_on(history, "ci", "h1", eviction="restart")
    vm_on(history, "cattle", "h1", eviction="stop")
    start(history, "h1")
    found = run(history)
    assert set(results(found).values()) == {"moved", "stopped"}
    assert found["cattle"].result == "stopped"
    assert all(entry.host in (H2, H3) for name, entry in found.items() if name != "cattle")
    assert drain(history).outcome == "done"
    assert history.fleet.hosts[H1].reservations.keys() == {VmId("vm-cattle")}
    again = plan(history, "h1", drain=DrainId("drain-2"))
    assert (again.moves, again.blocked) == ((), ())


def test_a_wave_begins_when_the_guests_of_the_one_before_were_checked(history: History) -> None:
    for number in range(6):
        vm_on(history, f"vm-{number}", "h1")
    first = {move.vm for move in start(history, "h1").plan.moves if move.wave == 1}  # type: ignore[union-attr]

    def in_order() -> None:
        begun = set(drain(history).begun)
        assert begun <= first or begun.isdisjoint(first)

    run(history, each=in_order)


def test_one_vms_failure_never_stops_the_rest(history: History) -> None:
    unlucky = vm_on(history, "unlucky", "h1")
    for number in range(5):
        vm_on(history, f"vm-{number}", "h1")
    start(history, "h1")
    words = "operation failed: guest CPU doesn't match specification"
    found = run(
        history,
        answers={unlucky: refusing("migration-failed", words)},
        sees={unlucky: stayed(history, unlucky)},
    )
    assert found["unlucky"].result == "failed"
    assert (found["unlucky"].code, found["unlucky"].message) == ("migration-failed", words)
    assert found["unlucky"].host == H1
    assert [result for name, result in results(found).items() if name != "unlucky"] == ["moved"] * 5
    assert drain(history).outcome == "incomplete"


def test_a_guest_that_is_not_ready_after_its_move_counts_as_failed_where_it_is(history: History) -> None:
    vm = vm_on(history, "web", "h1")
    start(history, "h1")
    found = run(history, answers={vm: never_ready})["web"]
    assert (found.result, found.code, found.host) == ("failed", "not-ready", H2)


def test_with_abort_the_first_failure_ends_the_drain(history: History) -> None:
    vms = [vm_on(history, f"vm-{number}", "h1") for number in range(6)]
    start(history, "h1", on_blocked="abort")
    found = run(history, answers={vms[0]: refusing("libvirt-refused", "no")}, sees={vms[0]: stayed(history, vms[0])})
    assert drain(history).outcome == "aborted"
    assert found["vm-0"].result == "failed"
    assert {results(found)[f"vm-{number}"] for number in (1, 2, 3)} == {"moved"}
    assert {results(found)[f"vm-{number}"] for number in (4, 5)} == {"left"}


def test_with_stop_a_vm_that_cannot_move_is_shut_down(history: History) -> None:
    pet, unlucky = vm_on(history, "pet", "h1", eviction="never"), vm_on(history, "unlucky", "h1")
    start(history, "h1", on_blocked="stop")
    answers = {unlucky: refusing("libvirt-refused", "no")}
    found = run(history, answers=answers, sees={unlucky: stayed(history, unlucky)})
    assert results(found) == {"pet": "stopped", "unlucky": "stopped"}
    assert history.fleet.vms[pet].power == history.fleet.vms[unlucky].power == "off"
    assert drain(history).outcome == "done"


def test_with_skip_the_rest_moves(history: History) -> None:
    vm_on(history, "pet", "h1", eviction="never")
    vm_on(history, "web", "h1")
    start(history, "h1", on_blocked="skip")
    found = run(history)
    assert results(found) == {"pet": "blocked", "web": "moved"}
    assert found["pet"].causes[0].text() == "its eviction is never"


def test_a_move_goes_elsewhere_if_its_destination_was_closed_meanwhile(history: History) -> None:
    vm_on(history, "web", "h1")
    (move,) = start(history, "h1").plan.moves  # type: ignore[union-attr]
    assert move.destination == H2
    history.record(stream("host", H2), HostCordoned(reason="raid"))
    assert run(history)["web"].host == H3


def test_a_vm_that_nobody_can_take_any_more_is_blocked_with_all_causes(history: History) -> None:
    vm_on(history, "web", "h1")
    start(history, "h1")
    history.record(stream("host", H2), HostCordoned(reason="raid"))
    lose(history, H3)
    found = run(history)["web"]
    assert found.result == "blocked"
    assert {cause.text() for cause in found.causes} == {"h2: cordoned (raid)", "h3: agent unreachable"}


def test_a_drain_waits_for_a_silent_host_by_name_and_not_for_ever(history: History) -> None:
    vm_on(history, "web", "h1")
    start(history, "h1")
    lose(history, H1)
    answer = draining(history.fleet, drain(history), history.now)
    assert [(wait.name, wait.on) for wait in answer.waits] == [("web", "h1, which is unreachable")]
    assert answer.again is not None
    found = run(history)["web"]
    assert (found.result, found.causes[0].why) == ("blocked", "waited in vain for h1, which is unreachable")


def test_a_host_that_comes_back_in_time_is_waited_for(history: History) -> None:
    vm_on(history, "web", "h1")
    start(history, "h1")
    lose(history, H1)
    look(history)
    history.wait(30)
    session = history.fleet.hosts[H1].session
    assert session is not None
    history.record(stream("host", H1), HostReachable(session=session))
    assert run(history)["web"].result == "moved"


def test_a_busy_vm_is_waited_for(history: History) -> None:
    vm = vm_on(history, "web", "h1")
    ask(history, vm, StopVm())
    start(history, "h1")
    assert not look(history)
    assert "stop" in draining(history.fleet, drain(history), history.now).waits[0].on
    drive(history, vm)
    assert run(history)["web"].result == "moved"
    assert history.fleet.vms[vm].power == "off"


def test_a_vm_whose_eviction_became_never_is_left_alone(history: History) -> None:
    vm = vm_on(history, "web", "h1")
    start(history, "h1")
    ask(history, vm, SetEviction(eviction="never"))
    assert run(history)["web"].result == "blocked"


# the end


def test_a_cancelled_drain_begins_nothing_and_takes_back_what_it_can(history: History) -> None:
    vms = [vm_on(history, f"vm-{number}", "h1") for number in range(6)]
    start(history, "h1")
    look(history)
    cancel(history)
    found = run(history, sees={vm: stayed(history, vm) for vm in vms})
    assert set(results(found).values()) == {"left"}
    assert drain(history).outcome == "cancelled"
    for vm in in_flight(history):
        assert drive(history, vm, see=stayed(history, vm)).outcome == "cancelled"
    history.wait(1000)
    assert not look(history)
    assert {history.fleet.vms[vm].host for vm in vms} == {H1}


def test_a_drain_ends_soon_after_its_cancel_whatever_hangs(history: History) -> None:
    vm_on(history, "web", "h1")
    start(history, "h1")
    look(history)
    cancel(history)
    history.wait(4)
    look(history)
    assert drain(history).outcome == "cancelled"
    entry = drain(history).entries[VmId("vm-web")]
    assert (entry.result, entry.code) == ("left", "being-cancelled")


def test_a_move_past_its_point_of_no_return_is_carried_through(history: History) -> None:
    vm = vm_on(history, "web", "h1")
    start(history, "h1")
    look(history)
    while history.fleet.vms[vm].host == H1:
        step(history, vm)
    cancel(history)
    history.wait(4)
    look(history)
    entry = drain(history).entries[vm]
    assert (entry.result, entry.code) == ("left", "point-of-no-return")
    assert drive(history, vm).outcome == "succeeded"


def test_a_deadline_ends_a_drain_with_what_was_waited_for(history: History) -> None:
    for number in range(5):
        vm_on(history, f"vm-{number}", "h1")
    start(history, "h1", deadline=30.0)
    look(history)
    history.wait(31)
    look(history)
    history.wait(4)
    look(history)
    found = drain(history)
    assert found.outcome == "deadline"
    last = found.entries[VmId("vm-vm-4")]
    assert last.result == "left"
    assert last.message == "not begun; it waited for wave 1, which is checked before wave 2 begins"


def test_a_vm_that_came_meanwhile_is_in_the_ledger_too(history: History) -> None:
    vm_on(history, "web", "h1")
    start(history, "h1")
    history.record(stream("host", H1), HostUncordoned())
    vm_on(history, "late", "h1")
    assert results(run(history)) == {"web": "moved", "late": "left"}


# the way back


def test_what_a_drain_moved_away_is_brought_back(history: History) -> None:
    vm_on(history, "web", "h1")
    vm_on(history, "cattle", "h1", eviction="stop")
    start(history, "h1")
    run(history)
    back = DrainId("drain-back")
    command = ActivateHost(bring_back=True)
    history.take(admit_activate(history.fleet, history.fleet.hosts[H1], command, back, WHO, history.now))
    assert history.fleet.hosts[H1].cordoned is None
    assert results(run(history, back)) == {"web": "moved", "cattle": "started"}
    assert {vm.host for vm in history.fleet.vms.values()} == {H1}


def test_an_activated_host_takes_vms_again_and_nothing_moves_by_itself(history: History) -> None:
    vm_on(history, "web", "h1")
    start(history, "h1")
    run(history)
    command = ActivateHost()
    history.take(admit_activate(history.fleet, history.fleet.hosts[H1], command, DrainId("x"), WHO, history.now))
    assert history.fleet.hosts[H1].cordoned is None
    assert not look(history)
