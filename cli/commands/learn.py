"""`vmorch explain`, `vmorch schema`, `vmorch completion`: answered without a server."""

from typing import Any

import click
import msgspec

from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.table import pairs
from cli.verbs import verb
from vmorch.core.codes import CODES


@verb(
    "explain",
    examples=(
        "vmorch explain no-host-fits",
        "vmorch explain vm",
        "vmorch explain vm.pending",
        "vmorch explain",
    ),
    help="What an error code, a kind of thing or one of its fields means. Without a word: all codes.",
)
@click.argument("what", required=False)
@click.pass_obj
def explain(session: Session, /, what: str | None) -> None:
    if what is None:
        rows = [(name, code.title) for name, code in CODES.items()]
        if structured(session):
            items = [{"code": name, **msgspec.to_builtins(code)} for name, code in CODES.items()]
            show_document(
                session, msgspec.json.encode({"apiVersion": "v1", "kind": "ErrorList", "items": items})
            )
        else:
            session.terminal.out("\n".join(pairs(rows)))
        return
    code = CODES.get(what)
    if code is not None:
        if structured(session):
            show_document(session, msgspec.json.encode({"code": what, **msgspec.to_builtins(code)}))
            return
        session.terminal.out(
            f"{what}: {code.title}\n{code.explanation}\nHTTP {code.status}, exit {code.exit}"
        )
        return
    session.terminal.out("\n".join(_explain_kind(what)))


def resources() -> dict[str, type[msgspec.Struct]]:
    """Noun -> what the API shows of it."""
    from vmorch.core import backup_resources as backups
    from vmorch.core import drain_resources as drains
    from vmorch.core import maintenance_resources as maintenances
    from vmorch.core import resources as shapes

    return {
        "vm": shapes.VmResource,
        "snapshot": shapes.SnapshotDetail,
        "host": shapes.HostResource,
        "image": shapes.ImageResource,
        "backup": backups.BackupDetail,
        "op": shapes.OperationResource,
        "event": shapes.EventResource,
        "token": shapes.TokenResource,
        "drain": drains.DrainDetail,
        "plan": drains.DrainDetail,
        "budget": drains.BudgetResource,
        "maintenance": maintenances.MaintenanceResource,
    }


def _explain_kind(what: str) -> list[str]:
    kind, *path = what.split(".")
    known = resources()
    shape: Any = known.get(kind)
    if shape is None:
        from difflib import get_close_matches

        near = get_close_matches(what, [*CODES, *known], n=3)
        hint = (
            f"did you mean {', '.join(near)}?"
            if near
            else "vmorch explain lists all codes; kinds: " + ", ".join(known)
        )
        raise Problem("not-found", f"{what!r} is neither an error code nor a kind", hint=hint)
    walked = kind
    for name in path:
        fields = _fields(shape)
        if name not in fields:
            raise Problem("not-found", f"{walked} has no field {name!r}", hint=f"vmorch explain {walked}")
        shape, walked = _inner(fields[name]), f"{walked}.{name}"
    text = [f"{walked}  {_type_name(shape)}"]
    doc = getattr(shape, "__doc__", None) if _fields(shape) else None
    if doc:
        text += [line.strip() for line in doc.strip().splitlines()]
    text += pairs([(name, _type_name(_inner(each))) for name, each in _fields(shape).items()], "  ")
    return text


def _fields(shape: Any) -> dict[str, Any]:
    import typing

    if not (isinstance(shape, type) and issubclass(shape, msgspec.Struct)):
        return {}
    return {
        name: hint for name, hint in typing.get_type_hints(shape).items() if name in shape.__struct_fields__
    }


