"""Events for reading: one line each, what they say cut to its essence. Must not know any kind of event by name."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

import msgspec

from cli.client import Client
from cli.session import Session
from cli.shapes import Event, Listing
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
    text = said(event.data)
    if len(text) > WHAT_WIDTH:
        text = text[: WHAT_WIDTH - 3] + "..."
    return f'{text} "{event.reason}"'.strip() if event.reason else text


def said(data: Any) -> str:
    """Plain fields on one line."""
    return ", ".join(_parts(data))


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


def tree(session: Session, causes: Sequence[Event]) -> list[str]:
    """A chain of causes with who began it at the top, and each event below what it follows from."""
    return [branch(session, event, depth) for depth, event in enumerate(reversed(causes))]


def branch(session: Session, event: Event, depth: int) -> str:
    """One event of a tree, so many causes below the one that began it."""
    at = event.time.astimezone(UTC if session.times == "utc" else None).strftime("%Y-%m-%d %H:%M:%S")
    # a long operation would walk out of the window
    mark = "  " * min(depth - 1, 12) + "└ " if depth else ""
    line = f"{mark}{event.kind}  {subject_of(event)}  {event.actor}  {what(event)}".rstrip()
    return f"{event.position:>8}  {at}  {line}"


class Forest:
    """Events as trees of their causes, fed in log order. What an event follows from and nobody showed yet is fetched
    and shown above it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._depths: dict[int, int] = {}

    def grown(self, event: Event) -> list[str]:
        """The lines of an event and of its causes that were not shown yet, who began it at the top."""
        if event.position in self._depths:
            return []
        chain = [event]
        if event.parent is not None and event.parent not in self._depths:
            answer = self._session.client.get(f"/v1/events/{event.position}/causes")
            chain = msgspec.json.decode(answer.body, type=Listing[Event]).items
        new = list(takewhile(lambda each: each.position not in self._depths, chain))
        above = chain[len(new)].position if len(new) < len(chain) else event.parent
        depth = 0 if above is None else self._depths.get(above, -1) + 1
        found = []
        for each in reversed(new):
            self._depths[each.position] = depth
            found.append(branch(self._session, each, depth))
            depth += 1
        return found


def last_events(client: Client, subject: str, count: int) -> Sequence[Event]:
    """The newest events of one thing, oldest first. Things have few events, so its whole stream is read."""
    found: list[Event] = []
    for page in client.pages("/v1/events", {"subject": subject}, Event):
        found = (found + page.items)[-count:]
    return found


def decode_event(data: str) -> Event:
    """An event from a stream."""
    return msgspec.json.decode(data, type=Event)
