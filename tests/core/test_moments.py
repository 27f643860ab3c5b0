"""Moments as operators write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmorch.core.errors import Rejected
from vmorch.core.moments import moment

NOW = datetime(2026, 11, 20, 14, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("-2h", timedelta(hours=2)),
        ("-3d", timedelta(days=3)),
        ("-1h30m", timedelta(minutes=90)),
        ("-0.5s", timedelta(milliseconds=500)),
        ("-250ms", timedelta(milliseconds=250)),
        ("-1w", timedelta(weeks=1)),
    ],
)
def test_how_long_ago_is_a_time(text: str, ago: timedelta) -> None:
    assert moment(text, NOW) == NOW - ago


def test_positions_and_now_need_no_clock() -> None:
    assert moment("@48204", NOW) == 48204
    assert moment("@0", NOW) == 0
    assert moment("now", NOW) is None


def test_a_time_keeps_its_zone_even_if_its_plus_was_lost_on_the_way() -> None:
    east = datetime(2026, 11, 20, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    assert moment("2026-11-20T14:00:00+02:00", NOW) == east
    assert moment("2026-11-20T14:00:00 02:00", NOW) == east


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad-moment"),
        ("yesterday", "bad-moment"),
        ("@-1", "bad-moment"),
        ("@1e3", "bad-moment"),
        ("-2", "bad-moment"),
        ("-2y", "bad-moment"),
        ("-999999999w", "bad-moment"),
        ("2026-11-20T14:00:00", "bad-moment"),
        ("2026-11-20T14:00:01Z", "future-moment"),
    ],
)
def test_what_names_no_moment_of_the_past_is_refused(text: str, code: str) -> None:
    with pytest.raises(Rejected) as refusal:
        moment(text, NOW)
    assert refusal.value.code == code


@given(st.text(max_size=30))
def test_any_text_is_a_moment_of_the_past_or_refused(text: str) -> None:
    try:
        found = moment(text, NOW)
    except Rejected:
        return
    assert not isinstance(found, datetime) or found <= NOW
