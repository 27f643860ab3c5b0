"""Sizes, durations, ages and labels: how operators write them and how they are shown.

Pure. Binary units only: a decimal `8G` is refused with the binary figure that was probably meant.
"""

import re
from datetime import UTC, datetime
from typing import Literal

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
_BINARY = {"": 1, "ki": KIB, "mi": MIB, "gi": GIB, "ti": TIB, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

TimeStyle = Literal["rel", "local", "utc"]


def parse_size(text: str) -> int:
    """The bytes of `2Gi`, `512Mi`, `1.5Gi`. Raises ValueError that says what to write instead."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None:
        raise ValueError(f'"{text}" is no size; write for example 512Mi or 8Gi')
    number, unit = match[1], match[2].lower()
    if unit in ("k", "m", "g", "t", "kb", "mb", "gb", "tb"):
        meant = f"{number}{unit[0].upper()}i"
        raise ValueError(f'"{text}" is decimal; did you mean "{meant}"?')
    if unit == "":
        raise ValueError(f'"{text}" has no unit; did you mean "{number}Mi" or "{number}Gi"?')
    if unit not in _BINARY:
        raise ValueError(f'"{text}" has the unknown unit "{match[2]}"; use Ki, Mi, Gi or Ti')
    size = float(number) * _BINARY[unit]
    return int(size)


def parse_size_in(text: str, unit: int, unit_name: str) -> int:
    """A size as a whole number of `unit`. Raises ValueError if it is not one."""
    size = parse_size(text)
    if size % unit:
        raise ValueError(f'"{text}" is not a whole number of {unit_name}')
    return size // unit


def parse_duration(text: str) -> float:
    """The seconds of `30s`, `5m`, `1h30m`, `90`. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw]?)", text.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().lower():
        raise ValueError(f'"{text}" is no duration; write for example 30s, 5m or 1h30m')
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_pair(text: str) -> tuple[str, str]:
    """The two sides of `key=value`. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f'"{text}" is not key=value')
    return key, value


def show_bytes(size: float) -> str:
    """A size in the largest binary unit that leaves at least one: `1.5Gi`, `512Mi`, `0`."""
    for unit, name in ((TIB, "Ti"), (GIB, "Gi"), (MIB, "Mi"), (KIB, "Ki")):
        if size >= unit:
            return f"{_short(size / unit)}{name}"
    return _short(size)


def show_mib(size: float) -> str:
    """MiB as `8Gi` or `512Mi`."""
    return show_bytes(size * MIB)


def show_gib(size: float) -> str:
    """GiB as `40Gi` or `1.5Ti`."""
    return show_bytes(size * GIB)


def show_seconds(seconds: float) -> str:
    """A duration by eye: `0.4s`, `12s`, `1m12s`, `3h5m`, `2d4h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s" if whole % 60 else f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60}m" if whole % 3600 >= 60 else f"{whole // 3600}h"
    hours = whole % 86400 // 3600
    return f"{whole // 86400}d{hours}h" if hours else f"{whole // 86400}d"


def show_age(then: datetime | None, now: datetime) -> str:
    """How long ago, in one unit: `2m`, `9d`. `-` if never; the future counts as now."""
    if then is None:
        return "-"
    seconds = max(0, int((now - then).total_seconds()))
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds // unit}{name}"
    return f"{seconds}s"


def show_time(then: datetime | None, now: datetime, style: TimeStyle) -> str:
    """A moment as its age, or as local or UTC time."""
    if then is None or style == "rel":
        return show_age(then, now)
    at = then.astimezone(UTC if style == "utc" else None)
    return at.strftime("%Y-%m-%d %H:%M:%S") + ("Z" if style == "utc" else "")


def show_labels(labels: dict[str, str]) -> str:
    """Labels as `app=web,tier=gold`, in order of their keys; `-` if there are none."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"


def _short(number: float) -> str:
    return f"{number:.0f}" if number == int(number) or number >= 100 else f"{number:.1f}"
