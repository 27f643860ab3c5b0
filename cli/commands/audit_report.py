"""`vmorch audit report`: who did what, when, why, and how it ended."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

from cli.events import said
from cli.listing import View, query_of, show_list
from cli.session import Session
from cli.table import Column
from cli.units import show_time
from cli.verbs import SectionOption, verb

_STYLES = {"done": "", "succeeded": "good", "running": "warn"}


class Act(msgspec.Struct, frozen=True):
    """Something that somebody did."""

    position: int
    time: datetime
    actor: str
    what: str
    subject: str
    subject_name: str = ""
    reason: str = ""
    outcome: str = ""
    code: str = ""
    message: str = ""
    operation: str | None = None
    request: str | None = None
    details: Any = None

    @property
    def object(self) -> str:
        """What it was done to: `vm/web-1`."""
        kind, _, id = self.subject.partition("/")
        return f"{kind}/{self.subject_name or id}"


def _columns(session: Session, at: datetime) -> Sequence[Column[Act]]:
    return [
        Column(header="POS", cell=lambda act: str(act.position), right=True),
        Column(header="TIME", cell=lambda act: show_time(act.time, at, session.times)),
        Column(header="ACTOR", cell=lambda act: act.actor),
        Column(header="WHAT", cell=lambda act: act.what),
        Column(header="OBJECT", cell=lambda act: act.object),
        Column(header="OUTCOME", cell=_outcome, style=lambda act: _STYLES.get(act.outcome, "bad")),
        Column(header="REASON", cell=lambda act: act.reason),
        Column(header="DETAILS", cell=lambda act: said(act.details), wide=True),
        Column(header="MESSAGE", cell=lambda act: act.message, wide=True),
        Column(header="OPERATION", cell=lambda act: act.operation or "", wide=True),
        Column(header="REQUEST", cell=lambda act: act.request or "", wide=True),
    ]


def _outcome(act: Act) -> str:
    return f"{act.outcome} ({act.code})" if act.code else act.outcome


@verb(
    "report",
    examples=(
        "vmorch audit report --between -7d now",
        "vmorch audit report --actor oncall --object vm/web-1",
        "vmorch audit report --between -30d now -o csv > month.csv",
    ),
    help="Who did what, when, why, and how it ended, oldest first: what callers asked, what policies began, and what"
    " happened on hosts of its own accord. Needs the role auditor, and is itself recorded.",
)
@click.option("--actor", metavar="NAME", cls=SectionOption, section="Selection",
              help="Only what this actor did; a glob such as 'host:*'.")
@click.option("--object", metavar="KIND/NAME", cls=SectionOption, section="Selection",
              help="Only what was done to this thing, such as vm/web-1.")
@click.option("--between", nargs=2, metavar="FROM TO", cls=SectionOption, section="Selection",
              help="Only between two moments: -2h, @POSITION, a time, now.")
@click.option("--limit", type=click.IntRange(1), metavar="N", cls=SectionOption, section="Selection",
              help="At most so many.")
@click.option("--no-headers", is_flag=True, help="No header line.")
@click.pass_obj
def report(session: Session, /, between: tuple[str, str] | None, no_headers: bool, **selection: Any) -> None:
    query = query_of(selection)
    if between is not None:
        query["from"], query["to"] = between
    view = View(path="/v1/audit/report", shape=Act, columns=lambda at: _columns(session, at),
                name=lambda act: str(act.position), noun="act")
    show_list(session, view, query, headers=not no_headers)
