"""How operators write sizes and durations, and how they are shown."""

from datetime import UTC, datetime, timedelta

import pytest

from cli.units import (
    GIB,
    MIB,
    parse_duration,
    parse_size,
    parse_size_in,
    show_age,
    show_bytes,
    show_mib,
    show_seconds,
    show_time,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2Gi", 2 * GIB), ("512Mi", 512 * MIB), ("1.5Gi", 1536 * MIB), ("1ti", 1024 * GIB), ("4 GiB", 4 * GIB)],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "meant"), [("8G", '"8Gi"'), ("8gb", '"8Gi"'), ("512M", '"512Mi"'), ("512", '"512Mi"')]
)
def test_a_decimal_size_is_refused_with_the_binary_one(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as refused:
        parse_size(text)
    assert meant in str(refused.value)


@pytest.mark.parametrize("text", ["", "Gi", "-2Gi", "2Xi", "two"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|unit"):
        parse_size(text)


def test_a_size_must_be_a_whole_number_of_its_unit() -> None:
    assert parse_size_in("2Gi", MIB, "Mi") == 2048
    with pytest.raises(ValueError, match="whole number of Gi"):
        parse_size_in("1.5Gi", GIB, "Gi")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("90", 90), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-3s", "3s!"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_sizes_are_shown_in_the_largest_unit() -> None:
    assert [show_bytes(0), show_bytes(1536), show_bytes(350 * MIB), show_mib(8192), show_mib(1536)] == [
        "0",
        "1.5Ki",
        "350Mi",
        "8Gi",
        "1.5Gi",
    ]


def test_durations_are_shown_by_eye() -> None:
    shown = [show_seconds(s) for s in (0.41, 9.44, 12.7, 72, 120, 3660, 90061)]
    assert shown == ["0.4s", "9.4s", "12s", "1m12s", "2m", "1h1m", "1d1h"]


def test_ages_have_one_unit_and_never_count_below_zero() -> None:
    at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    ages = [show_age(at - timedelta(seconds=s), at) for s in (-5, 59, 125, 7200, 9 * 86400)]
    assert ages == ["0s", "59s", "2m", "2h", "9d"]
    assert show_age(None, at) == "-"
    assert show_time(at, at, "utc") == "2026-11-20 12:00:00Z"
