"""`vmorch context` and `vmorch login`: which cluster, as whom. Only login ever talks to a server."""

import re
import sys

import click
import msgspec
from msgspec.structs import replace

from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.settings import Context, config_dir, load_contexts, load_tokens, save_contexts, save_token
from cli.table import Column, lines, pairs
from cli.transport import parse_address
from cli.verbs import OUTPUTS, Entry, Group, verb

_HERE = "cli.commands.context"

context = Group(
    "context",
    {
        "list": Entry(f"{_HERE}:list_contexts", "List contexts"),
        "show": Entry(f"{_HERE}:show", "Show what is in force, and why"),
        "use": Entry(f"{_HERE}:use", "Make a context the current one"),
        "add": Entry(f"{_HERE}:add", "Add or change a context"),
        "remove": Entry(f"{_HERE}:remove", "Remove a context and its token"),
    },
    help="Which cluster to talk to. A flag wins over VMORCH_*, which wins over the context.",
    foreign={
        "get": "vmorch context list",
        "ls": "vmorch context list",
        "set": "vmorch context use NAME",
        "switch": "vmorch context use NAME",
        "create": "vmorch context add NAME --api URL",
        "delete": "vmorch context remove NAME",
        "rm": "vmorch context remove NAME",
        "current": "vmorch context show",
    },
    examples=(
        "vmorch context add prod --api https://vmorch.example.org --protected --use",
        "vmorch context use dev",
    ),
)


class Row(msgspec.Struct, frozen=True):
    """A context in the list."""

    name: str
    api: str
    current: bool
    protected: bool
    token: bool


_COLUMNS: list[Column[Row]] = [
    Column(header="", cell=lambda row: "*" if row.current else " "),
    Column(header="NAME", cell=lambda row: row.name),
    Column(header="API", cell=lambda row: row.api),
    Column(header="TOKEN", cell=lambda row: "yes" if row.token else "no"),
    Column(header="PROTECTED", cell=lambda row: "yes" if row.protected else "no"),
]


@verb("list", examples=("vmorch context list",), help="List contexts; * marks the current one.")
@click.pass_obj
def list_contexts(session: Session, /) -> None:
    file, tokens = load_contexts(), load_tokens()
    rows = [
        Row(name, each.api, name == file.current, each.protected, name in tokens)
        for name, each in sorted(file.contexts.items())
    ]
    if structured(session):
        show_document(
            session, msgspec.json.encode({"apiVersion": "v1", "kind": "ContextList", "items": rows})
        )
    elif session.settings.output == "name":
        session.terminal.out("\n".join(row.name for row in rows))
    elif rows:
        session.terminal.out("\n".join(lines(_COLUMNS, rows)))
    else:
        session.terminal.note(f"no contexts; requests go to {session.settings.api}")
        session.terminal.note("hint: vmorch context add NAME --api URL --use")


@verb("show", examples=("vmorch context show",), help="Show what is in force after flags and environment.")
@click.pass_obj
def show(session: Session, /) -> None:
    settings = session.settings
    if structured(session):
        fields = {
            "context": settings.context,
            "api": settings.api,
            "token": settings.token is not None,
            "protected": settings.protected,
        }
        show_document(session, msgspec.json.encode({"apiVersion": "v1", "kind": "Context", "item": fields}))
        return
    rows = [
        ("context", settings.context or "-"),
        ("api", settings.api),
        ("token", "yes" if settings.token else "no"),
        ("output", settings.output),
        ("protected", "yes, changes need --reason" if settings.protected else "no"),
        ("files", str(config_dir())),
    ]
    session.terminal.out("\n".join(pairs(rows)))


@verb("use", examples=("vmorch context use prod",), help="Make a context the current one.")
@click.argument("name")
@click.pass_obj
def use(session: Session, /, name: str) -> None:
    file = load_contexts()
    _known(name, file.contexts)
    save_contexts(replace(file, current=name))
    session.terminal.note(f"requests go to {name}, {file.contexts[name].api}")


@verb(
    "add",
    examples=(
        "vmorch context add lab --api unix:/run/vmorch/api.sock --use",
        "vmorch context add prod --api https://vmorch.example.org --protected",
    ),
    help="Add a context, or change the one of this name.",
)
@click.argument("name")
@click.option("--protected", is_flag=True, help="Changes need a --reason there.")
@click.option("--use", "use_", is_flag=True, help="Make it the current one.")
@click.option("--default-output", type=click.Choice(OUTPUTS), help="How answers are shown there.")
@click.pass_obj
def add(session: Session, /, name: str, protected: bool, use_: bool, default_output: str | None) -> None:
    # --api is a flag of every command; here it says what to keep
    api = session.flags.api
    if api is None:
        raise click.UsageError("which API? give --api URL", click.get_current_context())
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise Problem(
            "bad-name", f"{name!r} is no name for a context", hint="letters, digits, '.', '_' and '-'"
        )
    parse_address(api)
    file = load_contexts()
    contexts = {**file.contexts, name: Context(api=api, protected=protected, output=default_output)}
    current = name if use_ or not file.contexts else file.current
    path = save_contexts(replace(file, contexts=contexts, current=current))
    session.terminal.note(
        f"{name} is kept in {path}" + (" and is the current one" if current == name else "")
    )
    if name not in load_tokens():
        session.terminal.note(f"hint: vmorch login -C {name}")


@verb("remove", examples=("vmorch context remove lab",), help="Remove a context and forget its token.")
@click.argument("name")
@click.pass_obj
def remove(session: Session, /, name: str) -> None:
    file = load_contexts()
    _known(name, file.contexts)
    contexts = {each: value for each, value in file.contexts.items() if each != name}
    save_contexts(replace(file, contexts=contexts, current=None if file.current == name else file.current))
    save_token(name, None)
    session.terminal.note(f"{name} is removed")


def _known(name: str, contexts: dict[str, Context]) -> None:
    if name not in contexts:
        known = ", ".join(sorted(contexts)) or "none yet"
        raise Problem(
            "bad-request", f"there is no context {name!r} (known: {known})", hint="vmorch context list"
        )


@verb(
    "login",
    examples=(
        "vmorch login",
        "vmorch login -C prod < admin.token",
        "vmorch login --api http://127.0.0.1:8650",
    ),
    help="Keep a token for a context, after the server has recognised it. Reads it from stdin, or asks for it.",
)
@click.pass_obj
def login(session: Session, /) -> None:
    from cli.client import Client

    file = load_contexts()
    settings = session.settings
    name = settings.context or "default"
    if session.terminal.can_ask:
        import getpass

        token = getpass.getpass(f"Token for {name} ({settings.api}): ").strip()
    else:
        token = sys.stdin.readline().strip()
    if not token:
        raise Problem("bad-request", "no token came on stdin", hint="vmorch login < FILE")
    # a token is kept only for the server that recognised it
    answer = Client(msgspec.structs.replace(settings, token=token)).get("/v1/whoami")
    known = file.contexts.get(name)
    if known is None or known.api != settings.api:
        if known is not None:
            raise Problem(
                "bad-request",
                f"context {name} is {known.api}, not {settings.api}",
                hint=f"vmorch context add NAME --api {settings.api}, then vmorch login -C NAME",
            )
        contexts = {**file.contexts, name: Context(api=settings.api)}
        save_contexts(replace(file, contexts=contexts, current=file.current or name))
    path = save_token(name, token)
    who = msgspec.json.decode(answer.body)
    session.terminal.note(
        f"logged in to {name} as {who.get('name')} ({who.get('role')}); the token is in {path}"
    )
