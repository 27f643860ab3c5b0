"""Where a guest is after a migration, by what both hosts show; and whether one under way will end."""

from typing import get_args

import pytest
from msgspec.structs import replace

from vmorch.core.hostcommands import Observed, Passage, Sample
from vmorch.core.migration import TABLE, Cell, Track, Verdict, follow, judge, pace, steer

CELLS: tuple[Cell, ...] = get_args(Cell)
PASSAGE = Passage(encrypted=True, within=600, stall=60)


def seen(power: Cell, **more: object) -> Observed:
    return Observed(power=power, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "destination", "verdict"),
    [
        ("absent", "absent", "unknown"), ("absent", "off", "moved"), ("absent", "paused", "moved"),
        ("absent", "running", "moved"), ("off", "absent", "stayed"), ("off", "off", "stayed"),
        ("off", "paused", "unknown"), ("off", "running", "moved"), ("paused", "absent", "stayed"),
        ("paused", "off", "stayed"), ("paused", "paused", "unknown"), ("paused", "running", "moved"),
        ("running", "absent", "stayed"), ("running", "off", "stayed"), ("running", "paused", "stayed"),
        ("running", "running", "unknown"),
    ],
)  # fmt: skip
def test_each_of_the_sixteen_cells_says_whose_the_guest_is(
    source: Cell, destination: Cell, verdict: Verdict
) -> None:
    assert judge(seen(source), seen(destination), patient=False).verdict == verdict


def test_the_table_has_every_cell() -> None:
    assert set(TABLE) == {(here, there) for here in CELLS for there in CELLS}


def test_a_guest_that_runs_is_never_judged_to_be_elsewhere() -> None:
    for here in CELLS:
        assert judge(seen("running"), seen(here), patient=False).verdict != "moved"
        assert judge(seen(here), seen("running"), patient=False).verdict != "stayed"


def test_an_end_that_cannot_be_seen_is_looked_at_again_and_then_unknown() -> None:
    for blind in (None, Observed(power="unknown")):
        for here in CELLS:
            assert judge(blind, seen(here), patient=True).verdict == "again"
            assert judge(seen(here), blind, patient=True).verdict == "again"
            assert judge(blind, seen(here), patient=False).verdict == "unknown"
            assert judge(seen(here), blind, patient=False).verdict == "unknown"


def test_nothing_is_judged_while_the_source_still_migrates() -> None:
    for here in CELLS:
        for there in CELLS:
            assert judge(seen(here, moving=True), seen(there), patient=True).verdict == "again"
            assert judge(seen(here, moving=True), seen(there), patient=False).verdict == "unknown"


def test_a_guest_that_hangs_in_a_switch_over_to_nobody_is_its_sources_in_the_end() -> None:
    source = seen("paused", reason="migration", moving=True)
    assert judge(source, seen("absent"), patient=True).verdict == "again"
    assert judge(source, seen("absent"), patient=False).verdict == "stayed"
    for there in ("off", "paused", "running"):
        assert judge(source, seen(there), patient=False).verdict == "unknown"


def test_two_running_copies_are_not_looked_at_again_but_told_at_once() -> None:
    assert judge(seen("running"), seen("running"), patient=True).verdict == "unknown"


def test_a_source_whose_memory_is_still_needed_is_not_given_up() -> None:
    source = seen("paused", reason="postcopy failed")
    assert judge(source, seen("running"), patient=True).verdict == "again"
    assert judge(source, seen("running"), patient=False).verdict == "unknown"


def test_a_crashed_source_counts_as_off() -> None:
    assert judge(Observed(power="crashed"), seen("absent"), patient=False).verdict == "stayed"


def test_a_passage_is_converging_when_less_is_written_than_carried() -> None:
    sample = Sample(elapsed=10, passes=3, remaining=100 << 20, bandwidth=50 << 20, dirty_rate=10 << 20)
    assert pace(sample).converging is True
    assert pace(sample).left == pytest.approx(2.5)
    slower = pace(replace(sample, dirty_rate=60 << 20))
    assert (slower.converging, slower.left) == (False, None)


def test_nobody_can_tell_in_the_first_pass() -> None:
    first = pace(Sample(elapsed=1, passes=1, remaining=100 << 20, bandwidth=50 << 20))
    assert first.converging is None
    assert first.left == pytest.approx(2.0)


def test_a_saw_tooth_whose_lows_fall_is_no_stall() -> None:
    track = Track()
    for second in range(0, 600, 10):
        remaining = (600 - second + (300 if second % 30 else 0)) << 20
        sample = Sample(elapsed=second, passes=2, remaining=remaining)
        track = follow(track, sample)
        assert steer(track, sample, replace(PASSAGE, within=10_000)) == ("go-on", "")


def test_a_passage_without_a_new_low_is_given_up_or_switched_over_as_was_chosen() -> None:
    track = follow(Track(), Sample(elapsed=1, passes=2, remaining=50 << 20))
    later = Sample(elapsed=62, passes=9, remaining=70 << 20)
    track = follow(track, later)
    assert steer(track, later, PASSAGE)[0] == "abort"
    assert steer(track, later, replace(PASSAGE, on_stall="postcopy"))[0] == "postcopy"
    assert "no progress for 61 s" in steer(track, later, PASSAGE)[1]


def test_a_harder_throttle_is_progress() -> None:
    track = follow(Track(), Sample(elapsed=1, passes=2, remaining=50 << 20, throttle=20))
    harder = Sample(elapsed=50, passes=5, remaining=60 << 20, throttle=30)
    track = follow(track, harder)
    assert steer(track, replace(harder, elapsed=90), PASSAGE)[0] == "go-on"


def test_after_the_switch_over_there_is_no_way_back() -> None:
    late = Sample(elapsed=10_000, passes=9, remaining=1, postcopy=True)
    assert steer(Track(), late, PASSAGE)[0] == "go-on"


def test_the_limit_ends_even_a_passage_that_makes_progress() -> None:
    sample = Sample(elapsed=600, passes=2, remaining=1)
    assert steer(follow(Track(), sample), sample, PASSAGE)[0] == "abort"
