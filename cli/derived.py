"""A command for every verb in the data that was derived from the registry: its options are the message's fields.

A new operation needs nothing here. Must not name any verb, nor import what is needed only once the API was asked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import msgspec

from cli.changes import Request, Waiting, carry_out, choose
from cli.problems import Problem
from cli.session import Session
from cli.transport import quote
from cli.verb_data import Field, Kind, VerbData
from cli.verbs import DURATION, PAIR, SIZE_GIB, SIZE_MIB, SectionOption, Verb, change_options, parsed


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"this is not JSON: {error}") from error


KINDS: dict[Kind, Any] = {
    "text": click.STRING,
    "integer": click.INT,
    "number": click.FLOAT,
    "switch": bool,
    "mib": SIZE_MIB,
    "gib": SIZE_GIB,
    "duration": DURATION,
    "pairs": PAIR,
    "json": parsed("json", _json),
}
"""The parameter type of each kind; a choice has one of its own."""


Body = dict[str, Any]
Confirm = Callable[[Session, VerbData, list[str], Body], None]
"""Asks whether this shall be done to these VMs. Raises Problem `confirmation-missing`."""
Bare = Callable[[Session, Sequence[str]], None]
"""What is done with VMs of which nothing is asked."""


Complete = Callable[[click.Context, click.Parameter, str], list[Any]]
"""What a field may be, from what was typed of it."""


def command_for(
    data: VerbData,
    *,
    confirm: Confirm | None = None,
    bare: Bare | None = None,
    complete: Mapping[str, Complete] | None = None,
) -> Verb:
    """The command line of one verb. `confirm` asks in its own way; `bare` is for a line that asks for nothing;
    `complete` knows what some fields may be.

    A verb whose fields all have defaults takes several VMs; one that must be told something takes one VM and
    then those things.
    """
    required = [field for field in data.fields if field.required]
    params: list[click.Parameter] = [_subjects(several=not required)]
    params += [
        click.Argument(
            [field.name], type=_type(field), required=True, shell_complete=(complete or {}).get(field.name)
        )
        for field in required
    ]
    params += [_option(field) for field in data.fields if not field.required]
    if not required:
        params += _selection()

    def run(**values: Any) -> None:
        _run(data, values, confirm or _confirm, bare)

    change_options(confirms=data.confirms is not None)(run)
    made: list[click.Parameter] = list(getattr(run, "__click_params__", []))
    params += reversed(made)
    return Verb(
        data.place.rpartition(" ")[2] or data.verb,
        params=params,
        callback=run,
        help=data.help,
        short_help=data.summary,
        examples=data.examples,
    )


def _type(field: Field) -> Any:
    return click.Choice(field.choices) if field.kind == "choice" else KINDS[field.kind]


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
    if field.kind == "switch":
        flags = f"{field.flag}/--no-{field.flag[2:]}" if field.on else field.flag
        return SectionOption([flags, field.name], is_flag=True, default=None, help=field.help)
    return SectionOption(
        [field.flag, field.name], type=_type(field), default=None, multiple=field.many, help=field.help
    )


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


def body_of(data: VerbData, values: Mapping[str, Any]) -> Body:
    """The request's body: what was typed and nothing else. Raises Problem `bad-request` with the field's name."""
    body: dict[str, Any] = {}
    for field in data.fields:
        value = values.get(field.name)
        if value is None or (field.many and not value):
            continue
        body[field.name] = (
            dict(value) if field.kind == "pairs" else list(value) if field.many else value
        )
    limits = {field.name: field.limits for field in data.fields if field.limits and field.name in body}
    if limits:
        _check(body, limits)
    return body


def _check(body: dict[str, Any], limits: Mapping[str, Mapping[str, Any]]) -> None:
    from cli.limits import check

    try:
        check(body, limits)
    except msgspec.ValidationError as error:
        from vmorch.core.errors import bad_value

        refusal = bad_value(str(error))
        detail, _, where = refusal.reason.partition(" - at ")
        # "at `$.memory`" or, for the key of a mapping, "at `key` in `$.set`"
        name = where.rpartition("`$.")[2].rstrip("`").replace("_", "-")
        raise Problem(refusal.code, f"{name}: {detail}" if name else detail) from error


def _run(data: VerbData, values: dict[str, Any], confirm: Confirm, bare: Bare | None) -> None:
    session = click.get_current_context().ensure_object(Session)
    body = body_of(data, values)
    looks = bare is not None and not body
    if not values.get("dry_run") and not looks:
        session.demand_reason()
    asked = values["vms"] if "vms" in values else (values["vm"],)
    vms = choose(session, asked, dict(values.get("selector") or ()))
    if not vms:
        raise click.UsageError(
            "which VM? give names, 'patterns*' or -l key=value", click.get_current_context()
        )
    if bare is not None and looks:
        bare(session, vms)
        return
    destroys = data.confirms == "always" or (data.confirms == "force" and body.get("force"))
    if destroys and not values.get("dry_run") and not values["yes"]:
        confirm(session, data, vms, body)
    requests = [_request(session, data, vm, body, index) for index, vm in enumerate(vms)]
    if values.get("dry_run"):
        from cli.plans import show_plan

        raise SystemExit(max(show_plan(session, request) for request in requests))
    waiting = Waiting(detach=values["detach"], timeout=values["timeout"])
    if len(requests) == 1:
        carry_out(session, requests[0], waiting)
    else:
        from cli.several import carry_out_all

        carry_out_all(session, requests, waiting, max_parallel=values["max_parallel"])


def _request(session: Session, data: VerbData, vm: str, body: dict[str, Any], index: int) -> Request:
    first = session.request_id
    # a repeat of the whole line with --request-id must give each VM the id that it had
    id = first if index == 0 else _nth(first, vm)
    return Request(
        label=f"vm.{data.verb}", name=vm, path=f"/v1/vms/{quote(vm)}/{data.verb}", body=body, request_id=id
    )


def _nth(first: str, vm: str) -> str:
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{first}/{vm}"))


def _confirm(session: Session, data: VerbData, vms: list[str], body: Body) -> None:
    from cli.evidence import evidence
    from cli.shapes import Vm
    from cli.table import pairs
    from cli.units import show_gib

    doing = data.verb if data.confirms == "always" else f"{data.verb} by force"
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
    if vm.frozen is not None:
        what = "\n".join([what, *pairs(evidence(vm.frozen), "  ")])
    session.confirm(what, vm.name, yes=False, asked_for="VM's name")
