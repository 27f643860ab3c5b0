"""`vmorch host maintenance`: hosts out of service for work, and back."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from cli.changing import record
from cli.client import accepted, decode
from cli.commands.host_drain import ON_BLOCKED, chosen, complete
from cli.drains import DIFFERENCES
from cli.listing import View, list_options, now, query_of, show_list
from cli.maintenance import STYLES, Maintenance, MaintenancePlan, check, follow, plan_lines, station_lines, sum_up
from cli.output import show_document, structured
from cli.session import Session
from cli.shapes import Single
from cli.table import Column, pairs
from cli.transport import quote
from cli.units import show_seconds, show_time
from cli.verbs import DURATION, Entry, Group, change_options, past_option, verb

_HERE = "cli.commands.host_maintenance"
_EXAMPLE = "0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"


class _StartedByDefault(Group):
    """A group in which names of hosts stand for `start`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = args[0] in self.entries or args[0] in self.foreign or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["start", *args])


maintenance = _StartedByDefault(
    "maintenance",
    {
        "start": Entry(f"{_HERE}:start", "Take hosts out of service, group by group", "Change"),
        "done": Entry(f"{_HERE}:done", "Say that the work on a host is done", "Change"),
        "cancel": Entry(f"{_HERE}:cancel", "Return every host, take out no other", "Change"),
        "list": Entry(f"{_HERE}:list_maintenances", "List maintenances, newest first", "Look"),
        "describe": Entry(f"{_HERE}:describe", "Where each host is, and what it waits for", "Look"),
        "watch": Entry(f"{_HERE}:watch", "Follow a maintenance to its end", "Wait"),
    },
    help="Maintenance: a host's VMs leave, its hook runs, you work, another hook runs, it is looked at and returns to"
    " service. Several hosts go in groups that are safe together; the first failure stops.",
    foreign={
        "ls": "vmorch host maintenance list",
        "enter": "vmorch host maintenance start HOST",
        "exit": "vmorch host maintenance done HOST",
        "stop": "vmorch host maintenance cancel ID",
        "abort": "vmorch host maintenance cancel ID",
    },
    examples=(
        'vmorch host maintenance hv-03 -m "CHG-2211 DIMM swap"',
        "vmorch host maintenance done hv-03",
        "vmorch host maintenance 'hv-*' --at-once 3 --plan",
    ),
)


@verb(
    "start",
    examples=(
        'vmorch host maintenance start hv-03 -m "CHG-2211 DIMM swap"',
        "vmorch host maintenance start 'hv-*' --at-once 3 --bring-back",
        "vmorch host maintenance start hv-03 hv-04 --plan",
    ),
    help="Take hosts out of service for work. Waits until the first ones are open for it; each returns after"
    " host maintenance done HOST.",
)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=complete)
@click.option("--plan", "only_plan", is_flag=True, help="Show the groups, begin nothing (exit 10).")
@click.option("--at-once", type=click.IntRange(1, 50), metavar="N", help="At most N hosts out at once; default 1.")
@click.option("--bring-back", is_flag=True, help="Move VMs back to their hosts afterwards.")
@click.option("--deadline", type=DURATION, help="End it after this time in any case.")
@click.option("--max-parallel", type=click.IntRange(1, 1000), metavar="N", help="At most N VMs move at once.")
@click.option("--on-blocked", type=ON_BLOCKED, help="What becomes of VMs that cannot be moved.")
@change_options(plans=False)
@click.pass_obj
def start(
    session: Session, /, hosts: tuple[str, ...], only_plan: bool, detach: bool, timeout: float | None, **given: Any
) -> None:
    body = {"hosts": chosen(session, hosts), **{name: value for name, value in given.items() if value}}
    if only_plan:
        raise SystemExit(_show_plan(session, body))
    session.demand_reason()
    answer = session.client.change("/v1/maintenances", body, request_id=session.request_id)
    id = accepted(answer).subject
    if detach:
        if structured(session):
            show_document(session, answer.body)
            return
        session.terminal.out(id if session.settings.output == "name" else f"maintenance {id} has begun")
        session.terminal.note(f"hint: vmorch host maintenance watch {id}")
        return
    title = f"maintenance {id}  {', '.join(body['hosts'])}"
    found = follow(session, id, timeout=timeout, title=title, until_open=True)
    _tell(session, found)
    if not found.over:
        for each in found.hosts:
            if each.phase == "open":
                session.terminal.note(f"hint: when it is done: vmorch host maintenance done {each.host}")
        return
    check(found)


def _show_plan(session: Session, body: dict[str, Any]) -> int:
    answer = session.client.change("/v1/maintenances", body, request_id=session.request_id, dry_run=True)
    if structured(session):
        show_document(session, answer.body)
    else:
        plan = decode(answer.body, MaintenancePlan)
        session.terminal.out("\n".join(plan_lines(plan, session.terminal.paint)))
        session.terminal.note("Nothing was begun.")
    return DIFFERENCES


