"""Placement: who can take a VM, who should, and the reason that is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.world import History, asked
from vmorch.core.aggregates.host import HostCordoned, HostLabelled, HostUnreachable, Reservation
from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId, MiB, VmId, stream
from vmorch.core.operations.create import CreateVm, spec_of
from vmorch.core.planning.placement import Placement, place
from vmorch.core.planning.view import view_of
from vmorch.core.spec import Placing


def placed(history: History, command: CreateVm) -> Placement:
    image = history.fleet.find_image("tiny")
    assert image.pin is not None
    return place(view_of(history.fleet), spec_of(command, VmId("vm-x"), image.pin), command.labels)


def reasons(history: History, command: CreateVm) -> dict[str, str]:
    with pytest.raises(Rejected) as caught:
        placed(history, command)
    assert caught.value.code == "no-host-fits"
    return caught.value.facts


@pytest.fixture
def history() -> History:
    history = History()
    history.host("h1")
    history.host("h2")
    history.image()
    return history


def test_the_emptier_host_is_chosen(history: History) -> None:
    first = history.create(asked("a", memory=MiB(8192)))
    chosen = placed(history, asked("b")).host.id
    assert chosen != history.fleet.vms[first].host


def test_a_cordoned_host_receives_no_vms(history: History) -> None:
    history.record(stream("host", "host-h1"), HostCordoned(reason="raid"))
    assert placed(history, asked("a")).host.name == "h2"


def test_an_unreachable_host_receives_no_vms(history: History) -> None:
    session = history.fleet.hosts[HostId("host-h1")].session
    history.record(stream("host", "host-h1"), HostUnreachable(session=session, silent=20))
    assert placed(history, asked("a")).host.name == "h2"


def test_vms_that_keep_away_from_each_other_stand_apart_either_way_round(history: History) -> None:
    away = Placing(away_from={"app": "db"})
    history.create(asked("db-1", labels={"app": "db"}, placing=away))
    second = history.create(asked("db-2", labels={"app": "db"}, placing=away))
    assert history.fleet.vms[second].host != history.fleet.vms[VmId("vm-db-1")].host
    assert set(reasons(history, asked("db-3", labels={"app": "db"})).values()) == {
        "must keep away from db-1",
        "must keep away from db-2",
    }


def test_a_host_label_is_obeyed(history: History) -> None:
    history.record(stream("host", "host-h2"), HostLabelled(labels={"disk": "ssd"}))
    assert placed(history, asked("a", placing=Placing(host_labels={"disk": "ssd"}))).host.name == "h2"


def test_when_nothing_fits_every_host_says_why(history: History) -> None:
    history.record(stream("host", "host-h1"), HostCordoned(reason=""))
    assert reasons(history, asked("a", memory=MiB(999_999))) == {
        "h1": "cordoned",
        "h2": "needs 999999 MiB, 16384 left of 16384",
    }


def test_the_same_question_gets_the_same_answer(history: History) -> None:
    assert placed(history, asked("a")) == placed(history, asked("a"))


sizes = st.tuples(st.integers(1, 16), st.integers(64, 8192), st.integers(1, 40))


@given(st.lists(sizes, max_size=40))
def test_no_sequence_of_creates_promises_more_than_a_host_has(wanted: list[tuple[int, int, int]]) -> None:
    history = History()
    for name in ("h1", "h2", "h3"):
        history.host(name)
    history.image()
    refused: set[str] = set()
    for index, (vcpus, memory, disk) in enumerate(wanted):
        try:
            history.create(asked(f"vm-{index}", vcpus=vcpus, memory=MiB(memory), disk=disk))
        except Rejected as refusal:
            refused.add(refusal.code)
    assert refused <= {"no-host-fits"}
    for host in history.fleet.hosts.values():
        total, promised = host.total(), host.promised()
        assert promised.vcpus <= total.vcpus
        assert promised.memory <= total.memory
        assert promised.local_gib <= total.local_gib
        held = {vm for vm, state in history.fleet.vms.items() if state.host == host.id}
        assert held == set(host.reservations)


def test_a_promise_covers_what_a_vm_can_grow_to_while_it_runs() -> None:
    history = History()
    host = history.host("h1")
    history.image()
    vm = history.create(asked("a", max_memory=MiB(4096), max_vcpus=4))
    promise = history.fleet.hosts[host].reservations[vm]
    assert promise == Reservation(vcpus=4, memory=MiB(4096), local_gib=1, shared_gib=0)  # type: ignore[arg-type]
