"""Maintenances as the CLI shows and follows them. Must not cancel anything."""

from datetime import datetime

from msgspec import Struct

from cli.follow import follow_one
from cli.problems import Problem
from cli.session import Session
from cli.table import Column, Paint, lines
from cli.transport import quote
from cli.units import show_seconds

NOUN = "host maintenance"

STYLES = {
    "open": "warn",
    "done": "good",
    "failed": "bad",
    "undone": "warn",
    "cancelled": "warn",
    "cancelling": "warn",
    "deadline": "warn",
    "waiting": "dim",
}
MARKS = {"done": "ok", "failed": "!!", "undone": "--", "open": "->"}


class Station(Struct, frozen=True):
    """How far one host is."""

    host: str
    phase: str
    since: datetime | None = None
    drain: str | None = None
    waits_for: str = ""
    code: str = ""
    message: str = ""

    @property
    def what(self) -> str:
        """What it waits for, or why it is where it is."""
        return self.waits_for or self.message


class Maintenance(Struct, frozen=True):
    """A maintenance."""

    id: str
    state: str
    hosts: list[Station] = []
    groups: list[list[str]] = []
    at_once: int = 1
    bring_back: bool = False
    on_blocked: str = "refuse"
    actor: str = ""
    reason: str = ""
    started_at: datetime | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state not in ("running", "cancelling")


class MaintenanceGroup(Struct, frozen=True):
    """Hosts that would be away together."""

    hosts: list[str]
    moves: int = 0
    blocked: dict[str, list[str]] = {}
    estimate: float = 0.0
    survivable: bool = True


class MaintenancePlan(Struct, frozen=True):
    """The groups as they can be told now."""

    groups: list[MaintenanceGroup] = []
    position: int = 0


def plan_lines(plan: MaintenancePlan, paint: Paint) -> list[str]:
    """What would be away together, and what that means for VMs."""
    columns: list[Column[tuple[int, MaintenanceGroup]]] = [
        Column(header="GROUP", cell=lambda row: str(row[0]), right=True),
        Column(header="HOSTS", cell=lambda row: ", ".join(row[1].hosts)),
        Column(header="VMS", cell=lambda row: str(row[1].moves), right=True),
        Column(
            header="BLOCKED",
            cell=lambda row: ", ".join(sorted(row[1].blocked)) or "-",
            style=lambda row: "bad" if row[1].blocked else "",
        ),
        Column(header="EST", cell=lambda row: show_seconds(row[1].estimate), right=True),
        Column(header="ONE MORE LOSS", cell=lambda row: "survivable" if row[1].survivable else "NOT survivable"),
    ]
    found = lines(columns, list(enumerate(plan.groups, 1)), paint=paint)
    for group in plan.groups:
        found += [f"  {vm}: {'; '.join(why)}" for vm, why in sorted(group.blocked.items())]
    return [f"Maintenance as of {plan.position}; each group is chosen anew when its turn comes", *found]


def station_lines(found: Maintenance, paint: Paint) -> list[str]:
    """Each host and where it is."""
    columns: list[Column[Station]] = [
        Column(header="HOST", cell=lambda row: row.host),
        Column(header="PHASE", cell=lambda row: row.phase, style=lambda row: STYLES.get(row.phase, "")),
        Column(header="WHAT", cell=lambda row: row.what or "-"),
    ]
    return lines(columns, found.hosts, paint=paint)


def sum_up(found: Maintenance) -> str:
    """How it ended, in one line."""
    names = ", ".join(each.host for each in found.hosts) if len(found.hosts) <= 4 else f"{len(found.hosts)} hosts"
    verdict = {"done": "is done", "failed": "failed", "cancelled": "was cancelled", "deadline": "ended at its deadline"}
    return f"maintenance of {names} {verdict.get(found.state, f'is {found.state}')}"


def follow(
    session: Session, id: str, *, timeout: float | None, title: str = "", until_open: bool = False
) -> Maintenance:
    """Show each change of a host's phase until it is over, or with `until_open` until it is the operator's turn.
    Raises Detached, Overdue, Problem."""
    told = dict[str, str]()
    return follow_one(
        session.client,
        session.terminal,
        id,
        f"/v1/maintenances/{quote(id)}/watch",
        {"maintenance": Maintenance},
        noun=NOUN,
        timeout=timeout,
        title=title,
        show=lambda found: _show(session, found, told),
        over=lambda found: found.over or (until_open and _open(found)),
    )


def _open(found: Maintenance) -> bool:
    """Whether nothing happens any more without the operator."""
    return any(each.phase == "open" for each in found.hosts) and all(
        each.phase in ("open", "waiting", "done", "failed", "undone") for each in found.hosts
    )


def _show(session: Session, found: Maintenance, told: dict[str, str]) -> None:
    terminal = session.terminal
    width = max((len(each.host) for each in found.hosts), default=0)
    for each in found.hosts:
        if each.phase != "waiting" and told.get(each.host) != each.phase:
            told[each.host] = each.phase
            mark = terminal.paint_note(STYLES.get(each.phase, ""), MARKS.get(each.phase, ".."))
            why = f": {each.message}" if each.message and each.phase in ("failed", "done", "undone") else ""
            terminal.note(f"  {mark}  {each.host:<{width}}  {each.phase}{why}")
    busy = next((each for each in found.hosts if each.waits_for), None)
    if busy is not None and not found.over:
        terminal.show_live(f"  ..  {busy.host} waits for {busy.waits_for}")


def check(found: Maintenance, *, cancelling: bool = False) -> None:
    """Raises Problem for a maintenance that did not end well."""
    if found.state == "failed":
        facts = {each.host: f"{each.code}: {each.message}" for each in found.hosts if each.phase == "failed"}
        code = next((each.code for each in found.hosts if each.phase == "failed"), "internal-error")
        raise Problem(
            code, sum_up(found), facts=facts, hint=f"vmorch host maintenance describe {found.id}", instance=found.id
        )
    if found.state == "deadline" or (found.state == "cancelled" and not cancelling):
        facts = {each.host: each.message for each in found.hosts if each.phase not in ("done", "undone")}
        raise Problem("drain-ended", sum_up(found), facts=facts)
