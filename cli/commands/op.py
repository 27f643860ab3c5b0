"""`vmorch op`: operations, the work behind changes."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from cli.changing import record
from cli.client import accepted, decode
from cli.follow import MARKS, STYLE, failure, follow
from cli.listing import View, list_options, now, query_of, show_list
from cli.output import show_document, structured
from cli.pace import show_pace
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Operation, Single, Step
from cli.table import Column, lines, pairs
from cli.transport import quote
from cli.units import show_seconds, show_time
from cli.verbs import DURATION, Entry, Group, SectionOption, change_options, past_option, verb

_HERE = "cli.commands.op"

op = Group(
    "op",
    {
        "list": Entry(f"{_HERE}:list_ops", "List operations", "Look"),
        "describe": Entry(f"{_HERE}:describe", "Everything about an operation", "Look"),
        "watch": Entry(f"{_HERE}:watch", "Follow an operation's steps to its end", "Wait"),
        "wait": Entry(f"{_HERE}:wait", "Wait for an operation's end without a word", "Wait"),
        "cancel": Entry(f"{_HERE}:cancel", "Cancel an operation and take back what it did", "Change"),
        "tune": Entry(f"{_HERE}:tune", "Change the limits of a migration under way", "Change"),
    },
    help="Operations: the work behind changes.",
    foreign={
        "get": "vmorch op list",
        "ls": "vmorch op list",
        "show": "vmorch op describe ID",
        "follow": "vmorch op watch ID",
        "abort": "vmorch op cancel ID",
        "delete": "vmorch op cancel ID",
        "kill": "vmorch op cancel ID",
        "stop": "vmorch op cancel ID",
    },
    examples=("vmorch op list --active", "vmorch op watch 0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"),
)

_EXAMPLE = "0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"
_STATES = {"succeeded": "good", "undone": "bad", "stuck": "bad", "cancelled": "warn"}


def _took(operation: Operation, at: datetime) -> str:
    if operation.started_at is None:
        return "-"
    return show_seconds(max(0.0, ((operation.ended_at or at) - operation.started_at).total_seconds()))


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[Operation]]]:
    def columns(at: datetime) -> Sequence[Column[Operation]]:
        return [
            Column(header="ID", cell=lambda op: op.id),
            Column(header="VERB", cell=lambda op: op.verb),
            Column(header="VM", cell=lambda op: op.vm_name),
            Column(header="STATE", cell=lambda op: op.state, style=lambda op: _STATES.get(op.state, "")),
            Column(header="TOOK", cell=lambda op: _took(op, at), right=True),
            Column(header="AGE", cell=lambda op: show_time(op.started_at, at, session.times), right=True),
            Column(header="ACTOR", cell=lambda op: op.actor, wide=True),
            Column(header="CODE", cell=lambda op: op.code, wide=True),
            Column(header="REASON", cell=lambda op: op.reason, wide=True),
        ]

    return columns


@verb(
    "list",
    examples=("vmorch op list --active", "vmorch op list --vm web-1 -o wide", "vmorch op list --state stuck"),
    help="List operations.",
)
@click.option("--vm", metavar="NAME", cls=SectionOption, section="Selection", help="Only this VM's.")
@click.option("--verb", metavar="VERB", cls=SectionOption, section="Selection", help="Only these.")
@click.option(
    "--state", metavar="STATE", cls=SectionOption, section="Selection", help="Only those in this state."
)
@click.option("--active", is_flag=True, cls=SectionOption, section="Selection", help="Only those not over.")
@list_options(labels=False)
@click.pass_obj
def list_ops(session: Session, /, no_headers: bool, watch: bool, **selection: Any) -> None:
    view = View(
        path="/v1/operations",
        shape=Operation,
        columns=_columns(session),
        name=lambda op: op.id,
        noun="operation",
    )
    show_list(session, view, query_of(selection), headers=not no_headers, watch=watch)


@verb("describe", examples=(f"vmorch op describe {_EXAMPLE}",), help="Everything about an operation.")
@click.argument("id")
@past_option
@click.pass_obj
def describe(session: Session, /, id: str) -> None:
    answer = session.client.get(f"/v1/operations/{quote(id)}")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Single[Operation]).item
    if session.settings.output == "name":
        session.terminal.out(found.id)
        return
    at, paint = now(), session.terminal.paint
    rows = [
        ("Operation", found.id),
        ("What", f"{found.verb} {found.vm_name}"),
        ("State", paint(_STATES.get(found.state, ""), found.state)),
        ("Started", show_time(found.started_at, at, session.times)),
        ("Took", _took(found, at)),
        ("Actor", found.actor),
    ]
    if found.reason:
        rows.append(("Reason", found.reason))
    if found.code:
        rows.append(("Code", f"{found.code}: {found.message}"))
    text = pairs(rows)
    if found.blockers:
        text.append("In the way")
        text += [f"  {each}" for each in found.blockers]
    if found.pace is not None:
        text.append(f"Migration {show_pace(found.pace)}")
    if found.steps:
        text.append("Steps")
        text += [f"  {line}" for line in lines(_STEPS, found.steps, headers=False, paint=paint)]
    session.terminal.out("\n".join(text))


_STEPS: list[Column[Step]] = [
    Column(
        header="", cell=lambda step: MARKS.get(step.state, "  "), style=lambda step: STYLE.get(step.state, "")
    ),
    Column(header="", cell=lambda step: step.label),
    Column(header="", cell=lambda step: step.state),
    Column(header="", cell=lambda step: step.host),
]

_timeout = click.option("--timeout", type=DURATION, help="Stop waiting after this time (exit 8).")


def _to_the_end(session: Session, id: str, timeout: float | None, *, cancelling: bool = False) -> None:
    operation = follow(session.client, session.terminal, id, timeout=timeout).operation
    if structured(session):
        show_document(session, session.client.get(f"/v1/operations/{quote(operation.id)}").body)
    problem = failure(operation)
    if cancelling and operation.state == "succeeded":
        raise Problem(
            "already-over", f"{operation.verb} {operation.vm_name} succeeded before it could be cancelled"
        )
    if problem is not None and not (cancelling and operation.state == "cancelled"):
        raise problem
    if session.settings.output == "name":
        session.terminal.out(operation.id)
    elif not structured(session) and not session.terminal.quiet:
        session.terminal.out(
            f"{operation.verb} {operation.vm_name} {operation.state} in {_took(operation, now())}"
        )


@verb(
    "watch",
    examples=(f"vmorch op watch {_EXAMPLE}", f"vmorch op watch {_EXAMPLE} --timeout 5m"),
    help="Follow an operation's steps to its end. Ends as the operation does: 0 only if it succeeded.",
)
@click.argument("id")
@_timeout
@click.pass_obj
def watch(session: Session, /, id: str, timeout: float | None) -> None:
    _to_the_end(session, id, timeout)


@verb(
    "wait",
    examples=(f"vmorch op wait {_EXAMPLE} --timeout 5m && echo done",),
    help="Wait for an operation's end without a word. Ends as the operation does: 0 only if it succeeded.",
)
@click.argument("id")
@_timeout
@click.pass_obj
def wait(session: Session, /, id: str, timeout: float | None) -> None:
    session.terminal.quiet = True
    session.terminal.live = False
    _to_the_end(session, id, timeout)


@verb(
    "cancel",
    examples=(f"vmorch op cancel {_EXAMPLE}", f'vmorch op cancel {_EXAMPLE} -m "wrong image" -d'),
    help="Cancel an operation; what it had done is taken back. Waits until that is over.",
)
@click.argument("id")
@change_options(plans=False)
@click.pass_obj
def cancel(session: Session, /, id: str, detach: bool, timeout: float | None) -> None:
    session.demand_reason()
    answer = session.client.change(f"/v1/operations/{quote(id)}/cancel", {}, request_id=session.request_id)
    if detach:
        if structured(session):
            show_document(session, answer.body)
        else:
            session.terminal.out(f"cancelling (event {accepted(answer).position})")
        return
    _to_the_end(session, id, timeout, cancelling=True)


@verb(
    "tune",
    examples=(
        f"vmorch op tune {_EXAMPLE} --bandwidth 500",
        f"vmorch op tune {_EXAMPLE} --max-downtime 2s",
        f"vmorch op tune {_EXAMPLE} --postcopy",
    ),
    help="Change the limits of a migration under way. With --postcopy the guest is switched over now, and cannot go"
    " back: the rest of its memory follows.",
)
@click.argument("id")
@click.option("--bandwidth", type=click.IntRange(0), metavar="MIB_S", help="MiB/s at most; 0 for no limit.")
@click.option("--max-downtime", type=DURATION, help="Longest pause at the switch-over.")
@click.option("--postcopy", is_flag=True, help="Switch the guest over now.")
@change_options(plans=False, waits=False)
@click.pass_obj
def tune(session: Session, /, id: str, bandwidth: int | None, max_downtime: float | None, postcopy: bool) -> None:
    asked = {"bandwidth": bandwidth, "max_downtime": max_downtime, "postcopy": postcopy or None}
    body = {name: value for name, value in asked.items() if value is not None}
    if not body:
        raise click.UsageError("give --bandwidth, --max-downtime or --postcopy", click.get_current_context())
    record(session, f"/v1/operations/{quote(id)}/tune", body, "asked for (event {position})")
