"""Maintenance: hosts emptied, worked on and returned, in groups that are safe together, until the first failure."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.core.drains import budget, in_flight, step, vm_on
from tests.core.world import WHO, History
from vmorch.core.aggregates.host import HostUnreachable, SessionStarted
from vmorch.core.aggregates.maintenance import CancelMaintenance, Maintenance, StartMaintenance
from vmorch.core.codec import unpack_event
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Answer, Done, Failed
from vmorch.core.ids import HostId, MiB, OperationId, SessionId, stream
from vmorch.core.planning import draining, maintaining
from vmorch.core.planning.acts import Act
from vmorch.core.planning.errands import answered, errand_id
from vmorch.core.planning.undertakings import check_idle
from vmorch.core.planning.upkeep import admit_maintenance, admit_undoing, admit_work_done

ID = "maintenance-1"
H1, H2, H3, H4 = (HostId(f"host-h{number}") for number in (1, 2, 3, 4))
Says = Callable[[HostId, str], Answer | None]


@pytest.fixture
def history() -> History:
    history = History()
    for name in ("h1", "h2", "h3", "h4"):
        history.host(name)
    history.image()
    return history


def begin(history: History, *hosts: str, **fields: object) -> Maintenance:
    command = StartMaintenance(hosts=hosts, **fields)  # type: ignore[arg-type]
    history.take(admit_maintenance(history.fleet, command, ID, WHO, history.now))
    return now(history)


def now(history: History) -> Maintenance:
    return history.fleet.maintenances[ID]


def phases(history: History) -> dict[str, str]:
    return {history.fleet.hosts[host].name: station.phase for host, station in now(history).stations.items()}


def well(_host: HostId, _errand: str) -> Answer | None:
    return Done()


def run(history: History, says: Says = well, limit: int = 500) -> None:
    """Go on until everybody waits for the operator, for time, or for nothing any more."""
    for _ in range(limit):
        before = history.fleet.position
        for answer in (*draining.policy(history.fleet, history.now), *maintaining.policy(history.fleet, history.now)):
            if isinstance(answer, Act):
                changes = answer.changes(history.fleet, history.now, OperationId(f"op-{history.fleet.position}"))
                for each in changes:
                    history.record(each.stream, unpack_event(each.event))
        for vm in in_flight(history):
            step(history, vm)
        for host, station in now(history).stations.items():
            said = says(host, station.errand) if station.errand is not None else None
            if said is not None:
                history.take(answered(history.fleet, host, errand_id(now(history), host), said))
        if history.fleet.position == before:
            return
    raise AssertionError("no rest")


def done(history: History, host: str) -> None:
    history.take(admit_work_done(history.fleet, host))


def restart(history: History, host: HostId, **facts: object) -> None:
    known = history.fleet.hosts[host].facts
    assert known is not None
    session = SessionId(f"session-{history.fleet.position}")
    history.record(stream("host", host), SessionStarted(session=session, facts=replace(known, **facts)))


def test_a_host_is_emptied_opened_and_returned(history: History) -> None:
    vm_on(history, "web", "h1")
    begin(history, "h1")
    run(history)
    assert phases(history) == {"h1": "open"}
    assert history.fleet.hosts[H1].cordoned is not None
    assert history.fleet.vms[in_vm(history, "web")].host == H2
    done(history, "h1")
    run(history)
    assert phases(history) == {"h1": "done"}
    assert now(history).outcome == "done"
    assert history.fleet.hosts[H1].cordoned is None
    assert history.fleet.vms[in_vm(history, "web")].host == H2


def in_vm(history: History, name: str) -> str:
    return history.fleet.find_vm(name).id


def test_vms_come_back_if_that_is_asked_and_stopped_ones_are_started_anyway(history: History) -> None:
    vm_on(history, "web", "h1")
    vm_on(history, "cattle", "h1", eviction="stop")
    begin(history, "h1", bring_back=True)
    run(history)
    done(history, "h1")
    run(history)
    assert {vm.name: (vm.host, vm.power) for vm in history.fleet.vms.values()} == {
        "web": (H1, "running"),
        "cattle": (H1, "running"),
    }


def test_hosts_go_one_after_another_unless_more_may_be_away(history: History) -> None:
    for number in (1, 2, 3):
        vm_on(history, f"web-{number}", f"h{number}")
    begin(history, "h1", "h2", "h3")
    run(history)
    assert phases(history) == {"h1": "open", "h2": "waiting", "h3": "waiting"}
    done(history, "h1")
    run(history)
    assert phases(history) == {"h1": "done", "h2": "open", "h3": "waiting"}


@pytest.mark.parametrize(("memory", "together"), [(6000, 1), (3000, 2)])
def test_a_group_is_as_large_as_it_is_safe(history: History, memory: int, together: int) -> None:
    # with so many away, the others still have room for all, and one of them more could be lost
    for number in (1, 2, 3, 4):
        vm_on(history, f"web-{number}", f"h{number}", memory=MiB(memory))
    made = begin(history, "h1", "h2", "h3", "h4", at_once=4)
    assert {len(group) for group in made.groups} == {together}
    run(history)
    away = [name for name, phase in phases(history).items() if phase == "open"]
    assert len(away) == together


def test_the_first_failure_stops_the_run(history: History) -> None:
    begin(history, "h1", "h2")

    def broken(host: HostId, errand: str) -> Answer | None:
        return Failed(code="hook-failed", message="disk is not clean") if errand == "before" else Done()

    run(history, broken)
    assert phases(history) == {"h1": "failed", "h2": "waiting"}
    station = now(history).stations[H1]
    assert (station.code, station.message) == ("hook-failed", "disk is not clean")
    assert now(history).outcome == "failed"
    assert history.fleet.hosts[H1].cordoned is not None
    assert history.fleet.hosts[H2].cordoned is None


def test_a_host_that_came_back_smaller_stays_out_of_service(history: History) -> None:
    begin(history, "h1")
    run(history)
    restart(history, H1, memory=MiB(8000))
    done(history, "h1")
    run(history)
    assert phases(history) == {"h1": "checking"}
    (wait,) = maintaining.maintaining(history.fleet, now(history), history.now).waits
    assert wait.on == "h1 to be well: it has 8000 MiB of memory, and had 16384"
    history.wait(maintaining.CHECKING.total_seconds())
    run(history)
    assert now(history).stations[H1].code == "host-ailing"
    assert now(history).outcome == "failed"


def test_a_host_may_be_away_while_it_is_worked_on(history: History) -> None:
    begin(history, "h1")
    run(history)
    history.record(stream("host", H1), HostUnreachable(session=history.fleet.hosts[H1].session, silent=9))
    history.wait(100_000)
    run(history)
    assert phases(history) == {"h1": "open"}
    done(history, "h1")
    run(history, lambda host, errand: None)
    assert phases(history) == {"h1": "finishing"}
    restart(history, H1)
    run(history)
    assert phases(history) == {"h1": "done"}


def test_a_host_that_never_comes_back_fails_by_name(history: History) -> None:
    begin(history, "h1")
    run(history)
    done(history, "h1")
    run(history, lambda host, errand: None)
    history.wait(maintaining.HOOKING.total_seconds())
    run(history, lambda host, errand: None)
    assert now(history).stations[H1].code == "host-silent"


def test_a_libvirt_that_does_not_answer_keeps_the_host_out(history: History) -> None:
    begin(history, "h1")
    run(history)
    done(history, "h1")

    def away(host: HostId, errand: str) -> Answer | None:
        return Failed(code="libvirt-away", message="Connection refused") if errand == "probe" else Done()

    run(history, away)
    assert phases(history) == {"h1": "checking"}
    history.wait(6)
    run(history)
    assert phases(history) == {"h1": "done"}


def test_a_vm_that_stays_fails_its_host(history: History) -> None:
    vm_on(history, "pet", "h1", eviction="never")
    with pytest.raises(Rejected, match="could not be moved"):
        begin(history, "h1")
    begin(history, "h1", on_blocked="skip")
    run(history)
    assert phases(history) == {"h1": "open"}


def test_a_budget_holds_for_a_fleet_too(history: History) -> None:
    budget(history, "web", 1, app="web")
    for number in (1, 2):
        vm_on(history, f"web-{number}", f"h{number}", labels={"app": "web"})
    begin(history, "h1", "h2", at_once=2)
    run(history)
    assert phases(history) == {"h1": "open", "h2": "open"}


@pytest.mark.parametrize("bring_back", [False, True])
def test_a_cancelled_maintenance_returns_its_hosts(history: History, bring_back: bool) -> None:
    vm_on(history, "web", "h1")
    begin(history, "h1", "h2")
    run(history)
    cancel = CancelMaintenance(bring_back=bring_back)
    history.take(admit_undoing(history.fleet, now(history), cancel, history.now))
    asked: list[str] = []

    def says(host: HostId, errand: str) -> Answer | None:
        asked.append(errand)
        return Failed(code="hook-failed", message="no") if errand == "after" else Done()

    run(history, says)
    assert asked == ["after"]
    assert phases(history) == {"h1": "undone", "h2": "waiting"}
    assert now(history).outcome == "cancelled"
    assert history.fleet.hosts[H1].cordoned is None
    assert history.fleet.find_vm("web").host == (H1 if bring_back else H2)


def test_a_maintenance_cancelled_in_its_drain_takes_that_back(history: History) -> None:
    for number in range(6):
        vm_on(history, f"web-{number}", "h1")
    begin(history, "h1")
    for answer in maintaining.policy(history.fleet, history.now):
        assert isinstance(answer, Act)
        history.take(answer.changes(history.fleet, history.now, OperationId("drain-1")))
    assert phases(history) == {"h1": "draining"}
    history.take(admit_undoing(history.fleet, now(history), CancelMaintenance(), history.now))
    run(history)
    assert now(history).outcome == "cancelled"
    assert history.fleet.hosts[H1].cordoned is None


def test_a_deadline_ends_it_with_what_it_waited_for(history: History) -> None:
    begin(history, "h1", "h2", deadline=600.0)
    run(history)
    history.wait(601)
    run(history)
    assert now(history).outcome == "deadline"
    assert now(history).stations[H1].message == "open: it waited for the operator: vmorch host maintenance done h1"
    assert now(history).stations[H2].message == "waiting: not begun"
    assert history.fleet.hosts[H1].cordoned is not None


def test_a_host_in_maintenance_is_left_to_it(history: History) -> None:
    begin(history, "h1")
    run(history)
    with pytest.raises(Rejected, match="in maintenance"):
        check_idle(history.fleet, history.fleet.hosts[H1])
    done(history, "h1")
    with pytest.raises(Rejected, match="not open for work") as caught:
        done(history, "h1")
    assert caught.value.code == "not-open"


def test_an_answer_that_nobody_waits_for_adds_nothing(history: History) -> None:
    begin(history, "h1")
    run(history, lambda host, errand: None)
    id = errand_id(now(history), H1)
    assert answered(history.fleet, H2, id, Done()) == []
    history.take(answered(history.fleet, H1, id, Done()))
    assert answered(history.fleet, H1, id, Done()) == []
