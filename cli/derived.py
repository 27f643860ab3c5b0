"""A command for every verb in the registry: its options are the message's fields.

A new operation needs nothing here.

Must not name any verb. Imported only when a derived verb or the list of them is asked for.
"""

import types
import typing
import uuid
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import click
import msgspec
from msgspec import NODEFAULT, Meta

import vmorch.core.operations  # noqa: F401  registers the verbs
from cli.changes import Request, Waiting, carry_out, carry_out_all, choose, show_plan, vm_summary
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Vm
from cli.transport import quote
from cli.units import show_gib
from cli.verbs import DURATION, PAIR, SIZE_GIB, SIZE_MIB, SectionOption, Verb, change_options, parsed
from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.ids import GiB, MiB
from vmorch.core.messages import COMMANDS

IRREVERSIBLE = frozenset({"delete"})
"""Verbs that always want the typed name; others want it when they are told to use force."""


def vm_verbs() -> dict[str, type[VmCommand]]:
    """Verb -> command, of everything that can be asked of a VM."""
    return {command.verb: command for command in COMMANDS.values() if issubclass(command, VmCommand)}


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A field of a command as the command line sees it."""

    name: str
    kind: Any
    required: bool
    default: Any
    description: str
    many: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def fields_of(command: type[VmCommand]) -> list[Field]:
    """The command's fields in order."""
    hints = typing.get_type_hints(command, include_extras=True)
    found = []
    for field in msgspec.structs.fields(command):
        hint, description = _unwrapped(hints[field.name])
        required = field.default is NODEFAULT and field.default_factory is NODEFAULT
        default = None if field.default is NODEFAULT else field.default
        many = get_origin(hint) in (dict, tuple, list, Mapping) or get_origin(hint) is types.MappingProxyType
        found.append(
            Field(
                name=field.name,
                kind=_kind(hint, description),
                required=required,
                default=default,
                description=description,
                many=many and _kind(hint, description) is not JSON,
            )
        )
    return found


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"this is not JSON: {error}") from error


JSON = parsed("json", _json)


def _unwrapped(hint: Any) -> tuple[Any, str]:
    """The type without None and annotations, and the description found among them."""
    description = ""
    while True:
        if get_origin(hint) is typing.Annotated:
            hint, *notes = get_args(hint)
            texts = [note.description for note in notes if isinstance(note, Meta) and note.description]
            description = description or "; ".join(texts)
        elif get_origin(hint) in (typing.Union, types.UnionType):
            present = [each for each in get_args(hint) if each is not type(None)]
            if len(present) != 1:
                return hint, description
            hint = present[0]
        else:
            return hint, description