def _inner(hint: Any) -> Any:
    """The type of one element, without None: what a path goes on into."""
    import typing

    args = [each for each in typing.get_args(hint) if each not in (type(None), Ellipsis)]
    origin = typing.get_origin(hint)
    if origin is not None and len(args) == 1 and origin is not typing.Literal:
        return _inner(args[0])
    if (
        len(args) == 2
        and args[0] is str
        and isinstance(args[1], type)
        and issubclass(args[1], msgspec.Struct)
    ):
        return args[1]
    return hint


def _type_name(shape: Any) -> str:
    import typing

    if typing.get_origin(shape) is typing.Literal:
        return " | ".join(str(each) for each in typing.get_args(shape))
    name = getattr(shape, "__name__", None)
    text = name if isinstance(shape, type) and name and not typing.get_args(shape) else str(shape)
    return (
        text.replace("typing.", "").replace("collections.abc.", "").replace("datetime.datetime", "datetime")
    )


@verb(
    "schema",
    examples=("vmorch schema", "vmorch schema vm list", "vmorch schema vm create", "vmorch schema vm.stop"),
    help="The JSON Schema of what a command sends or answers with. Without a word: what there is.",
)
@click.argument("command", nargs=-1)
@click.pass_obj
def schema(session: Session, /, command: tuple[str, ...]) -> None:
    import vmorch.core.operations  # noqa: F401  registers the commands
    from vmorch.core.messages import COMMANDS

    known = resources()
    if not command:
        reads = [(f"{noun} list", f"a list of {noun}s") for noun in known] + [
            (f"{noun} describe", shape.__name__) for noun, shape in known.items()
        ]
        changes = [(kind.replace(".", " "), each.summary) for kind, each in sorted(COMMANDS.items())]
        session.terminal.out("\n".join(pairs([*reads, *changes])))
        return
    words = [part for word in command for part in word.split(".")]
    noun, verbs = words[0], words[1:]
    from cli.verb_data import placed

    placed_verb = placed(" ".join(verbs)) if noun == "vm" else None
    found: Any = COMMANDS.get(f"vm.{placed_verb}" if placed_verb else ".".join(words))
    if found is None and noun in known and verbs in ([], ["describe"], ["show"], ["list"]):
        found = known[noun]
        # a list shows what each of them has beside its details
        if verbs == ["list"] and found.__name__.endswith("Detail"):
            found = found.__base__
    if found is None:
        raise Problem("not-found", f"there is no schema of {' '.join(words)!r}", hint="vmorch schema")
    show_document(session, msgspec.json.encode(_document(found, "list" in verbs, bool(verbs), noun)))


def _document(found: Any, listed: bool, wrapped: bool, noun: str) -> dict[str, Any]:
    import vmorch.core.messages as messages

    (inner,), components = msgspec.json.schema_components([found], ref_template="#/$defs/{name}")
    document: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    if issubclass(found, messages.Message) or not wrapped:
        return {**document, **inner, "$defs": components}
    as_of = {
        "type": "object",
        "properties": {
            "position": {"type": "integer"},
            "time": {"type": ["string", "null"], "format": "date-time"},
        },
        "required": ["position", "time"],
    }
    body = (
        {"items": {"type": "array", "items": inner}, "next": {"type": ["string", "null"]}}
        if listed
        else {"item": inner}
    )
    kind = found.__name__.removesuffix("Resource").removesuffix("Detail") + ("List" if listed else "")
    properties = {"apiVersion": {"const": "v1"}, "kind": {"const": kind}, "asOf": as_of, **body}
    return {
        **document,
        "title": f"vmorch {noun} {'list' if listed else 'describe'}",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "$defs": components,
    }


@verb(
    "completion",
    examples=(
        "source <(vmorch completion bash)",
        "vmorch completion zsh > ~/.zfunc/_vmorch",
        "vmorch completion fish > ~/.config/fish/completions/vmorch.fish",
    ),
    help="The script that makes a shell complete vmorch's commands and names.",
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_obj
def completion(session: Session, /, shell: str) -> None:
    from cli.completion import script

    session.terminal.out(script(click.get_current_context().find_root().command, shell))
