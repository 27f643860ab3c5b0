"""Drains of random clusters: nothing is ever promised twice, nobody meets whom it keeps away from, no group loses more
than its budget allows, and every drain ends with a line for each VM, whatever fails, hangs or is cancelled."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.drains import DRAIN, budget, cancel, in_flight, look, step
from tests.core.drive import drive, moved, well
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.budget import unavailable
from vmorch.core.aggregates.cluster import Policy, PolicySet
from vmorch.core.aggregates.drain import DrainOptions, PlanDrain
from vmorch.core.aggregates.host import HostReachable, HostUnreachable
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, Failed, Observed
from vmorch.core.ids import DrainId, HostId, MiB, VmId, stream
from vmorch.core.messages import HostCommand
from vmorch.core.planning.apartness import apart
from vmorch.core.planning.drain import command_of, plan_drain
from vmorch.core.planning.mobility import blockers
from vmorch.core.planning.undertakings import admit_plan
from vmorch.core.planning.view import view_of
from vmorch.core.spec import Placing

quiet = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Guest:
    host: int
    memory: int
    eviction: str
    app: int
    away: bool
    group: int
    on: bool
    local: bool


guests = st.builds(
    Guest,
    host=st.sampled_from([0, 0, 0, 1, 2, 3]),
    memory=st.sampled_from([512, 1024, 2048, 4096]),
    eviction=st.sampled_from(["live"] * 8 + ["restart"] * 3 + ["stop", "never"]),
    app=st.integers(0, 3),
    away=st.booleans(),
    group=st.integers(0, 2),
    on=st.sampled_from([True, True, True, False]),
    local=st.booleans(),
)


@dataclass(frozen=True)
class Shape:
    hosts: int
    guests: list[Guest]
    limits: tuple[int, int, int]
    allowed: int
    drained: list[int]
    options: dict[str, object] = field(default_factory=dict)


shapes = st.builds(
    Shape,
    hosts=st.integers(2, 5),
    guests=st.lists(guests, min_size=3, max_size=14),
    limits=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8)),
    allowed=st.integers(1, 3),
    drained=st.sampled_from([[0], [0], [0], [0, 1], [1, 2]]),
    options=st.fixed_dictionaries(
        {"on_blocked": st.sampled_from(["skip", "skip", "skip", "stop", "abort"]), "copy_disks": st.booleans()},
        optional={"max_parallel": st.integers(1, 3), "deadline": st.sampled_from([40.0, 200.0, 1000.0, 5000.0])},
    ),
)

seeds = st.integers(0, 10**9)


def built(shape: Shape) -> History:
    """The cluster, with as many of the guests as it takes without breaking a rule from the beginning."""
    history = History()
    for number in range(shape.hosts):
        history.host(f"h{number}", memory=12288)
    history.image()
    out, into, total = shape.limits
    policy = Policy(migrations_out=out, migrations_in=into, migrations=total)
    history.record(stream("cluster", "policy"), PolicySet(policy=policy))
    for number, guest in enumerate(shape.guests):
        app = {"app": f"app-{guest.app}"}
        command = asked(
            f"vm-{number}",
            memory=MiB(guest.memory),
            eviction=guest.eviction,
            labels={**app, "group": str(guest.group)},
            placing=Placing(away_from=app if guest.away else {}),
            storage="local" if guest.local else "shared",
            start=guest.on,
        )
        try:
            vm = history.create(command, on=HostId(f"host-h{guest.host % shape.hosts}"))
        except Rejected:
            continue
        drive(history, vm)
    for group in range(2):
        budget(history, f"group-{group}", shape.allowed, group=str(group))
    return history


class Watch:
    """Looks after each step whether a rule is broken."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.allowed = {
            each.id: max(each.max_unavailable, self._away(each.id)) for each in history.fleet.budgets.values()
        }

    def _away(self, id: str) -> int:
        fleet = self.history.fleet
        return sum(unavailable(vm) for vm in fleet.vms.values() if fleet.budgets[id].covers(vm))

    def __call__(self) -> None:
        fleet = self.history.fleet
        for host in fleet.hosts.values():
            total, promised = host.total(), host.promised()
            assert promised.memory <= total.memory
            assert promised.vcpus <= total.vcpus
            assert promised.local_gib <= total.local_gib
            there = [vm for vm in fleet.vms.values() if vm.host == host.id or host.id in vm.traces]
            assert {vm.id for vm in there} <= set(host.reservations)
            for one in there:
                assert not [other.name for other in there if other.id != one.id and apart(one, other)]
        for id, most in self.allowed.items():
            assert self._away(id) <= most


def begin(history: History, shape: Shape) -> bool:
    hosts = tuple(f"h{number % shape.hosts}" for number in shape.drained)
    command = PlanDrain(hosts=hosts, start=True, **shape.options)  # type: ignore[arg-type]
    try:
        history.take(admit_plan(history.fleet, command, DRAIN, WHO, history.now))
    except Rejected as refusal:
        if refusal.code != "drain-blocked":
            raise
        return False
    return True