def _kind(hint: Any, description: str) -> Any:
    """The parameter type of a field: units are recognised by their type, so that `2Gi` can be typed."""
    if hint is MiB:
        return SIZE_MIB
    if hint is GiB:
        return SIZE_GIB
    if hint is bool:
        return bool
    if hint is float and description.startswith("seconds"):
        return DURATION
    simple = {int: click.INT, float: click.FLOAT, str: click.STRING}
    if hint in simple:
        return simple[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return click.Choice([str(each) for each in args])
    if origin is dict and all(_unwrapped(each)[0] is str for each in args):
        return PAIR
    if origin in (tuple, list) and _unwrapped(args[0])[0] is str:
        return click.STRING
    return JSON


def command_for(command: type[VmCommand]) -> Verb:
    """The command line of one verb.

    A verb whose fields all have defaults takes several VMs; one that must be told something takes one VM and
    then those things.
    """
    fields = fields_of(command)
    required = [field for field in fields if field.required]
    params: list[click.Parameter] = [_subjects(several=not required)]
    params += [click.Argument([field.name], type=field.kind, required=True) for field in required]
    params += [_option(field) for field in fields if not field.required]
    if not required:
        params += _selection()

    def run(**values: Any) -> None:
        _run(command, fields, values)

    change_options(confirms=wants_confirmation(command) is not None)(run)
    made: list[click.Parameter] = list(getattr(run, "__click_params__", []))
    params += reversed(made)
    doc = (command.__doc__ or "").strip().splitlines()
    text = f"{command.summary}.\n\n{' '.join(line.strip() for line in doc)}"
    return Verb(
        command.verb,
        params=params,
        callback=run,
        help=text.replace("`", ""),
        short_help=command.summary,
        examples=examples_for(command, fields),
    )


def _subjects(*, several: bool) -> click.Argument:
    return click.Argument(
        ["vms" if several else "vm"],
        nargs=-1 if several else 1,
        required=not several,
        metavar="VM..." if several else "VM",
        shell_complete=_complete_vm,
    )


def _complete_vm(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from cli.completion import names

    return names(ctx, "vms", incomplete)


def _option(field: Field) -> click.Option:
    help = field.description[:1].upper() + field.description[1:]
    if field.kind is bool:
        flags = f"{field.flag}/--no-{field.flag[2:]}" if field.default is True else field.flag
        return SectionOption([flags, field.name], is_flag=True, default=None, help=_sentence(help))
    default = _default_text(field)
    if field.kind is DURATION and help == "Seconds":
        help = "Time limit"
    text = "; ".join(part for part in (help or field.name.replace("_", " ").capitalize(), default) if part)
    if field.many:
        text += " (repeatable)"
    return SectionOption(
        [field.flag, field.name], type=field.kind, default=None, multiple=field.many, help=_sentence(text)
    )


def _default_text(field: Field) -> str:
    if field.default in (None, (), {}, "") or not isinstance(field.default, int | float | str):
        return ""
    from cli.units import show_seconds

    shown = show_seconds(field.default) if field.kind is DURATION else str(field.default)  # type: ignore[arg-type]
    return f"default {shown}"


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else text + "."


def _selection() -> list[click.Parameter]:
    return [
        SectionOption(
            ["-l", "--selector"],
            type=PAIR,
            multiple=True,
            section="Selection",
            help="VMs with this label (repeatable: all of them).",
        ),
        SectionOption(
            ["--max-parallel"],
            type=click.IntRange(1, 256),
            default=8,
            section="Selection",
            help="How many VMs at once; default 8.",
        ),
    ]


def wants_confirmation(command: type[VmCommand]) -> str | None:
    """When this verb destroys something: "always", "force" (only with that field), or None for never."""
    if command.verb in IRREVERSIBLE:
        return "always"
    return "force" if "force" in command.__struct_fields__ else None


def body_of(command: type[VmCommand], fields: list[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """The request's body: what was typed and nothing else. Raises Problem `bad-request` with the field's name."""
    body: dict[str, Any] = {}
    for field in fields:
        value = values.get(field.name)
        if value is None or (field.many and not value):
            continue
        body[field.name] = dict(value) if field.kind is PAIR else list(value) if field.many else value
    try:
        msgspec.convert(body, command)
    except msgspec.ValidationError as error:
        detail, _, where = str(error).partition(" - at ")
        name = where.strip("`$.").replace("_", "-")
        raise Problem("bad-request", f"{name}: {detail}" if name else detail) from error
    return body


def _run(command: type[VmCommand], fields: list[Field], values: dict[str, Any]) -> None:
    session = click.get_current_context().ensure_object(Session)
    if not values.get("dry_run"):
        session.demand_reason()
    body = body_of(command, fields, values)
    asked = values["vms"] if "vms" in values else (values["vm"],)
    vms = choose(session, asked, dict(values.get("selector") or ()))
    if not vms:
        raise click.UsageError(
            "which VM? give names, 'patterns*' or -l key=value", click.get_current_context()
        )
    when = wants_confirmation(command)
    if not values.get("dry_run") and when and (when == "always" or body.get("force")):
        _confirm(session, command, vms, yes=values["yes"])
    requests = [_request(session, command, vm, body, index) for index, vm in enumerate(vms)]
    if values.get("dry_run"):
        raise SystemExit(max(show_plan(session, request) for request in requests))
    waiting = Waiting(detach=values["detach"], timeout=values["timeout"])
    if len(requests) == 1:
        carry_out(session, requests[0], waiting, vm_summary)
    else:
        carry_out_all(session, requests, waiting, max_parallel=values["max_parallel"])


def _request(
    session: Session, command: type[VmCommand], vm: str, body: dict[str, Any], index: int
) -> Request:
    first = session.request_id
    # a repeat of the whole line with --request-id must give each VM the id that it had
    id = first if index == 0 else str(uuid.uuid5(uuid.NAMESPACE_OID, f"{first}/{vm}"))
    return Request(
        label=f"vm.{command.verb}",
        name=vm,
        path=f"/v1/vms/{quote(vm)}/{command.verb}",
        body=body,
        request_id=id,
    )


def _confirm(session: Session, command: type[VmCommand], vms: list[str], *, yes: bool) -> None:
    if yes:
        return
    doing = f"{command.verb} by force" if command.verb not in IRREVERSIBLE else command.verb
    if len(vms) > 1:
        session.confirm(f"{doing}: {', '.join(vms)}", str(len(vms)), yes=False, asked_for="number of VMs")
        return
    if not session.terminal.can_ask:
        session.confirm(f"{doing} {vms[0]}", vms[0], yes=False)
    vm = session.client.single(f"/v1/vms/{quote(vms[0])}", Vm).item
    disks = ", ".join(f"{disk.name} {show_gib(disk.size)}" for disk in vm.spec.disks)
    what = (
        f"{doing} {vm.name}: {vm.state}"
        + (f" on {vm.host}" if vm.host else "")
        + (f"; disks {disks}" if disks else "")
    )
    session.confirm(what, vm.name, yes=False, asked_for="VM's name")


def examples_for(command: type[VmCommand], fields: list[Field]) -> list[str]:
    """Lines that can be typed, made from the fields."""
    required = " ".join(_sample(field) for field in fields if field.required)
    base = f"vmorch vm {command.verb} web-1"
    optional = [field for field in fields if not field.required]
    # without anything to say, a verb whose fields are all empty would say nothing
    speaks = not optional or any(field.default not in (None, (), {}) for field in optional)
    found = [f"{base} {required}".rstrip()] if speaks else []
    if optional:
        shown = " ".join(_typed(field) for field in optional[:2])
        found.append(f"{base} {required + ' ' if required else ''}{shown}")
    if not required:
        more = "" if speaks else " " + " ".join(_typed(field) for field in optional[:1])
        found.append(f"vmorch vm {command.verb} 'web-*' -l tier=test{more} -m \"CHG-2211\"")
    return found


def _typed(field: Field) -> str:
    return field.flag if field.kind is bool else f"{field.flag} {_sample(field)}"


def _sample(field: Field) -> str:
    if isinstance(field.kind, click.Choice):
        return str(field.kind.choices[0])
    samples = [(SIZE_MIB, "4Gi"), (SIZE_GIB, "40Gi"), (DURATION, "2m"), (PAIR, "tier=gold"), (click.INT, "4")]
    for kind, text in samples:
        if field.kind is kind:
            return text
    return "'{}'" if field.kind is JSON else "web-2" if field.name == "name" else "old"
