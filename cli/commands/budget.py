"""`vmorch budget`."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from cli.changing import record
from cli.client import decode
from cli.drain_shapes import Budget
from cli.listing import View, list_options, now, query_of, show_list
from cli.output import show_document, structured
from cli.session import Session
from cli.shapes import Single
from cli.table import Column, pairs
from cli.transport import quote
from cli.units import show_labels, show_time
from cli.verbs import PAIR, Entry, Group, change_options, past_option, verb

_HERE = "cli.commands.budget"

budget = Group(
    "budget",
    {
        "list": Entry(f"{_HERE}:list_budgets", "List budgets", "Look"),
        "describe": Entry(f"{_HERE}:describe", "A budget, and who of its group is away", "Look"),
        "create": Entry(f"{_HERE}:create", "Bound how many VMs of a group are away at once", "Change"),
        "delete": Entry(f"{_HERE}:delete", "Delete a budget", "Change"),
    },
    help="Budgets: how many VMs of a group drains may have on the move or down at once.",
    foreign={
        "get": "vmorch budget list",
        "ls": "vmorch budget list",
        "show": "vmorch budget describe NAME",
        "add": "vmorch budget create NAME -l KEY=VALUE",
        "rm": "vmorch budget delete NAME",
        "remove": "vmorch budget delete NAME",
    },
    examples=("vmorch budget create web -l app=web --max-unavailable 2", "vmorch budget list"),
)


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[Budget]]]:
    def columns(at: datetime) -> Sequence[Column[Budget]]:
        return [
            Column(header="NAME", cell=lambda row: row.name),
            Column(header="SELECTOR", cell=lambda row: show_labels(row.selector)),
            Column(header="VMS", cell=lambda row: str(row.vms), right=True),
            Column(
                header="AWAY",
                cell=lambda row: f"{len(row.away)}/{row.max_unavailable}",
                style=lambda row: "warn" if len(row.away) >= row.max_unavailable else "",
                right=True,
            ),
            Column(header="AGE", cell=lambda row: show_time(row.created_at, at, session.times), right=True),
        ]

    return columns


@verb("list", examples=("vmorch budget list",), help="List budgets. AWAY is how many are, of how many may be.")
@click.argument("pattern", required=False)
@list_options(labels=False, diff=True)
@click.pass_obj
def list_budgets(
    session: Session, /, pattern: str | None, no_headers: bool, watch: bool, **selection: Any
) -> None:
    view = View(path="/v1/budgets", shape=Budget, columns=_columns(session), name=lambda row: row.name, noun="budget")
    show_list(session, view, query_of({"name": pattern, **selection}), headers=not no_headers, watch=watch)


@verb("describe", examples=("vmorch budget describe web",), help="A budget, and who of its group is away now.")
@click.argument("name")
@past_option
@click.pass_obj
def describe(session: Session, /, name: str) -> None:
    answer = session.client.get(f"/v1/budgets/{quote(name)}")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Single[Budget]).item
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    rows = [
        ("Name", found.name),
        ("Id", found.id),
        ("Selector", show_labels(found.selector)),
        ("VMs", str(found.vms)),
        ("May be away", str(found.max_unavailable)),
        ("Away now", ", ".join(found.away) or "none"),
        ("Created", show_time(found.created_at, now(), session.times)),
    ]
    session.terminal.out("\n".join(pairs(rows)))


@verb(
    "create",
    examples=(
        "vmorch budget create web -l app=web",
        "vmorch budget create db -l app=db -l env=prod --max-unavailable 2",
    ),
    help="Bound how many VMs of a group drains may have on the move or down at once.",
)
@click.argument("name")
@click.option(
    "-l", "--selector", type=PAIR, multiple=True, required=True, help="The group: VMs with this label (all of them)."
)
@click.option("--max-unavailable", type=click.IntRange(1), default=1, show_default=True, help="How many at once.")
@change_options(plans=False, waits=False)
@click.pass_obj
def create(session: Session, /, name: str, selector: tuple[tuple[str, str], ...], max_unavailable: int) -> None:
    body = {"name": name, "selector": dict(selector), "max_unavailable": max_unavailable}
    record(session, "/v1/budgets", body, "{name} is in force (event {position})")


@verb("delete", examples=("vmorch budget delete web",), help="Delete a budget; it bounds nothing any more.")
@click.argument("name")
@change_options(plans=False, waits=False)
@click.pass_obj
def delete(session: Session, /, name: str) -> None:
    record(session, f"/v1/budgets/{quote(name)}/delete", {}, "{name} is deleted (event {position})")
