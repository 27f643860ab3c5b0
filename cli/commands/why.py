"""`vmorch why`: who or what made a value what it is."""

from typing import Any
from urllib.parse import quote

import click
import msgspec

from cli.client import decode
from cli.events import tree
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Event, Single
from cli.verbs import verb


class Why(msgspec.Struct, frozen=True):
    """A value and the chain of causes behind it, the latest first."""

    subject: str
    name: str
    causes: list[Event]
    field: str | None = None
    value: Any = None
    before: Any = None


@verb(
    "why",
    examples=(
        "vmorch why vm/web-1 power",
        "vmorch why vm/web-1 host",
        "vmorch why host/node-3 cordoned",
        "vmorch why volume/data state",
        "vmorch why vm/web-1",
        "vmorch why vm/web-1 memory -o json",
    ),
    help="The chain of causes behind one value, from whoever began it down to the event that set it.",
)
@click.argument("thing", metavar="KIND/NAME")
@click.argument("field", required=False)
@click.pass_obj
def why(session: Session, /, thing: str, field: str | None) -> None:
    kind, _, name = thing.partition("/")
    if not kind or not name:
        raise Problem("bad-request", f"{thing!r} names nothing", hint="write KIND/NAME, such as vm/web-1")
    query = {} if field is None else {"field": field}
    answer = session.client.get(f"/v1/why/{quote(kind, safe='')}/{quote(name, safe='')}", query)
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Single[Why]).item
    lines = tree(session, found.causes)
    if found.field is not None:
        lines.insert(0, f"{kind}/{found.name} {found.field} is {_plain(found.value)}, before {_plain(found.before)}")
    session.terminal.out("\n".join(lines))


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
