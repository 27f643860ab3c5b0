"""Answers about the past, as far as they are shown. What a newer server adds is ignored."""

from datetime import datetime
from typing import Any

from msgspec import Struct


class Change(Struct, frozen=True):
    """One field that differs, and the last event that changed it."""

    field: str
    before: Any = None
    after: Any = None
    position: int | None = None
    event: str = ""
    actor: str = ""
    reason: str = ""
    times: int = 0


class Difference(Struct, frozen=True):
    """One thing that differs."""

    subject: str
    name: str = ""
    change: str = "changed"
    fields: tuple[Change, ...] = ()


class Diff(Struct, frozen=True, rename={"before": "from", "after": "to"}):
    """Everything that differs between two positions."""

    before: int
    after: int
    items: tuple[Difference, ...] = ()


class Differing(Struct, frozen=True):
    """One thing that is otherwise than the log says, and the last event of its stream."""

    where: str
    subject: str
    detail: str = ""
    position: int | None = None
    event: str = ""


class Replay(Struct, frozen=True):
    """What a replay found."""

    position: int
    time: datetime | None = None
    events: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    things: int = 0
    digest: str = ""
    unreadable: dict[str, str] = {}
    verified: bool = False
    checkpoints: int = 0
    rows: int | None = None
    live: bool = False
    total: int = 0
    differences: tuple[Differing, ...] = ()
