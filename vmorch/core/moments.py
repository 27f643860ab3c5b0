"""Moments as operators write them: `now`, `@48204`, `-2h`, `2026-11-20T14:00:00Z`. Pure: the clock is a parameter.

Must not know the log; which position belongs to a time is its answer.
"""

import re
from datetime import datetime, timedelta

from vmorch.core.errors import Rejected
from vmorch.core.ids import Position

_AT = re.compile(r"@([0-9]{1,18})")
_AGO = re.compile(r"-((?:[0-9]{1,9}(?:\.[0-9]{1,3})?(?:ms|[smhdw]))+)")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

NOTATION = "@POSITION, a time such as 2026-11-20T14:00:00Z, or how long ago, such as -2h or -3d"


def moment(text: str, now: datetime) -> Position | datetime | None:
    """The position or the time that `text` names; None for `now`.

    Raises Rejected `bad-moment` for what names none, and `future-moment` for a time that has not come.
    """
    text = text.strip()
    if text == "now":
        return None
    at = _AT.fullmatch(text)
    if at is not None:
        return Position(int(at[1]))
    found = _ago(text, now) if text.startswith("-") else _time(text)
    if found > now:
        raise Rejected("future-moment", f"{text} has not come yet", hint="ask for a moment that is past, or for now")
    return found


def _ago(text: str, now: datetime) -> datetime:
    parts = _AGO.fullmatch(text)
    if parts is None:
        raise _malformed(text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(parts[1]))
    try:
        return now - timedelta(seconds=seconds)
    except OverflowError as error:
        raise _malformed(text) from error


def _time(text: str) -> datetime:
    # a + in a query string means a space to many a client's library
    written = text.replace(" ", "+") if text.count(" ") == 1 and "T" in text else text
    try:
        parsed = datetime.fromisoformat(written)
    except ValueError as error:
        raise _malformed(text) from error
    if parsed.tzinfo is None:
        raise Rejected("bad-moment", f"{text} needs a time zone, such as Z", hint=f"write {NOTATION}")
    return parsed


def _malformed(text: str) -> Rejected:
    return Rejected("bad-moment", f"{text!r} names no moment", hint=f"write {NOTATION}")
