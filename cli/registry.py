"""The verbs on a VM, from the registry of commands to data. Runs when `verbs.json` is written, never for an operator.

A new operation needs nothing here. Must not name any verb, apart from those that nobody can take back and those that
do not stand among the others.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

import vmorch.core.operations  # noqa: F401  registers the verbs
from cli.limits import essence
from cli.units import show_seconds
from cli.verb_data import Field, Kind, VerbData
from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.ids import GiB, MiB
from vmorch.core.messages import COMMANDS

IRREVERSIBLE = frozenset({"delete", "delete-snapshot", "resolve"})
"""Verbs that always want the typed name; others want it when they are told to use force."""

WRITTEN = frozenset({"rollback"})
"""Verbs whose command line is written by hand."""


class Place(Struct, frozen=True):
    """Where an operator finds a verb that stands in a group of its own, and lines that he can type there."""

    path: str
    examples: tuple[str, ...]


PLACES = {
    "snapshot": Place(
        "snapshot create",
        (
            "vmorch vm snapshot create web-1",
            "vmorch vm snapshot create db-1 --name pre-upgrade --quiesce",
            "vmorch vm snapshot create db-1 --memory --description 'before CHG-2211'",
            "vmorch vm snapshot create 'web-*' -l tier=test --name pre-upgrade",
        ),
    ),
    "backup": Place(
        "backup create",
        (
            "vmorch vm backup create web-1",
            "vmorch vm backup create db-1 --name db-1-nightly --quiesce",
            "vmorch vm backup create db-1 --full --to offsite -m CHG-2211",
            "vmorch vm backup create -l tier=gold --max-parallel 2",
        ),
    ),
    "delete-snapshot": Place(
        "snapshot delete",
        (
            "vmorch vm snapshot delete db-1 pre-upgrade",
            "vmorch vm snapshot delete db-1 pre-upgrade --with-children",
        ),
    ),
    "set-snapshot-policy": Place(
        "snapshot policy",
        (
            "vmorch vm snapshot policy db-1",
            "vmorch vm snapshot policy db-1 --every 1h --hourly 12 --daily 7",
            "vmorch vm snapshot policy -l tier=gold --every 6h --last 4 --quiesce",
            "vmorch vm snapshot policy db-1 --off",
        ),
    ),
}
"""Verbs that stand in a group below `vm`."""


def verbs_json() -> str:
    """Everything that can be asked of a VM, as a file."""
    found = {
        command.verb: derive(command)
        for command in COMMANDS.values()
        if issubclass(command, VmCommand) and command.verb not in WRITTEN
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


def derive(command: type[VmCommand]) -> VerbData:
    """One verb."""
    hints = typing.get_type_hints(command, include_extras=True)
    pairs = [(field, _field(field, hints[field.name])) for field in msgspec.structs.fields(command)]
    doc = (command.__doc__ or "").strip().splitlines()
    text = f"{command.summary}.\n\n{' '.join(line.strip() for line in doc)}"
    place = PLACES.get(command.verb)
    return VerbData(
        verb=command.verb,
        place="" if place is None else place.path,
        summary=command.summary,
        help=text.replace("`", ""),
        confirms=_confirms(command),
        fields=tuple(field for _, field in pairs),
        examples=tuple(_examples(command.verb, pairs)) if place is None else place.examples,
    )


def _confirms(command: type[VmCommand]) -> Literal["always", "force"] | None:
    if command.verb in IRREVERSIBLE:
        return "always"
    return "force" if "force" in command.__struct_fields__ else None


def _field(field: msgspec.structs.FieldInfo, annotated: Any) -> Field:
    hint, description = _unwrapped(annotated)
    kind = _kind(hint, description)
    required = field.default is NODEFAULT and field.default_factory is NODEFAULT
    many = kind == "pairs" or (kind == "text" and get_origin(hint) in (tuple, list))
    checked = kind not in ("switch", "choice", "json")
    return Field(
        name=field.name,
        kind=kind,
        required=required,
        many=many,
        on=kind == "switch" and field.default is True,
        choices=tuple(str(each) for each in get_args(hint)) if kind == "choice" else (),
        help=_help(field, kind, description, many=many),
        limits=essence(msgspec.json.schema(annotated)) if checked else {},
    )


def _unwrapped(hint: Any) -> tuple[Any, str]:
    """The type without None and annotations, and the description found among them."""
    description = ""
    while True:
        if get_origin(hint) is typing.Annotated:
            hint, *notes = get_args(hint)
            texts = [note.description for note in notes if isinstance(note, Meta) and note.description]
            # the last one was said of this very field, those before it of its type
            description = description or (texts[-1] if texts else "")
        elif get_origin(hint) in (typing.Union, types.UnionType):
            present = [each for each in get_args(hint) if each is not type(None)]
            if len(present) != 1:
                return hint, description
            hint = present[0]
        else:
            return hint, description


def _kind(hint: Any, description: str) -> Kind:
    """How a field is typed: units are recognised by their type, so that `2Gi` can be typed."""
    if hint is float and description.startswith("seconds"):
        return "duration"
    simple: dict[Any, Kind] = {
        MiB: "mib",
        GiB: "gib",
        bool: "switch",
        int: "integer",
        float: "number",
        str: "text",
    }
    if hint in simple:
        return simple[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "choice"
    if origin in (dict, Mapping) and all(_unwrapped(each)[0] is str for each in args):
        return "pairs"
    if origin in (tuple, list) and _unwrapped(args[0])[0] is str:
        return "text"
    return "json"


def _help(field: msgspec.structs.FieldInfo, kind: Kind, description: str, *, many: bool) -> str:
    text = description[:1].upper() + description[1:]
    if kind == "duration" and text == "Seconds":
        text = "Time limit"
    if kind != "switch":
        text = text or field.name.replace("_", " ").capitalize()
        text = "; ".join(part for part in (text, _default(field, kind)) if part)
    if many:
        text += " (repeatable)"
    return text if not text or text.endswith(".") else text + "."


def _default(field: msgspec.structs.FieldInfo, kind: Kind) -> str:
    if not isinstance(field.default, int | float | str) or field.default == "":
        return ""
    return f"default {show_seconds(field.default) if kind == 'duration' else field.default}"  # type: ignore[arg-type]


def _examples(verb: str, pairs: Sequence[tuple[msgspec.structs.FieldInfo, Field]]) -> list[str]:
    """Lines that can be typed, made from the fields."""
    required = " ".join(_sample(field) for _, field in pairs if field.required)
    base = f"vmorch vm {verb} web-1"
    optional = [field for _, field in pairs if not field.required]
    # without anything to say, a verb whose fields are all empty would say nothing
    defaults = [info.default for info, field in pairs if not field.required]
    speaks = not optional or any(each not in (NODEFAULT, None, (), {}) for each in defaults)
    found = [f"{base} {required}".rstrip()] if speaks else []
    if optional:
        shown = " ".join(_typed(field) for field in optional[:2])
        found.append(f"{base} {required + ' ' if required else ''}{shown}")
    if not required:
        more = "" if speaks else " " + " ".join(_typed(field) for field in optional[:1])
        found.append(f"vmorch vm {verb} 'web-*' -l tier=test{more} -m \"CHG-2211\"")
    return found


def _typed(field: Field) -> str:
    return field.flag if field.kind == "switch" else f"{field.flag} {_sample(field)}"


def _sample(field: Field) -> str:
    if field.kind == "choice":
        return field.choices[0]
    samples = {"mib": "4Gi", "gib": "40Gi", "duration": "2m", "pairs": "tier=gold", "integer": "4", "json": "'{}'"}
    return samples.get(field.kind, {"name": "web-2", "to": "hv-02", "on": "hv-02"}.get(field.name, "old"))
