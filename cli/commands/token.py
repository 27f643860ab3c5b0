"""`vmorch token`."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from cli.changing import record, show_secret
from cli.listing import View, list_options, query_of, show_list
from cli.session import Session
from cli.shapes import Token
from cli.table import Column
from cli.transport import quote
from cli.units import show_time
from cli.verbs import DURATION, Entry, Group, change_options, verb

_HERE = "cli.commands.token"

ROLES = ("viewer", "auditor", "operator", "admin")

token = Group(
    "token",
    {
        "list": Entry(f"{_HERE}:list_tokens", "List tokens; their secrets are nowhere", "Look"),
        "create": Entry(f"{_HERE}:create", "Create a token; its secret is shown once", "Change"),
        "revoke": Entry(f"{_HERE}:revoke", "Let a token's bearer in no more", "Change"),
    },
    help="API tokens: who may do what.",
    foreign={
        "get": "vmorch token list",
        "ls": "vmorch token list",
        "add": "vmorch token create NAME --role ROLE",
        "new": "vmorch token create NAME --role ROLE",
        "delete": "vmorch token revoke NAME",
        "rm": "vmorch token revoke NAME",
        "remove": "vmorch token revoke NAME",
    },
    examples=("vmorch token create ci --role operator --expires-in 90d", "vmorch token list"),
)


def _state(token: Token, at: datetime) -> str:
    if token.revoked:
        return "revoked"
    return "expired" if token.expires is not None and token.expires <= at else "valid"


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[Token]]]:
    def columns(at: datetime) -> Sequence[Column[Token]]:
        return [
            Column(header="NAME", cell=lambda token: token.name),
            Column(header="ROLE", cell=lambda token: token.role),
            Column(
                header="STATE",
                cell=lambda token: _state(token, at),
                style=lambda token: "good" if _state(token, at) == "valid" else "dim",
            ),
            Column(
                header="AGE", cell=lambda token: show_time(token.created_at, at, session.times), right=True
            ),
            Column(
                header="EXPIRES",
                cell=lambda token: token.expires.strftime("%Y-%m-%d") if token.expires else "never",
            ),
            Column(header="HOLDER", cell=lambda token: token.holder, wide=True),
            Column(header="ID", cell=lambda token: token.id, wide=True),
        ]

    return columns


@verb("list", examples=("vmorch token list",), help="List tokens. Their secrets are nowhere to be seen.")
@list_options(labels=False, watch=False, diff=True)
@click.pass_obj
def list_tokens(session: Session, /, no_headers: bool, **selection: Any) -> None:
    view = View(
        path="/v1/tokens", shape=Token, columns=_columns(session), name=lambda token: token.name, noun="token"
    )
    show_list(session, view, query_of(selection), headers=not no_headers)


@verb(
    "create",
    examples=(
        "vmorch token create ci --role operator --expires-in 90d",
        "vmorch token create audit --role auditor",
        'vmorch token create am --role viewer --holder "Alice <alice@example.org>"',
    ),
    help="Create a token. Its secret is printed on stdout, and nobody can see it again. Its name is recorded for ever"
    " with all that its bearer does; who that is belongs into --holder, which audit erase can erase.",
)
@click.argument("name")
@click.option("--role", required=True, type=click.Choice(ROLES), help="What its bearer may do.")
@click.option("--expires-in", type=DURATION, help="How long it holds, such as 90d; default for ever.")
@click.option("--holder", metavar="TEXT", help="The person behind the name; auditors and admins see it.")
@change_options(waits=False, plans=False)
@click.pass_obj
def create(session: Session, /, name: str, role: str, expires_in: float | None, holder: str | None) -> None:
    body: dict[str, Any] = {"name": name, "role": role}
    if holder is not None:
        body["holder"] = holder
    if expires_in is not None:
        body["expires_in"] = expires_in
    found = show_secret(session, "/v1/tokens", body)
    if found is not None:
        session.terminal.out(str(found["token"]))
        session.terminal.note(f"This is the secret of {name} ({role}); it is not shown again.")


@verb(
    "revoke",
    examples=("vmorch token revoke ci", 'vmorch token revoke ci --yes -m "left the team"'),
    help="Let a token's bearer in no more.",
)
@click.argument("name", metavar="TOKEN")
@change_options(confirms=True, waits=False, plans=False)
@click.pass_obj
def revoke(session: Session, /, name: str, yes: bool) -> None:
    session.demand_reason()
    session.confirm(
        f"revoke token {name}: whoever uses it is locked out at once", name, yes=yes, asked_for="token's name"
    )
    record(session, f"/v1/tokens/{quote(name)}/revoke", {}, "{name} is revoked (event {position})")
