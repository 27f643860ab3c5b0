"""What schedules keep and delete, over any snapshots and over a simulated year."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.core.drive import drive, well
from tests.core.schedules import automatic, look, scheduled, wanted
from tests.core.world import History
from vmorch.core.aggregates.layering import depth, reductions
from vmorch.core.hostcommands import Answer, Failed
from vmorch.core.messages import HostCommand
from vmorch.core.planning.snapshotting import AT_ONCE, retained, surplus
from vmorch.core.snapshot import Schedule, Snapshot
from vmorch.core.spec import DiskSpec, VmSpec

quiet = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# to explain a failure each line is traced, and a year has too many
long = settings(quiet, max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
YEAR = datetime(2026, 1, 1, tzinfo=UTC)
DISK = DiskSpec(name="vda", size=1)  # type: ignore[arg-type]
SPEC = VmSpec(vcpus=1, max_vcpus=1, memory=512, max_memory=512, disks=(DISK,))  # type: ignore[arg-type]
Span = Callable[[datetime], object]


def hour(moment: datetime) -> object:
    return moment.date(), moment.hour


def day(moment: datetime) -> object:
    return moment.date()


def week(moment: datetime) -> object:
    return moment.isocalendar()[:2]


schedules = st.builds(
    Schedule,
    every=st.just(3600.0),
    last=st.integers(0, 6),
    hourly=st.integers(0, 6),
    daily=st.integers(0, 6),
    weekly=st.integers(0, 6),
).filter(lambda schedule: schedule.most > 0)


@st.composite
def many(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots minutes to weeks apart, in any order, taken by whomever."""
    gaps = draw(st.lists(st.sampled_from([1, 7, 59, 60, 61, 600, 1440, 10080, 40000]), max_size=40))
    made, moment = [], YEAR
    for number, gap in enumerate(gaps):
        moment += timedelta(minutes=gap)
        origin = draw(st.sampled_from(["schedule", "schedule", "schedule", "operator", "safety"]))
        made.append(snapshot(number + 1, moment, origin))
    return draw(st.permutations(made))


def snapshot(number: int, moment: datetime, origin: str = "schedule") -> Snapshot:
    return Snapshot(
        name=f"s{number}", number=number, layers={}, spec=SPEC, power="off", quality="off",
        origin=origin, taken_at=moment,  # type: ignore[arg-type]
    )  # fmt: skip


def taken(snapshots: Iterable[Snapshot]) -> dict[str, datetime]:
    return {each.name: each.taken_at for each in snapshots if each.origin == "schedule" and each.taken_at is not None}


@given(schedules, many())
def test_what_is_kept_and_what_is_too_many_are_all_that_the_schedule_took(
    schedule: Schedule, snapshots: list[Snapshot]
) -> None:
    kept, over = retained(schedule, snapshots), surplus(schedule, snapshots)
    assert kept | set(over) == set(taken(snapshots))
    assert not kept & set(over)
    assert len(set(over)) == len(over)


@given(schedules, many())
def test_no_more_are_kept_than_promised_and_the_newest_always_is(
    schedule: Schedule, snapshots: list[Snapshot]
) -> None:
    mine = taken(snapshots)
    assume(mine)
    kept = retained(schedule, snapshots)
    assert max(mine, key=lambda name: mine[name]) in kept
    assert len(kept) <= schedule.most


@given(schedules, many())
def test_after_a_deletion_there_is_nothing_to_delete(schedule: Schedule, snapshots: list[Snapshot]) -> None:
    over = surplus(schedule, snapshots)
    left = [each for each in snapshots if each.name not in over]
    assert surplus(schedule, left) == ()
    assert retained(schedule, left) == retained(schedule, snapshots)


@given(schedules, many())
def test_the_newest_of_each_of_the_latest_spans_is_kept_and_nothing_else(
    schedule: Schedule, snapshots: list[Snapshot]
) -> None:
    mine = taken(snapshots)
    newest_first = sorted(mine, key=lambda name: mine[name], reverse=True)
    promised = set(newest_first[: schedule.last])
    spans: tuple[tuple[int, Span], ...] = ((schedule.hourly, hour), (schedule.daily, day), (schedule.weekly, week))
    for most, span in spans:
        newest_of: dict[object, str] = {}
        for name in newest_first:
            newest_of.setdefault(span(mine[name]), name)
        promised |= set(list(newest_of.values())[:most])
    assert retained(schedule, snapshots) == promised


@long
@given(schedules, st.integers(0, 3600 * 24 * 7), st.sampled_from([3600, 3000, 7200]))
def test_over_a_year_every_span_that_is_promised_is_covered(schedule: Schedule, offset: int, every: int) -> None:
    start = YEAR + timedelta(seconds=offset)
    held: dict[str, Snapshot] = {}
    for number in range(366 * 24 * 3600 // every):
        moment = start + timedelta(seconds=number * every)
        made = snapshot(number + 1, moment)
        held[made.name] = made
        for name in surplus(schedule, held.values()):
            del held[name]
        assert len(held) <= schedule.most
        if number % 97 and moment < start + timedelta(days=365):
            continue
        there = taken(held.values()).values()
        promises: tuple[tuple[int, Span, timedelta], ...] = (
            (schedule.hourly, hour, timedelta(seconds=every)),
            (schedule.daily, day, timedelta(days=1)),
            (schedule.weekly, week, timedelta(weeks=1)),
        )
        for most, span, length in promises:
            for back in range(most):
                earlier = moment - back * length
                if earlier >= start + timedelta(seconds=every):
                    assert span(earlier) in {span(each) for each in there}
        newest = sorted(there)[-1]
        assert newest == moment


@quiet
@given(
    st.lists(
        st.tuples(st.sampled_from([600, 1800, 7200]), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=8
    ),
    st.lists(st.sampled_from([5, 30, 60, 900, 4000, 100_000]), min_size=5, max_size=40),
    st.randoms(use_true_random=False),
)
def test_whatever_fails_schedules_are_kept_to_without_haste_and_nothing_piles_up(
    wishes: list[tuple[int, int, int]], waits: list[int], chance: object
) -> None:
    history = History()
    history.host("h1", cpus=64, memory=65536)
    history.image()
    for number, (every, last, daily) in enumerate(wishes):
        scheduled(history, f"vm-{number}", every=every, last=last, daily=daily)

    def unlucky(index: int, undo: bool, command: HostCommand) -> Answer:
        if chance.random() < 0.1:  # type: ignore[attr-defined]
            return Failed(code="libvirt-refused", message="bad luck")
        return well(index, undo, command)

    for wait in waits:
        rounds = 0
        while look(history):
            rounds += 1
            assert rounds < 2 + 3 * len(wishes), "something is tried without a pause"
            busy = [vm for vm in history.fleet.vms.values() if vm.active is not None]
            verbs = [vm.operations[vm.active].verb for vm in busy if vm.active is not None]
            assert verbs.count("snapshot") <= AT_ONCE
            assert verbs.count("delete-snapshot") <= AT_ONCE
            for vm in busy:
                drive(history, vm.id, unlucky)
        history.wait(wait)
    # once nothing fails any more, all of it is as the schedules say
    history.wait(100_000)
    while look(history):
        for vm in [each for each in history.fleet.vms.values() if each.active is not None]:
            drive(history, vm.id)
    history.wait(20)
    assert wanted(history) == []
    for vm in history.fleet.vms.values():
        assert vm.schedule is not None
        assert 1 <= len(automatic(vm)) <= vm.schedule.most
        assert list(reductions(vm)) == []
        assert depth(vm) == len(automatic(vm)) + 1