def _tell(session: Session, found: Maintenance) -> None:
    if structured(session):
        show_document(session, session.client.get(f"/v1/maintenances/{quote(found.id)}").body)
    elif session.settings.output == "name":
        session.terminal.out(found.id)
    elif not session.terminal.quiet:
        opened = [each.host for each in found.hosts if each.phase == "open"]
        verb_ = "is" if len(opened) == 1 else "are"
        session.terminal.out(f"{', '.join(opened)} {verb_} open for work" if opened else sum_up(found))


@verb(
    "done",
    examples=("vmorch host maintenance done hv-03",),
    help="Say that the work on a host is done. Its hook runs, it is looked at, and it returns to service. The host"
    " may still be starting: it is waited for.",
)
@click.argument("name", metavar="HOST", shell_complete=complete)
@change_options(plans=False)
@click.pass_obj
def done(session: Session, /, name: str, detach: bool, timeout: float | None) -> None:
    path, said = f"/v1/hosts/{quote(name)}/maintenance-done", "{name}: recorded (event {position})"
    if detach:
        record(session, path, {}, said)
        return
    session.demand_reason()
    answer = session.client.change(path, {}, request_id=session.request_id)
    found = follow(session, accepted(answer).subject, timeout=timeout, until_open=True)
    _tell(session, found)
    if found.over:
        check(found)


@verb(
    "cancel",
    examples=("vmorch host maintenance cancel 6a2b3c4d --bring-back",),
    help="Return every host that is out of service, and take out no other.",
)
@click.argument("id", metavar="MAINTENANCE")
@click.option("--bring-back", is_flag=True, help="Move VMs back to their hosts.")
@change_options(plans=False)
@click.pass_obj
def cancel(session: Session, /, id: str, bring_back: bool, detach: bool, timeout: float | None) -> None:
    session.demand_reason()
    body = {"bring_back": bring_back}
    answer = session.client.change(f"/v1/maintenances/{quote(id)}/cancel", body, request_id=session.request_id)
    if detach:
        session.terminal.out(f"cancelling (event {accepted(answer).position})")
        return
    found = follow(session, accepted(answer).subject, timeout=timeout)
    _tell(session, found)
    check(found, cancelling=True)


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[Maintenance]]]:
    def columns(at: datetime) -> Sequence[Column[Maintenance]]:
        return [
            Column(header="ID", cell=lambda row: row.id),
            Column(header="STATE", cell=lambda row: row.state, style=lambda row: STYLES.get(row.state, "")),
            Column(header="HOSTS", cell=_hosts),
            Column(
                header="DONE", cell=lambda row: f"{sum(each.phase == 'done' for each in row.hosts)}/{len(row.hosts)}"
            ),
            Column(header="AGE", cell=lambda row: show_time(row.started_at, at, session.times), right=True),
            Column(header="ACTOR", cell=lambda row: row.actor),
            Column(header="REASON", cell=lambda row: row.reason, wide=True),
        ]

    return columns


def _hosts(row: Maintenance) -> str:
    shown = [f"{each.host} {each.phase}" for each in row.hosts if each.phase not in ("waiting", "done")]
    return ", ".join(shown[:3]) or ", ".join(each.host for each in row.hosts[:3])


@verb("list", examples=("vmorch host maintenance list --active",), help="List maintenances, newest first.")
@click.option("--active", is_flag=True, help="Only those under way.")
@list_options(labels=False)
@click.pass_obj
def list_maintenances(session: Session, /, no_headers: bool, watch: bool, **selection: Any) -> None:
    view = View(
        path="/v1/maintenances",
        shape=Maintenance,
        columns=_columns(session),
        name=lambda row: row.id,
        noun="maintenance",
    )
    show_list(session, view, query_of(selection), headers=not no_headers, watch=watch)


@verb("describe", examples=(f"vmorch host maintenance describe {_EXAMPLE}",), help="A maintenance host by host.")
@click.argument("id", metavar="MAINTENANCE")
@past_option
@click.pass_obj
def describe(session: Session, /, id: str) -> None:
    answer = session.client.get(f"/v1/maintenances/{quote(id)}")
    if structured(session):
        show_document(session, answer.body)
        return
    found, at, paint = decode(answer.body, Single[Maintenance]).item, now(), session.terminal.paint
    if session.settings.output == "name":
        session.terminal.out(found.id)
        return
    rows = [
        ("Maintenance", found.id),
        ("State", paint(STYLES.get(found.state, ""), found.state)),
        ("Started", show_time(found.started_at, at, session.times)),
        ("Actor", found.actor),
    ]
    if found.reason:
        rows.append(("Reason", found.reason))
    if found.deadline is not None and not found.over:
        left = (found.deadline - at).total_seconds()
        rows.append(("Deadline", f"in {show_seconds(left)}" if left > 0 else "passed"))
    session.terminal.out("\n".join([*pairs(rows), *station_lines(found, paint)]))


@verb(
    "watch",
    examples=(f"vmorch host maintenance watch {_EXAMPLE}",),
    help="Follow a maintenance to its end. Ends as it does: 0 only if every host is through.",
)
@click.argument("id", metavar="MAINTENANCE")
@click.option("--timeout", type=DURATION, help="Stop waiting after this time (exit 8).")
@click.pass_obj
def watch(session: Session, /, id: str, timeout: float | None) -> None:
    found = follow(session, id, timeout=timeout)
    _tell(session, found)
    check(found)
