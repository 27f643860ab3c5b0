"""`vmorch audit replay`: the log folded anew and compared with everything that is shown."""

import click

from cli.client import decode
from cli.output import show_document, structured
from cli.past_shapes import Differing, Replay
from cli.session import Session
from cli.shapes import Single
from cli.table import Column, lines, pairs
from cli.verbs import verb

DIFFERENCES = 10
LIMIT = 3600.0
"""Seconds for an answer: the whole log is read for it."""

_DIFFERENCES: list[Column[Differing]] = [
    Column(header="WHERE", cell=lambda each: each.where),
    Column(header="SUBJECT", cell=lambda each: each.subject),
    Column(header="DIFFERS IN", cell=lambda each: each.detail),
    Column(header="LAST EVENT", cell=lambda each: "-" if each.position is None else f"@{each.position} {each.event}"),
]


@verb(
    "replay",
    examples=("vmorch audit replay", "vmorch audit replay --verify", "vmorch audit replay --to -1d"),
    help="Fold the whole log anew in the server's memory: how fast, and one digest of the state. With --verify compare"
    " it with the live state, the read models and the stored checkpoints. Exit 10: something differs.",
)
@click.option("--to", metavar="MOMENT", help="Only up to then: -2h, @POSITION or a time.")
@click.option("--verify", is_flag=True, help="Compare with all that was folded before.")
@click.pass_obj
def replay(session: Session, /, to: str | None, verify: bool) -> None:
    query = {"to": to, "verify": True if verify else None}
    answer = session.client.get("/v1/audit/replay", query, limit=LIMIT)
    found = decode(answer.body, Single[Replay]).item
    if structured(session):
        show_document(session, answer.body)
    elif session.settings.output == "name":
        session.terminal.out(found.digest)
    else:
        _show(session, found)
    if found.total:
        raise SystemExit(DIFFERENCES)


def _show(session: Session, found: Replay) -> None:
    rows = [
        ("Position", f"@{found.position}" + (f" of {found.time:%Y-%m-%d %H:%M:%S} UTC" if found.time else "")),
        ("Events", f"{found.events:,} in {found.seconds:.1f} s, {found.rate:,.0f}/s"),
        ("State", f"{found.things:,} things, {found.digest[:16]}"),
    ]
    if found.unreadable:
        rows.append(("Unreadable", ", ".join(f"{at} from {why}" for at, why in found.unreadable.items())))
    if found.verified:
        compared = [f"{found.checkpoints} checkpoints"]
        compared += ["live state"] if found.live else []
        compared += [f"{found.rows:,} rows"] if found.rows is not None else []
        rows.append(("Compared", ", ".join(compared)))
        paint = session.terminal.paint
        rows.append(("Differences", paint("bad", str(found.total)) if found.total else paint("good", "none")))
    differences = lines(_DIFFERENCES, found.differences) if found.differences else []
    session.terminal.out("\n".join([*pairs(rows), *differences]))
