"""`vmorch drain`: drains under way and those that are over."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from cli.client import accepted
from cli.drain_shapes import Drain, DrainRow
from cli.drain_text import STYLES, hosts_of, ledger_lines, plan_lines
from cli.drains import check, fetch, follow, see_through
from cli.listing import View, list_options, now, query_of, show_list
from cli.output import show_document, structured
from cli.session import Session
from cli.table import Column, pairs
from cli.transport import quote
from cli.units import show_seconds, show_time
from cli.verbs import DURATION, Entry, Group, SectionOption, change_options, past_option, verb

_HERE = "cli.commands.drain"
_EXAMPLE = "0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"

drain = Group(
    "drain",
    {
        "list": Entry(f"{_HERE}:list_drains", "List drains, newest first", "Look"),
        "describe": Entry(f"{_HERE}:describe", "What became of each VM, or what it waits for", "Look"),
        "watch": Entry(f"{_HERE}:watch", "Follow a drain to its end", "Wait"),
        "cancel": Entry(f"{_HERE}:cancel", "End a drain and take back what is under way", "Change"),
    },
    help="Drains: hosts that are emptied, or filled again. They begin with host drain or plan apply.",
    foreign={
        "get": "vmorch drain list",
        "ls": "vmorch drain list",
        "show": "vmorch drain describe ID",
        "follow": "vmorch drain watch ID",
        "start": "vmorch host drain HOST...",
        "create": "vmorch host drain HOST...",
        "stop": "vmorch drain cancel ID",
        "abort": "vmorch drain cancel ID",
    },
    examples=("vmorch drain list --active", f"vmorch drain describe {_EXAMPLE}"),
)


def _done(row: DrainRow) -> str:
    over = sum(number for state, number in row.vms.items() if state not in ("planned", "waiting", "moving"))
    return f"{over}/{sum(row.vms.values())}"


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[DrainRow]]]:
    def columns(at: datetime) -> Sequence[Column[DrainRow]]:
        return [
            Column(header="ID", cell=lambda row: row.id),
            Column(header="HOSTS", cell=lambda row: f"{'back to ' * (row.purpose == 'return')}{hosts_of(row)}"),
            Column(header="STATE", cell=lambda row: row.state, style=lambda row: STYLES.get(row.state, "")),
            Column(header="VMS", cell=_done, right=True),
            Column(header="AGE", cell=lambda row: show_time(row.started_at, at, session.times), right=True),
            Column(header="ACTOR", cell=lambda row: row.actor),
            Column(header="REASON", cell=lambda row: row.reason, wide=True),
        ]

    return columns


@verb(
    "list",
    examples=("vmorch drain list", "vmorch drain list --active -w", "vmorch drain list --state incomplete"),
    help="List drains, newest first. VMS is how many are accounted for, of all.",
)
@click.option("--state", metavar="STATE", cls=SectionOption, section="Selection", help="Only those in this state.")
@click.option("--active", is_flag=True, cls=SectionOption, section="Selection", help="Only those under way.")
@list_options(labels=False)
@click.pass_obj
def list_drains(session: Session, /, no_headers: bool, watch: bool, **selection: Any) -> None:
    view = View(path="/v1/drains", shape=DrainRow, columns=_columns(session), name=lambda row: row.id, noun="drain")
    query = {**query_of(selection), "started": "true"}
    show_list(session, view, query, headers=not no_headers, watch=watch)


@verb(
    "describe",
    examples=(f"vmorch drain describe {_EXAMPLE}",),
    help="A drain VM by VM: where each went, why it did not, or what it waits for.",
)
@click.argument("id", metavar="DRAIN")
@past_option
@click.pass_obj
def describe(session: Session, /, id: str) -> None:
    body, found = fetch(session, id)
    if structured(session):
        show_document(session, body)
        return
    if session.settings.output == "name":
        session.terminal.out(found.id)
        return
    paint = session.terminal.paint
    if found.started_at is None:
        session.terminal.out("\n".join(plan_lines(found, paint)))
        return
    session.terminal.out("\n".join([*pairs(_facts(found, session)), *ledger_lines(found, paint)]))


def _facts(found: Drain, session: Session) -> list[tuple[str, str]]:
    at, paint = now(), session.terminal.paint
    rows = [
        ("Drain", found.id),
        ("Hosts" if found.purpose == "drain" else "Back to", ", ".join(found.hosts)),
        ("State", paint(STYLES.get(found.state, ""), found.state)),
        ("Started", show_time(found.started_at, at, session.times)),
        ("Actor", found.actor),
    ]
    if found.started_at is not None:
        took = ((found.ended_at or at) - found.started_at).total_seconds()
        rows.append(("Took", f"{show_seconds(max(took, 0.0))}, planned about {show_seconds(found.estimate)}"))
    if found.reason:
        rows.append(("Reason", found.reason))
    if found.deadline is not None and not found.over:
        left = (found.deadline - at).total_seconds()
        rows.append(("Deadline", f"in {show_seconds(left)}" if left > 0 else "passed"))
    return rows


_timeout = click.option("--timeout", type=DURATION, help="Stop waiting after this time (exit 8).")


@verb(
    "watch",
    examples=(f"vmorch drain watch {_EXAMPLE}",),
    help="Follow a drain to its end. Exits 0 if every VM went as planned, 9 if some did not.",
)
@click.argument("id", metavar="DRAIN")
@_timeout
@click.pass_obj
def watch(session: Session, /, id: str, timeout: float | None) -> None:
    check(see_through(session, id, timeout=timeout))


@verb(
    "cancel",
    examples=(f"vmorch drain cancel {_EXAMPLE}", f'vmorch drain cancel {_EXAMPLE} -m "wrong host"'),
    help="End a drain: nothing begins any more, and moves under way are taken back as far as they can be. What has"
    " moved stays where it is and the hosts stay cordoned: see host activate --bring-back.",
)
@click.argument("id", metavar="DRAIN")
@change_options(plans=False)
@click.pass_obj
def cancel(session: Session, /, id: str, detach: bool, timeout: float | None) -> None:
    session.demand_reason()
    answer = session.client.change(f"/v1/drains/{quote(id)}/cancel", {}, request_id=session.request_id)
    drain = accepted(answer).subject
    if detach:
        if structured(session):
            show_document(session, answer.body)
        else:
            session.terminal.out(f"ending (event {accepted(answer).position})")
        return
    if session.settings.output == "table" and not session.terminal.quiet:
        found = follow(session, drain, timeout=timeout, title="")
        from cli.drain_text import sum_up

        session.terminal.out(sum_up(found))
        hosts = " ".join(found.hosts)
        if found.purpose == "drain":
            session.terminal.note(f"hint: cordoned still: vmorch host activate {hosts.split()[0]} [--bring-back]")
        return
    see_through(session, drain, timeout=timeout)
