"""`vmorch plan`: plans that were stored, to be carried out or discarded."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from cli.changing import record
from cli.client import accepted
from cli.commands.host_drain import ON_BLOCKED, show_begun
from cli.drain_shapes import DrainRow
from cli.drain_text import hosts_of, plan_lines, touched_lines
from cli.drains import check, fetch, see_through
from cli.listing import View, list_options, query_of, show_list
from cli.output import show_document, structured
from cli.session import Session
from cli.table import Column
from cli.transport import quote
from cli.units import show_seconds, show_time
from cli.verbs import DURATION, Entry, Group, SectionOption, change_options, past_option, verb

_HERE = "cli.commands.plan"
_EXAMPLE = "0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"

plan = Group(
    "plan",
    {
        "list": Entry(f"{_HERE}:list_plans", "List plans that were not carried out", "Look"),
        "describe": Entry(f"{_HERE}:describe", "A plan, and what has made it stale", "Look"),
        "apply": Entry(f"{_HERE}:apply", "Carry a plan out", "Change"),
        "discard": Entry(f"{_HERE}:discard", "Give a plan up", "Change"),
    },
    help="Plans: made by host drain --plan, bound to the moment they were made at.",
    foreign={
        "get": "vmorch plan list",
        "ls": "vmorch plan list",
        "show": "vmorch plan describe ID",
        "run": "vmorch plan apply ID",
        "delete": "vmorch plan discard ID",
        "create": "vmorch host drain HOST... --plan",
    },
    examples=("vmorch plan list", f"vmorch plan apply {_EXAMPLE} --rebase"),
)


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[DrainRow]]]:
    def columns(at: datetime) -> Sequence[Column[DrainRow]]:
        return [
            Column(header="ID", cell=lambda row: row.id),
            Column(header="HOSTS", cell=hosts_of),
            Column(header="STATE", cell=lambda row: row.state),
            Column(header="VMS", cell=lambda row: str(sum(row.vms.values())), right=True),
            Column(header="BLOCKED", cell=lambda row: str(row.vms.get("blocked", 0)), right=True),
            Column(header="EST", cell=lambda row: show_seconds(row.estimate), right=True),
            Column(header="AT", cell=lambda row: str(row.position), right=True),
            Column(header="AGE", cell=lambda row: show_time(row.planned_at, at, session.times), right=True),
        ]

    return columns


@verb("list", examples=("vmorch plan list", "vmorch plan list --all"), help="List plans, newest first.")
@click.option("--all", "everything", is_flag=True, cls=SectionOption, section="Selection", help="Discarded ones too.")
@list_options(labels=False)
@click.pass_obj
def list_plans(session: Session, /, everything: bool, no_headers: bool, watch: bool, **selection: Any) -> None:
    view = View(path="/v1/drains", shape=DrainRow, columns=_columns(session), name=lambda row: row.id, noun="plan")
    query = {**query_of(selection), "started": "false"}
    if not everything:
        query["state"] = "planned"
    show_list(session, view, query, headers=not no_headers, watch=watch)


@verb("describe", examples=(f"vmorch plan describe {_EXAMPLE}",), help="A plan, and the events that touch it since.")
@click.argument("id", metavar="PLAN")
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
    session.terminal.out("\n".join([*plan_lines(found, session.terminal.paint), *touched_lines(found)]))
    if found.touched:
        session.terminal.note(f"hint: vmorch plan apply {found.id} --rebase")


@verb(
    "apply",
    examples=(f"vmorch plan apply {_EXAMPLE}", f"vmorch plan apply {_EXAMPLE} --rebase"),
    help="Carry a plan out. It is refused if later events touch what it decided (exit 5), and they are named; with"
    " --rebase it is made anew first, keeping the moves that still hold. Exit 9: some VMs did not go.",
)
@click.argument("id", metavar="PLAN")
@click.option("--rebase", is_flag=True, help="Plan anew first.")
@click.option("--on-blocked", type=ON_BLOCKED, help="What becomes of VMs that cannot be moved.")
@click.option("--deadline", type=DURATION, help="End it after this time in any case.")
@click.option("--max-parallel", type=click.IntRange(1, 1000), metavar="N", help="At most N VMs at once.")
@change_options(plans=False)
@click.pass_obj
def apply(session: Session, /, id: str, rebase: bool, detach: bool, timeout: float | None, **given: Any) -> None:
    session.demand_reason()
    body = {"rebase": rebase, **{name: value for name, value in given.items() if value is not None}}
    answer = session.client.change(f"/v1/drains/{quote(id)}/apply", body, request_id=session.request_id)
    drain = accepted(answer).subject
    if detach:
        show_begun(session, drain, answer.body)
        return
    check(see_through(session, drain, timeout=timeout, title=f"drain {drain}"))


@verb("discard", examples=(f"vmorch plan discard {_EXAMPLE}",), help="Give a plan up; it cannot be applied any more.")
@click.argument("id", metavar="PLAN")
@change_options(plans=False, waits=False)
@click.pass_obj
def discard(session: Session, /, id: str) -> None:
    record(session, f"/v1/drains/{quote(id)}/discard", {}, f"plan {id} is discarded (event {{position}})")
