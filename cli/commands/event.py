"""`vmorch event`: the log."""

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from cli.client import decode
from cli.events import columns_of_events, decode_event, subject_of, what
from cli.listing import View, now, query_of, show_list
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Event, Single
from cli.table import pairs
from cli.transport import Away
from cli.units import parse_duration, show_time
from cli.verbs import Entry, Group, SectionOption, parsed, verb

_HERE = "cli.commands.event"

event = Group(
    "event",
    {
        "list": Entry(f"{_HERE}:list_events", "List events", "Look"),
        "show": Entry(f"{_HERE}:show", "Everything that one event says", "Look"),
        "tail": Entry(f"{_HERE}:tail", "Show events as they come", "Look"),
    },
    help="The log: everything that ever happened, who did it and why.",
    foreign={
        "get": "vmorch event list",
        "ls": "vmorch event list",
        "describe": "vmorch event show POSITION",
        "watch": "vmorch event tail",
        "follow": "vmorch event tail",
        "monitor": "vmorch event tail",
    },
    examples=("vmorch event list --subject vm/web-1 --since 2h", "vmorch event tail --kind 'host.*'"),
)


def _moment(text: str) -> str:
    """`2h` or `-2h` ago, or a time of day or date, as RFC 3339 with an offset."""
    try:
        return (now() - timedelta(seconds=parse_duration(text.removeprefix("-")))).isoformat()
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'"{text}" is no time; write 2h (ago), or 2026-11-20T14:00:00Z') from None
    return at.astimezone().isoformat()


MOMENT = parsed("time", _moment)


def _filters(function: Any) -> Any:
    for names, help in (
        (("--subject", "--for"), "About this thing: vm/NAME, host/NAME, image/NAME, token/NAME."),
        (("--kind", "--type"), "Of this kind; a glob such as 'vm.*'."),
        (("--actor",), "By this actor."),
        (("--operation",), "Of this operation."),
        (("--correlation",), "Of this chain of causes."),
    ):
        name = names[0].removeprefix("--")
        function = click.option(
            *names, name, metavar=name.upper(), cls=SectionOption, section="Selection", help=help
        )(function)
    return function


def _view(session: Session) -> View[Event]:
    return View(
        path="/v1/events",
        shape=Event,
        columns=lambda at: columns_of_events(session, at),
        name=lambda event: str(event.position),
        noun="event",
    )


@verb(
    "list",
    examples=(
        "vmorch event list --subject vm/web-1",
        "vmorch event list --since 2h --kind 'host.*' --actor oncall",
        "vmorch event list --after 48000 --limit 100 -o jsonl",
    ),
    help="List events, oldest first.",
)
@_filters
@click.option(
    "--since", type=MOMENT, cls=SectionOption, section="Selection", help="From then on: 2h, or a time."
)
@click.option("--until", type=MOMENT, cls=SectionOption, section="Selection", help="Up to then.")
@click.option(
    "--after", type=int, metavar="N", cls=SectionOption, section="Selection", help="After this position."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    cls=SectionOption,
    section="Selection",
    help="At most so many.",
)
@click.option("--no-headers", is_flag=True, help="No header line.")
@click.pass_obj
def list_events(session: Session, /, no_headers: bool, **selection: Any) -> None:
    show_list(session, _view(session), query_of(selection), headers=not no_headers)


@verb(
    "show",
    examples=("vmorch event show 48231", "vmorch event show 48231 -o json"),
    help="Everything that one event says.",
)
@click.argument("position", type=click.IntRange(1))
@click.pass_obj
def show(session: Session, /, position: int) -> None:
    answer = session.client.get(f"/v1/events/{position}")
    if structured(session):
        show_document(session, answer.body)
        return
    import msgspec

    found = decode(answer.body, Single[Event]).item
    at = now()
    rows = [
        ("Position", str(found.position)),
        ("Time", f"{found.time.isoformat()}  ({show_time(found.time, at, 'rel')} ago)"),
        ("Kind", f"{found.kind} (schema {found.schema})"),
        ("Subject", f"{subject_of(found)}  {found.subject}  version {found.version}"),
        ("Actor", found.actor),
        ("Reason", found.reason or "-"),
    ]
    optional = (
        ("Operation", found.operation),
        ("Caused by", found.causation),
        ("Correlation", found.correlation),
        ("Request", found.request),
    )
    rows += [(name, str(value)) for name, value in optional if value is not None]
    text = [
        *pairs(rows),
        "Data",
        *_indented(msgspec.json.format(msgspec.json.encode(found.data), indent=2).decode()),
    ]
    session.terminal.out("\n".join(text))


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


@verb(
    "tail",
    examples=(
        "vmorch event tail",
        "vmorch event tail --subject vm/web-1 --since 5m",
        "vmorch event tail -o jsonl",
    ),
    help="Show events as they come, until Ctrl-C. A server that goes away is waited for; nothing is missed.",
)
@_filters
@click.option(
    "--since", type=MOMENT, cls=SectionOption, section="Selection", help="Begin there: 5m, or a time."
)
@click.option(
    "--after",
    type=int,
    metavar="N",
    cls=SectionOption,
    section="Selection",
    help="Begin after this position.",
)
@click.pass_obj
def tail(session: Session, /, since: str | None, after: int | None, **selection: Any) -> None:
    output = session.settings.output
    if output == "yaml" or session.flags.query:
        raise Problem("bad-request", "a tail has no end, so it is no document", hint="add -o jsonl")
    query = query_of(selection)
    position = after
    if since is not None:
        for page in session.client.pages("/v1/events", {**query, "since": since}, Event):
            for found in page.items:
                _print(session, found, None)
                position = found.position
            position = position if position is not None else page.asOf.position
    away = False
    while True:
        try:
            for each in session.client.stream("/v1/events/tail", {**query, "after": position}):
                away = False
                found = decode_event(each.data)
                position = found.position
                _print(session, found, each.data)
        except Away as error:
            if not away:
                session.terminal.note(f"the server is away ({error.why}); waiting")
            away = True
        except Problem as problem:
            if problem.status != 503:
                raise
        time.sleep(0.5)


def _print(session: Session, found: Event, raw: str | None) -> None:
    if structured(session):
        import msgspec

        session.terminal.out(raw if raw is not None else msgspec.json.encode(found).decode())
    elif session.settings.output == "name":
        session.terminal.out(str(found.position))
    else:
        at = found.time.astimezone(UTC if session.times == "utc" else None).strftime("%H:%M:%S")
        fixed = f"{found.position}  {at}  {found.kind:<22}  {subject_of(found):<18}  {found.actor:<10}  {what(found)}"
        session.terminal.out(fixed.rstrip())
    sys.stdout.flush()
