"""Maintenances of random clusters: each ends, the rules hold on the way, and no host is left without a word."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.core.drains import in_flight, step
from tests.core.world import WHO, History
from tests.properties.test_drains import Shape, Watch, built, confused, lose_or_find, quiet, shapes, unlucky
from vmorch.core.aggregates.maintenance import CancelMaintenance, StartMaintenance
from vmorch.core.codec import unpack_event
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Answer, Done, Failed
from vmorch.core.ids import OperationId
from vmorch.core.planning import draining, maintaining, mending
from vmorch.core.planning.acts import Act
from vmorch.core.planning.errands import answered, errand_id
from vmorch.core.planning.upkeep import admit_maintenance, admit_undoing, admit_work_done

ID = "maintenance-1"


@quiet
@given(shapes, st.integers(1, 3), st.booleans(), st.sampled_from([None, 3000.0]), st.integers(0, 10**9))
def test_a_maintenance_ends_whatever_fails_hangs_or_is_cancelled(
    shape: Shape, at_once: int, back: bool, deadline: float | None, seed: int
) -> None:
    chance = random.Random(seed)
    history = built(shape)
    watch = Watch(history)
    hosts = tuple(f"h{number}" for number in range(shape.hosts - 1))
    command = StartMaintenance(hosts=hosts, at_once=at_once, bring_back=back, deadline=deadline, on_blocked="skip")
    try:
        history.take(admit_maintenance(history.fleet, command, ID, WHO, history.now))
    except Rejected:
        return
    for _ in range(6000):
        act(history)
        watch()
        if not history.fleet.maintenances[ID].running:
            break
        live(history, chance)
        watch()
    over(history)


def act(history: History) -> None:
    fleet = history.fleet
    for policy in (mending.mend, draining.policy, maintaining.policy):
        for answer in policy(fleet, history.now):
            if isinstance(answer, Act):
                for each in answer.changes(fleet, history.now, OperationId(f"op-{fleet.position}")):
                    history.record(each.stream, unpack_event(each.event))


def live(history: History, chance: random.Random) -> None:
    """Something happens: to VMs, to hosts, or only time passes."""
    found = history.fleet.maintenances[ID]
    if chance.random() < 0.003 and not found.ending:
        command = CancelMaintenance(bring_back=chance.random() < 0.5)
        history.take(admit_undoing(history.fleet, found, command, history.now))
    if chance.random() < 0.02:
        lose_or_find(history, chance)
    busy = in_flight(history)
    if busy:
        vm = chance.choice(busy)
        step(history, vm, unlucky(chance), confused(history, vm, chance))  # type: ignore[arg-type]
        return
    found = history.fleet.maintenances[ID]
    for host, station in found.stations.items():
        if station.errand is not None and chance.random() < 0.5:
            said: Answer = Done() if chance.random() < 0.9 else Failed(code="hook-failed", message="bad luck")
            history.take(answered(history.fleet, host, errand_id(found, host), said))
            return
        if station.phase == "open" and not found.ending and chance.random() < 0.5:
            history.take(admit_work_done(history.fleet, history.fleet.hosts[host].name))
            return
    history.wait(chance.choice([1, 10, 100]))


def over(history: History) -> None:
    found = history.fleet.maintenances[ID]
    assert found.outcome is not None, f"no end: {found}"
    for host, station in found.stations.items():
        if station.phase == "failed":
            assert station.code
            assert station.message
        if station.phase in ("done", "undone"):
            assert history.fleet.hosts[host].cordoned is None
        if found.outcome in ("done", "cancelled") and station.phase not in ("waiting", "failed"):
            assert station.phase in ("done", "undone")
    if found.outcome == "done":
        assert {station.phase for station in found.stations.values()} == {"done"}
