"""`vmorch event`: the log."""

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from msgspec import structs

from cli.client import decode
from cli.events import Forest, branch, columns_of_events, decode_event, subject_of, tree, what
from cli.listing import View, now, query_of, show_list
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Event, Listing, Single
from cli.table import pairs
from cli.transport import Away, Query
from cli.units import parse_duration, show_time
from cli.verbs import Entry, Group, SectionOption, parsed, past_option, verb

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
        (("--subject", "--for"), "About this thing: vm/NAME, host/NAME, image/NAME, token/NAME, backup/NAME."),
        (("--kind", "--type"), "Of this kind; a glob such as 'vm.*'."),
        (("--actor",), "By this actor."),
        (("--operation",), "Of this operation."),
        (("--correlation",), "Of this chain of causes."),
    ):
        name = names[0].removeprefix("--")
        function = click.option(
            *names, name, metavar=name.upper(), cls=SectionOption, section="Selection", help=help
        )(function)
    return click.option("--causes", is_flag=True, help="As trees: each event below what it follows from.")(function)


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
        "vmorch event list --operation 0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d --causes",
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
@past_option
@click.pass_obj
def list_events(session: Session, /, no_headers: bool, **selection: Any) -> None:
    query, view = query_of(selection), _view(session)
    if selection["causes"] and session.settings.output in ("table", "wide"):
        _show_forest(session, query)
    else:
        show_list(session, view, query, headers=not no_headers)


def _show_forest(session: Session, query: Query) -> None:
    """Trees in the order in which they began: what follows from an event is below it, whatever happened between."""
    found = {event.position: event for page in session.client.pages("/v1/events", query, Event) for event in page.items}
    for event in list(found.values()):
        if event.parent is not None and event.parent not in found:
            chain = session.client.get(f"/v1/events/{event.position}/causes").body
            causes = decode(chain, Listing[Event]).items
            above: int | None = None
            for each in reversed(causes):
                found.setdefault(each.position, structs.replace(each, parent=above))
                above = each.position
    children: dict[int | None, list[Event]] = {}
    for position in sorted(found):
        children.setdefault(found[position].parent, []).append(found[position])
    rows: list[str] = []
    left = [(each, 0) for each in reversed(children.get(None, []))]
    while left:
        event, depth = left.pop()
        rows.append(branch(session, event, depth))
        left += [(each, depth + 1) for each in reversed(children.get(event.position, []))]
    if rows:
        session.terminal.out("\n".join(rows))
    else:
        session.terminal.note("no events")


@verb(
    "show",
    examples=("vmorch event show 48231", "vmorch event show 48231 --causes", "vmorch event show 48231 -o json"),
    help="Everything that one event says.",
)
@click.argument("position", type=click.IntRange(1))
@click.option("--causes", is_flag=True, help="Instead what it follows from, as a tree, back to who began it.")
@click.pass_obj
def show(session: Session, /, position: int, causes: bool) -> None:
    if causes:
        chain = session.client.get(f"/v1/events/{position}/causes")
        if structured(session):
            show_document(session, chain.body)
        else:
            session.terminal.out("\n".join(tree(session, decode(chain.body, Listing[Event]).items)))
        return
    answer = session.client.get(f"/v1/events/{position}", {"causes": "true"})
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
        ("Caused by", found.causation or found.parent),
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
        "vmorch event tail --subject vm/web-1 --since 5m --causes",
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
    position, forest = after, Forest(session) if selection["causes"] else None
    if since is not None:
        for page in session.client.pages("/v1/events", {**query, "since": since}, Event):
            for found in page.items:
                _print(session, found, None, forest)
                position = found.position
            position = position if position is not None else page.asOf.position
    away = False
    while True:
        try:
            for each in session.client.stream("/v1/events/tail", {**query, "after": position}):
                away = False
                found = decode_event(each.data)
                position = found.position
                _print(session, found, each.data, forest)
        except Away as error:
            if not away:
                session.terminal.note(f"the server is away ({error.why}); waiting")
            away = True
        except Problem as problem:
            if problem.status != 503:
                raise
        time.sleep(0.5)


def _print(session: Session, found: Event, raw: str | None, forest: Forest | None) -> None:
    if structured(session):
        import msgspec

        session.terminal.out(raw if raw is not None else msgspec.json.encode(found).decode())
    elif session.settings.output == "name":
        session.terminal.out(str(found.position))
    elif forest is not None:
        session.terminal.out("\n".join(forest.grown(found)))
    else:
        at = found.time.astimezone(UTC if session.times == "utc" else None).strftime("%H:%M:%S")
        fixed = f"{found.position}  {at}  {found.kind:<22}  {subject_of(found):<18}  {found.actor:<10}  {what(found)}"
        session.terminal.out(fixed.rstrip())
    sys.stdout.flush()
