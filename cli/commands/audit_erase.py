"""`vmorch audit erase`: the one thing that makes a part of the log unreadable, without changing it."""

import click

from cli.changing import record
from cli.problems import Problem
from cli.session import Session
from cli.verbs import change_options, verb

UNREACHED = """\
Not reached: seed images and journals on hosts, guests and their backups, and dumps of the database that somebody keeps
together with the master key of then. Delete those where they are."""


@verb(
    "erase",
    examples=(
        'vmorch audit erase vm/web-1 -m "Art. 17, case 4711"',
        'vmorch audit erase token/am --yes -m "left the company"',
    ),
    help="Destroy the key of what the log holds sealed for a VM (its user data) or a token (its holder); deleted and"
    " revoked ones count, by id if the name was given twice. The log stays as it is and verifies as before; nobody can"
    " read that part of it again. A VM stays on its host and cannot be restored from backups. Needs a reason, and the"
    " role admin.",
)
@click.argument("subject", metavar="vm/NAME|token/NAME")
@change_options(confirms=True, waits=False, plans=False)
@click.pass_obj
def erase(session: Session, /, subject: str, yes: bool) -> None:
    if not session.settings.reason.strip():
        raise Problem("reason-missing", "what is erased cannot be had back: that needs a reason", hint='add -m "why"')
    session.confirm(
        f"erase {subject}: nobody will ever read again what is sealed for it", subject, yes=yes, asked_for="subject"
    )
    record(session, "/v1/audit/erase", {"subject": subject}, "what was sealed for {name} is erased (event {position})")
    session.terminal.note(UNREACHED)
