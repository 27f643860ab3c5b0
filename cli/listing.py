"""What all lists have in common: selection, pages, formats, and staying to watch.

Must not know any noun; the commands say where their list is and what its columns are.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import click
import msgspec
from msgspec import Struct

from cli.client import decode
from cli.output import as_csv, merge_pages, show_document, show_rows, structured
from cli.problems import Problem
from cli.session import Session
from cli.table import Column
from cli.transport import Query
from cli.verbs import PAIR, SectionOption, diff_option, past_option

Row = TypeVar("Row")
F = TypeVar("F", bound=Callable[..., Any])

UNREACHABLE = 7

STEADY = 0.25
"""The least time between two looks while watching, in seconds."""


def list_options(*, labels: bool = True, watch: bool = True, diff: bool = False) -> Callable[[F], F]:
    """The flags of list commands."""

    def add(function: F) -> F:
        section = {"cls": SectionOption, "section": "Selection"}
        if watch:
            function = click.option("-w", "--watch", is_flag=True, help="Stay and show changes.")(function)
        function = past_option(function)
        if diff:
            function = diff_option(function)
        function = click.option("--no-headers", is_flag=True, help="No header line.")(function)
        function = click.option(
            "--min-position",
            type=int,
            metavar="N",
            help="Wait until the answer reflects this position of the log.",
            **section,  # type: ignore[arg-type]
        )(function)
        function = click.option(
            "--limit",
            type=click.IntRange(1),
            metavar="N",
            help="At most so many.",
            **section,  # type: ignore[arg-type]
        )(function)
        if labels:
            function = click.option(
                "-l",
                "--selector",
                type=PAIR,
                multiple=True,
                help="Only those with this label (repeatable: all of them).",
                **section,  # type: ignore[arg-type]
            )(function)
        return function

    return add


class View(Struct, Generic[Row], frozen=True, kw_only=True):
    """A list: where it is, how a row decodes, what is shown of it at a moment, what to remark `after` it."""

    path: str
    shape: type[Row]
    columns: Callable[[datetime], Sequence[Column[Row]]]
    name: Callable[[Row], str]
    noun: str
    after: Callable[[Sequence[Row]], str] | None = None


def now() -> datetime:
    """The time, for ages."""
    return datetime.now(UTC)


def query_of(values: dict[str, Any]) -> dict[str, Any]:
    """The query of a list from its command's flags."""
    query = {name: value for name, value in values.items() if value not in (None, (), "", False)}
    if "selector" in query:
        query["label"] = [f"{key}={value}" for key, value in query.pop("selector")]
    if "min_position" in query:
        query["minPosition"] = query.pop("min_position")
    return query


def show_list(
    session: Session, view: View[Row], query: Query, *, headers: bool = True, watch: bool = False
) -> None:
    """Fetch and show a list; with `watch` stay until Ctrl-C."""
    if session.flags.diff is not None:
        from cli.differences import differences_of_list

        differences_of_list(session, view.noun.lower(), query)
    elif watch:
        if session.flags.as_of is not None:
            raise Problem("bad-request", "the past does not change: --watch is for now", hint="leave out --as-of")
        _watch(session, view, query, headers=headers)
    elif not as_csv(session) and structured(session):
        show_document(session, merge_pages(list(session.client.bodies(view.path, query))))
    else:
        pages = list(session.client.pages(view.path, query, view.shape))
        rows = [row for page in pages for row in page.items]
        at = pages[0].asOf.time if session.flags.as_of is not None else None
        show_rows(session, rows, view.columns(at or now()), view.name, headers=headers)
        if at is not None:
            session.terminal.note(f"as of {at:%Y-%m-%d %H:%M:%S} UTC (@{pages[0].asOf.position})")
        _footer(session, view, rows)


def _footer(session: Session, view: View[Row], rows: Sequence[Row]) -> None:
    if not rows:
        session.terminal.note(f"no {view.noun}s")
    elif view.after is not None and session.settings.output in ("table", "wide"):
        remark = view.after(rows)
        if remark:
            session.terminal.note(remark)


def _watch(session: Session, view: View[Row], query: Query, *, headers: bool) -> None:
    """Look again after each event. A terminal is redrawn; elsewhere what changed is printed line by line."""
    if structured(session) and (session.settings.output != "jsonl" or session.flags.query):
        raise Problem(
            "bad-request", "--watch shows tables, names or jsonl, no single document", hint="add -o jsonl"
        )
    seen: dict[str, bytes] = {}
    away = False
    while True:
        try:
            raw: list[msgspec.Raw] = []
            position = 0
            for page in session.client.pages(view.path, query, msgspec.Raw):
                raw += page.items
                position = page.asOf.position
            away = False
            seen = _show_look(session, view, [bytes(each) for each in raw], seen, headers=headers)
            query = {**query, "minPosition": _next_event(session, position)}
        except Problem as error:
            if error.exit_code != UNREACHABLE:
                raise
            if not away:
                session.terminal.note(f"the server is away ({error}); waiting")
            away = True
            time.sleep(1)


def _next_event(session: Session, position: int) -> int:
    """The position of the next event of any kind; several in a moment count as one."""
    with closing(session.client.stream("/v1/events/tail", {"after": position})) as events:
        first = next((int(event.id) for event in events if event.id.isdecimal()), position)
    time.sleep(STEADY)
    return first


def _show_look(
    session: Session, view: View[Row], raw: Sequence[bytes], seen: dict[str, bytes], *, headers: bool
) -> dict[str, bytes]:
    """Show one look at the list. Returns what was seen in it."""
    terminal = session.terminal
    rows = [decode(each, view.shape) for each in raw]
    current = {view.name(row): each for row, each in zip(rows, raw, strict=True)}
    if terminal.out_is_tty and not structured(session):
        terminal.out("\x1b[H\x1b[2J")
        show_rows(session, rows, view.columns(now()), view.name, headers=headers)
        sys.stdout.flush()
        return current
    changed = [row for row in rows if seen.get(view.name(row)) != current[view.name(row)]]
    if structured(session):
        terminal.out_bytes(b"".join(current[view.name(row)] + b"\n" for row in changed))
    else:
        show_rows(session, changed, view.columns(now()), view.name, headers=headers and not seen)
    for name in seen.keys() - current.keys():
        terminal.note(f"{name} is gone")
    sys.stdout.flush()
    return current