def unlucky(chance: random.Random) -> object:
    def answer(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if chance.random() < 0.04:
            code = chance.choice(["libvirt-refused", "interrupted", "not-ready", "migration-failed"])
            return Failed(code=code, message=f"{command.kind} had bad luck")
        return well(index, undo, command)

    return answer


def confused(history: History, vm: VmId, chance: random.Random) -> object:
    """Mostly the truth, sometimes that the guest stayed, rarely something that nobody can make sense of."""
    truth, source = moved(history, vm), history.fleet.vms[vm].host

    def see(host: HostId, round: int) -> Observed | None:
        fate = chance.random()
        if fate < 0.05:
            return None
        if fate < 0.1:
            return Observed(power="running")
        return Observed(power="running" if host == source else "absent") if fate < 0.2 else truth(host, round)

    return see


@quiet
@given(shapes, seeds)
def test_a_drain_keeps_every_rule_in_every_order_and_ends(shape: Shape, seed: int) -> None:
    chance = random.Random(seed)
    history = built(shape)
    watch = Watch(history)
    watch()
    if not begin(history, shape):
        return
    watch()
    for _ in range(4000):
        look(history)
        watch()
        if not history.fleet.drains[DRAIN].running:
            break
        busy = in_flight(history)
        if busy:
            step(history, chance.choice(busy))
            watch()
        else:
            history.wait(7)
    over(history)
    ended = history.fleet.drains[DRAIN]
    if ended.outcome == "done":
        options = ended.options
        plan = plan_drain(view_of(history.fleet), ended.plan.hosts, options)  # type: ignore[union-attr]
        assert (plan.moves, plan.blocked) == ((), ()) or options.on_blocked == "stop"


@quiet
@given(shapes, seeds)
def test_a_drain_ends_whatever_fails_hangs_or_is_cancelled(shape: Shape, seed: int) -> None:
    chance = random.Random(seed)
    history = built(shape)
    watch = Watch(history)
    if not begin(history, shape):
        return
    sees: dict[VmId, object] = {}
    hanging: dict[VmId, int] = {}
    for _ in range(4000):
        look(history)
        watch()
        drain = history.fleet.drains[DRAIN]
        if not drain.running:
            break
        if chance.random() < 0.004 and not drain.ending:
            cancel(history)
        if chance.random() < 0.03:
            lose_or_find(history, chance)
        busy = in_flight(history)
        if not busy:
            history.wait(7)
            continue
        vm = chance.choice(busy)
        if vm not in sees:
            sees[vm] = confused(history, vm, chance)
            hanging[vm] = chance.choice([0, 0, 0, 50])
        if hanging[vm] > 0:
            hanging[vm] -= 1
            history.wait(1)
            continue
        step(history, vm, unlucky(chance), sees[vm])  # type: ignore[arg-type]
        watch()
    over(history)
    while busy := in_flight(history):
        step(history, busy[0])
        watch()
    assert not look(history)


def lose_or_find(history: History, chance: random.Random) -> None:
    host = chance.choice(sorted(history.fleet.hosts.values(), key=lambda host: host.id))
    assert host.session is not None
    lost = HostUnreachable(session=host.session, silent=9)
    history.record(stream("host", host.id), lost if host.agent == "connected" else HostReachable(session=host.session))


def over(history: History) -> None:
    """The drain is over, and its ledger has every VM that it was about, with a reason for each that did not go."""
    drain = history.fleet.drains[DRAIN]
    assert drain.plan is not None
    assert not drain.running, f"no end: {drain}"
    assert drain.outcome is not None
    planned = {each.vm for each in drain.plan.moves} | {each.vm for each in drain.plan.blocked}
    assert planned <= set(drain.entries)
    standing = {vm.id for vm in history.fleet.vms.values() if vm.host in drain.plan.hosts and vm.deleted_at is None}
    assert standing <= set(drain.entries)
    for entry in drain.entries.values():
        if entry.result == "blocked":
            assert entry.causes
        if entry.result in ("failed", "left"):
            assert entry.code or entry.message
        if entry.result == "moved":
            assert entry.host not in drain.plan.hosts


@quiet
@given(shapes)
def test_the_same_cluster_gives_the_same_plan(shape: Shape) -> None:
    history = built(shape)
    hosts = tuple(HostId(f"host-h{number % shape.hosts}") for number in shape.drained)
    command = PlanDrain(hosts=tuple(host.removeprefix("host-") for host in hosts), copy_disks=True)
    history.take(admit_plan(history.fleet, command, DRAIN, WHO, history.now))
    history.take(admit_plan(history.fleet, command, DrainId("again"), WHO, history.now))
    first, second = (history.fleet.drains[id].plan for id in (DRAIN, DrainId("again")))
    assert first is not None
    assert second is not None
    assert (first.moves, first.blocked, first.after) == (second.moves, second.blocked, second.after)
    view = view_of(history.fleet)
    by_id = {host.id: host for host in view.hosts}
    for move in first.moves:
        if move.destination is not None:
            # what the planner reckons in numbers is what the rules say in words
            vm = history.fleet.vms[move.vm]
            asked = command_of(vm, move.how, None, copy_disks=move.copy_disks)
            assert blockers(view, vm, by_id[move.source], by_id[move.destination], asked) == ()


@pytest.mark.parametrize("seed", range(3))
def test_a_crowded_cluster_is_planned_without_a_promise_too_many(seed: int) -> None:
    chance = random.Random(seed)
    guests = [
        Guest(n % 4, chance.choice([1024, 2048, 4000]), "live", n % 4, n % 3 == 0, n % 3, True, False)
        for n in range(24)
    ]
    history = built(Shape(4, guests, (4, 4, 8), 2, [0]))
    plan = plan_drain(view_of(history.fleet), [HostId("host-h0")], DrainOptions())
    arriving: dict[HostId | None, int] = {}
    for move in plan.moves:
        arriving[move.destination] = arriving.get(move.destination, 0) + move.memory
    for id, memory in arriving.items():
        if id is not None:
            host = history.fleet.hosts[id]
            assert host.promised().memory + memory <= host.total().memory
