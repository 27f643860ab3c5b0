"""What differs between two moments, for reading. Must not compute a difference: the API does."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from cli.client import decode
from cli.output import show_document, structured
from cli.past_shapes import Change, Diff, Difference
from cli.problems import Problem
from cli.session import Session
from cli.table import Column, lines
from cli.transport import Query

DIFFERENCES = 10
LIMIT = 600.0
"""Seconds for an answer: every event between the moments is read for it."""

_MARKS = {"created": "+", "gone": "-", "changed": "~"}
_STYLES = {"created": "good", "gone": "bad", "changed": "warn"}
_WIDTH = 40


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


_CHANGES: list[Column[Change]] = [
    Column(header="FIELD", cell=lambda change: change.field),
    Column(header="BEFORE", cell=lambda change: _shown(change.before)),
    Column(header="AFTER", cell=lambda change: _shown(change.after)),
    Column(header="EVENT", cell=lambda each: "-" if each.position is None else f"@{each.position} {each.event}"),
    Column(header="ACTOR", cell=lambda change: change.actor or "-"),
    Column(header="REASON", cell=lambda change: change.reason or "-"),
]


def show_differences(
    session: Session,
    before: str,
    after: str,
    *,
    subject: str | None = None,
    labels: Sequence[str] = (),
    kind: str = "",
    name: str = "*",
) -> None:
    """Show each field that differs with the event behind it: of one thing, of VMs with labels, or of all things, of a
    kind and named like a glob if that is wanted. Exits 10 if anything differs."""
    query = {"from": before, "to": after, "subject": subject, "label": list(labels)}
    body = session.client.get("/v1/diff", query, limit=LIMIT).body
    found = decode(body, Diff)
    wanted = [each for each in found.items if each.subject.startswith(kind) and _named(each, name)]
    if structured(session):
        if len(wanted) < len(found.items):
            body = _only(body, {each.subject for each in wanted})
        show_document(session, body)
    elif session.settings.output == "name":
        session.terminal.out("\n".join(each.subject for each in wanted))
    else:
        text = [line for each in wanted for line in _lines(each, session)]
        if text:
            session.terminal.out("\n".join(text))
        else:
            session.terminal.note(f"nothing differs between @{found.before} and @{found.after}")
    if wanted:
        raise SystemExit(DIFFERENCES)


def differences_of_list(session: Session, kind: str, query: Query) -> None:
    """The same of what a list would show. Raises Problem for a selection that is about one moment alone."""
    assert session.flags.diff is not None
    labels = query.get("label", [])
    others = sorted(set(query) - {"label", "name"})
    if others:
        raise Problem(
            "bad-request",
            f"--diff compares two moments, and {', '.join(others)} is of one",
            hint="choose by PATTERN or -l",
        )
    assert isinstance(labels, list)
    show_differences(
        session, *session.flags.diff, labels=labels, kind=f"{kind}/", name=str(query.get("name", "*"))
    )


def _named(each: Difference, pattern: str) -> bool:
    return fnmatchcase(each.name or each.subject.partition("/")[2], pattern)


def _only(body: bytes, subjects: Collection[str]) -> bytes:
    document = msgspec.json.decode(body)
    document["items"] = [each for each in document["items"] if each["subject"] in subjects]
    return msgspec.json.encode(document)


def _lines(each: Difference, session: Session) -> list[str]:
    paint, kind = session.terminal.paint, each.subject.partition("/")[0]
    name = f"{kind}/{each.name}" if each.name else each.subject
    head = paint(_STYLES.get(each.change, ""), f"{_MARKS.get(each.change, '~')} {name}")
    return [f"{head}  {each.change}", *(f"  {line}" for line in lines(_CHANGES, each.fields, headers=False))]
