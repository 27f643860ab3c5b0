"""Events for reading: one line each, what they say cut to its essence. Must not know any kind of event by name."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from cli.client import Client
from cli.session import Session
from cli.shapes import Event
from cli.table import Column
from cli.units import show_time

WHAT_WIDTH = 60

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SECRETIVE = re.compile(r"[A-Za-z0-9+/_=-]{40,}")
"""Keys and digests: nobody reads them in a line."""


def columns_of_events(session: Session, at: datetime, *, subject: bool = True) -> list[Column[Event]]:
    """The columns of a list of events."""
    columns: list[Column[Event]] = [
        Column(header="POS", cell=lambda event: str(event.position), right=True),
        Column(header="TIME", cell=lambda event: show_time(event.time, at, session.times)),
        Column(header="KIND", cell=lambda event: event.kind),
    ]
    if subject:
        columns.append(Column(header="SUBJECT", cell=subject_of))
    columns += [
        Column(header="ACTOR", cell=lambda event: event.actor),
        Column(header="OPERATION", cell=lambda event: event.operation or "-", wide=True),
        Column(header="WHAT", cell=what),
    ]
    return columns


def subject_of(event: Event) -> str:
    """`vm/web-1`: the kind and the name of what the event is about."""
    kind, _, id = event.subject.partition("/")
    return f"{kind}/{event.subject_name or id}"


def what(event: Event) -> str:
    """The event's own fields and its reason on one line, cut where they grow long."""
    said = ", ".join(_parts(event.data))
    if len(said) > WHAT_WIDTH:
        said = said[: WHAT_WIDTH - 3] + "..."
    return f'{said} "{event.reason}"'.strip() if event.reason else said


def _parts(data: Any) -> list[str]:
    if not isinstance(data, dict):
        return []
    found = []
    for name, value in data.items():
        # the operation has a column of its own
        if name == "operation":
            continue
        if isinstance(value, str | int | float | bool) and value != "":
            found.append(f"{name} {_short(str(value))}")
        elif isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
            found.append(f"{name} {','.join(value)}")
        elif isinstance(value, dict) and value and all(isinstance(each, str | int | float) for each in value.values()):
            found.append(f"{name} " + ",".join(f"{key}={text}" for key, text in value.items()))
    return found


def _short(value: str) -> str:
    """Ids by their end, which is what differs between them; keys by their beginning."""
    if _UUID.fullmatch(value):
        return f"..{value[-8:]}"
    return f"{value[:12]}.." if _SECRETIVE.fullmatch(value) else value


def last_events(client: Client, subject: str, count: int) -> Sequence[Event]:
    """The newest events of one thing, oldest first. Things have few events, so its whole stream is read."""
    found: list[Event] = []
    for page in client.pages("/v1/events", {"subject": subject}, Event):
        found = (found + page.items)[-count:]
    return found


def decode_event(data: str) -> Event:
    """An event from a stream."""
    return msgspec.json.decode(data, type=Event)
