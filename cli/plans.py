"""What a change would do, shown and not done."""

from cli import table
from cli.changes import Request
from cli.client import planned
from cli.output import show_document, structured
from cli.session import Session
from cli.shapes import Plan, Verdict

DIFFERENCES = 10


def show_plan(session: Session, request: Request) -> int:
    """What the change would do. Returns the exit status for "there is a difference"."""
    answer = session.client.change(request.path, request.body, request_id=request.request_id, dry_run=True)
    if structured(session):
        show_document(session, answer.body)
        return DIFFERENCES
    plan = planned(answer)
    session.terminal.out("\n".join(plan_lines(plan, request, session.terminal.paint)))
    session.terminal.note("Nothing was changed.")
    return DIFFERENCES


def plan_lines(plan: Plan, request: Request, paint: table.Paint) -> list[str]:
    """A plan for reading."""
    at = f" at {plan.position}" if plan.position else ""
    found = [f"Plan of {request.label} {request.name}{at}" + (f": on {plan.host}" if plan.host else "")]
    if plan.steps:
        found.append("Steps")
        found += [f"  {index}  {label}" for index, label in enumerate(plan.steps, 1)]
    else:
        found.append("No host is involved; only the record changes.")
    if plan.rollback is not None:
        from cli.snapshots import prospect_rows

        found.append(f"Back to {plan.rollback.to}")
        found += table.pairs(prospect_rows(plan.rollback), "  ")
    if plan.verdicts:
        found.append("Hosts")
        found += [f"  {line}" for line in table.lines(_VERDICTS, plan.verdicts, paint=paint)]
    return found


_VERDICTS: list[table.Column[Verdict]] = [
    table.Column(header="NAME", cell=lambda verdict: verdict.name),
    table.Column(
        header="FITS",
        cell=lambda verdict: "yes" if verdict.fits else "no",
        style=lambda verdict: "good" if verdict.fits else "bad",
    ),
    table.Column(
        header="SCORE", cell=lambda verdict: f"{verdict.score:.1f}" if verdict.fits else "-", right=True
    ),
    table.Column(header="WHY", cell=lambda verdict: verdict.reason),
]
