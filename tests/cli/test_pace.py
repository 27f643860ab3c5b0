"""How a migration or a backup goes, in a line."""

from cli.pace import show_copying, show_pace
from cli.shapes import Pace


def test_a_converging_migration_says_when_it_ends_and_how_long_the_guest_pauses() -> None:
    pace = Pace(
        passes=4, total=64 << 30, remaining=16 << 30, bandwidth=1 << 30, dirty_rate=256 << 20, converging=True,
        left=21.3, downtime=0.14,
    )  # fmt: skip
    assert show_pace(pace) == (
        "pass 4  [###############.....]  16Gi left at 1Gi/s; the guest writes 256Mi/s: "
        "converging, about 21s, pause about 140ms"
    )


def test_one_that_does_not_converge_says_so_loudly() -> None:
    pace = Pace(passes=9, total=100, remaining=50, bandwidth=10, dirty_rate=20, converging=False, throttle=30)
    assert "NOT converging, guest slowed by 30%" in show_pace(pace)


def test_nothing_is_claimed_before_anything_is_known() -> None:
    assert show_pace(Pace()) == "begins"
    assert "first pass" in show_pace(Pace(passes=1, total=100, remaining=50))


def test_a_guest_that_was_switched_over_cannot_go_back() -> None:
    assert "switched over" in show_pace(Pace(passes=3, total=100, remaining=5, postcopy=True, left=1.0))


def test_disks_that_are_copied_say_how_much_is_left_and_for_how_long() -> None:
    pace = Pace(total=4 << 30, remaining=1 << 30, bandwidth=256 << 20)
    assert show_copying(pace) == "[###############.....]  1Gi left at 256Mi/s, about 4.0s"
    assert show_copying(Pace(total=100, remaining=50)) == "[##########..........]  50 left"
    assert show_copying(Pace(total=100, remaining=0)) == "copied; what was written is being read back"
    assert show_copying(Pace()) == "begins"
