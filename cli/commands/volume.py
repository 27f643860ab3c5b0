"""`vmorch volume`: disks with a name and a life of their own.

Must not import what is needed only once the API was asked.
"""

from typing import Any

import click

from cli.changes import Request, Waiting, plan_or_carry_out
from cli.completion import complete_host, complete_vm
from cli.session import Session
from cli.transport import quote
from cli.verbs import SIZE_GIB, Entry, Group, change_options, compares, diff_option, past_option, verb

_HERE = "cli.commands.volume"

volume = Group(
    "volume",
    {
        "list": Entry(f"{_HERE}:list_volumes", "List volumes, or what nobody owns", "Look"),
        "describe": Entry(f"{_HERE}:describe", "Everything about a volume", "Look"),
        "create": Entry(f"{_HERE}:create", "Make an empty volume", "Change"),
        "clone": Entry(f"{_HERE}:clone", "Copy a volume", "Change"),
        "attach": Entry(f"{_HERE}:attach", "Give a VM a volume as a disk", "Change"),
        "detach": Entry(f"{_HERE}:detach", "Take a volume away from its VM", "Change"),
        "resize": Entry(f"{_HERE}:resize", "Make a volume larger", "Change"),
        "delete": Entry(f"{_HERE}:delete", "Delete a volume, at the second time of asking for good", "Change"),
        "restore": Entry(f"{_HERE}:restore", "Have a volume back that waits to be deleted", "Change"),
        "quarantine": Entry(f"{_HERE}:quarantine", "Set a directory aside that nobody owns", "Change"),
    },
    help="Volumes: disks that outlive VMs and go from one to another.",
    foreign={
        "ls": "vmorch volume list",
        "get": "vmorch volume list",
        "show": "vmorch volume describe NAME",
        "info": "vmorch volume describe NAME",
        "new": "vmorch volume create NAME --size SIZE",
        "add": "vmorch volume create NAME --size SIZE",
        "copy": "vmorch volume clone NAME NEW",
        "grow": "vmorch volume resize NAME SIZE",
        "extend": "vmorch volume resize NAME SIZE",
        "rm": "vmorch volume delete NAME",
        "remove": "vmorch volume delete NAME",
        "undelete": "vmorch volume restore NAME",
        "orphans": "vmorch volume list --orphans",
    },
    examples=(
        "vmorch volume create data --size 40Gi",
        "vmorch volume attach data db-1",
        "vmorch volume detach data",
        "vmorch volume list --orphans",
    ),
)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from cli.completion import names

    return names(ctx, "volumes", incomplete)


@verb(
    "list",
    examples=("vmorch volume list", "vmorch volume list --state quarantined", "vmorch volume list --orphans"),
    help="List volumes. With --orphans every connected host is asked for directories of VMs and volumes that nobody"
    " owns, and those are listed.",
)
@click.argument("pattern", required=False)
@click.option("--vm", metavar="VM", help="Only those of this VM.", shell_complete=complete_vm)
@click.option("--host", metavar="HOST", help="Only on this host.", shell_complete=complete_host)
@click.option("--state", metavar="STATE", help="Only in this state: available, attached, quarantined, ...")
@click.option("--orphans", is_flag=True, help="What nobody owns, instead.")
@click.option("--no-headers", is_flag=True, help="No header line.")
@click.option("-w", "--watch", is_flag=True, help="Stay and show changes.")
@diff_option
@past_option
@click.pass_obj
def list_volumes(
    session: Session,
    /,
    pattern: str | None,
    vm: str | None,
    host: str | None,
    state: str | None,
    orphans: bool,
    no_headers: bool,
    watch: bool,
) -> None:
    from cli.listing import View, query_of, show_list
    from cli.volume_shapes import Stray, Volume
    from cli.volumes import columns_of, stray_columns

    if orphans:
        if pattern or vm or state or watch:
            raise click.UsageError("--orphans can be narrowed by --host alone")
        _ask_hosts(session, host)
        strays = View(path="/v1/strays", shape=Stray, columns=stray_columns(session), name=lambda each: each.id,
                      noun="orphan")  # fmt: skip
        show_list(session, strays, {}, headers=not no_headers, watch=False)
        return
    view = View(path="/v1/volumes", shape=Volume, columns=columns_of(session), name=lambda each: each.name,
                noun="volume")  # fmt: skip
    query = query_of({"name": pattern, "vm": vm, "host": host, "state": state})
    show_list(session, view, query, headers=not no_headers, watch=watch)


def _ask_hosts(session: Session, only: str | None) -> None:
    """Every host has been asked now; those that cannot be are named."""
    from uuid import uuid4

    from cli.client import accepted
    from cli.follow import failure, wait_for_end
    from cli.volume_shapes import HostName

    names = [only] if only is not None else []
    if only is None:
        for page in session.client.pages("/v1/hosts", {}, HostName):
            for host in page.items:
                if host.state in ("invited", "retired"):
                    continue
                if host.state == "unreachable":
                    session.terminal.note(f"{host.name} is unreachable: what it told last is shown")
                    continue
                names.append(host.name)
    for name in names:
        # each host is asked anew, whatever was asked before
        answer = session.client.change(f"/v1/strays/{quote(name)}/find", {}, request_id=str(uuid4()))
        operation = accepted(answer).operation
        assert operation is not None
        problem = failure(wait_for_end(session.client, operation, lambda why: None))
        if problem is not None:
            session.terminal.note(f"{name} could not be asked: {problem}; what it told last is shown")


@verb(
    "describe",
    examples=("vmorch volume describe data", "vmorch volume describe data -o json"),
    help="Everything about a volume: where it lies, who uses it.",
)
@click.argument("name", metavar="VOLUME", shell_complete=_complete)
@past_option
@click.pass_obj
@compares("volume", "name")
def describe(session: Session, /, name: str) -> None:
    from cli.output import show_document, structured

    answer = session.client.get(f"/v1/volumes/{quote(name)}")
    if structured(session):
        show_document(session, answer.body)
        return
    from cli.client import decode
    from cli.listing import now
    from cli.shapes import Single
    from cli.volume_shapes import Volume
    from cli.volumes import describe_lines

    found = decode(answer.body, Single[Volume]).item
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    session.terminal.out("\n".join(describe_lines(found, now(), session)))


@verb(
    "create",
    examples=("vmorch volume create data --size 40Gi", "vmorch volume create scratch --size 10Gi --local --host hv-01"),
    help="Make an empty volume. On shared storage every VM can use it whose host sees that; a local one stays on its"
    " host.",
)
@click.argument("name", metavar="VOLUME")
@click.option("--size", type=SIZE_GIB, required=True, help="Its size, such as 40Gi.")
@click.option("--local", is_flag=True, help="On a host's local storage.")
@click.option("--host", metavar="HOST", help="The host; else one that has room.", shell_complete=complete_host)
@change_options()
@click.pass_obj
def create(
    session: Session,
    /,
    name: str,
    size: int,
    local: bool,
    host: str | None,
    dry_run: bool,
    detach: bool,
    timeout: float | None,
) -> None:
    body: dict[str, Any] = {"name": name, "size": size, "storage": "local" if local else "shared"}
    body |= {} if host is None else {"host": host}
    _change(session, name, "create", "/v1/volumes", body, dry_run, Waiting(detach=detach, timeout=timeout))


@verb(
    "clone",
    examples=("vmorch volume clone data data-copy",),
    help="Copy a volume that nobody uses. The copy shares nothing with it.",
)
@click.argument("name", metavar="VOLUME", shell_complete=_complete)
@click.argument("new", metavar="NEW")
@change_options()
@click.pass_obj
def clone(session: Session, /, name: str, new: str, dry_run: bool, detach: bool, timeout: float | None) -> None:
    _verb(session, name, "clone", {"name": new}, dry_run, Waiting(detach=detach, timeout=timeout))


@verb(
    "attach",
    examples=("vmorch volume attach data db-1",),
    help="Give a VM a volume as a disk, under the first name that is free. A guest that runs gets it at once.",
)
@click.argument("name", metavar="VOLUME", shell_complete=_complete)
@click.argument("vm", metavar="VM", shell_complete=complete_vm)
@change_options()
@click.pass_obj
def attach(session: Session, /, name: str, vm: str, dry_run: bool, detach: bool, timeout: float | None) -> None:
    _verb(session, name, "attach", {"vm": vm}, dry_run, Waiting(detach=detach, timeout=timeout))


@verb(
    "detach",
    examples=("vmorch volume detach data",),
    help="Take a volume away from its VM; unmount it in the guest first. A guest that runs has to let go of it: one"
    " that does not keeps it, and the VM is as before.",
)
@click.argument("name", metavar="VOLUME", shell_complete=_complete)
@change_options()
@click.pass_obj
def detach(session: Session, /, name: str, dry_run: bool, detach: bool, timeout: float | None) -> None:
    _verb(session, name, "detach", {}, dry_run, Waiting(detach=detach, timeout=timeout))


@verb(
    "resize",
    examples=("vmorch volume resize data 80Gi",),
    help="Make a volume larger, also while a guest uses it. None becomes smaller.",
)
@click.argument("name", metavar="VOLUME", shell_complete=_complete)
@click.argument("size", type=SIZE_GIB, metavar="SIZE")
@change_options()
@click.pass_obj
def resize(session: Session, /, name: str, size: int, dry_run: bool, detach: bool, timeout: float | None) -> None:
    _verb(session, name, "resize", {"size": size}, dry_run, Waiting(detach=detach, timeout=timeout))


@verb(
    "delete",
    examples=("vmorch volume delete data", "vmorch volume delete data -y -m 'not needed any more'"),
    help="Delete a volume that nobody uses. The first time it is only set aside: nobody can use it, and `vmorch volume"
    " restore` has it back. Asked again, it is deleted for good.",
)
@click.argument("name", metavar="VOLUME", shell_complete=_complete)
@change_options(confirms=True)
@click.pass_obj
def delete(
    session: Session, /, name: str, dry_run: bool, detach: bool, timeout: float | None, yes: bool
) -> None:
    if not dry_run:
        session.demand_reason()
        if not yes:
            _confirm(session, name)
    _verb(session, name, "delete", {}, dry_run, Waiting(detach=detach, timeout=timeout))


def _confirm(session: Session, name: str) -> None:
    if not session.terminal.can_ask:
        session.confirm(f"delete volume {name}", name, yes=False)
    from cli.volume_shapes import Volume
    from cli.volumes import size_of

    found = session.client.single(f"/v1/volumes/{quote(name)}", Volume).item
    what = f"set volume {found.name} aside ({size_of(found)})"
    if found.state == "quarantined":
        what = f"delete volume {found.name} for good ({size_of(found)}); nothing brings it back"
    session.confirm(what, found.name, yes=False, asked_for="volume's name")


@verb(
    "restore",
    examples=("vmorch volume restore data",),
    help="Have a volume back that waits to be deleted. A directory that nobody owned goes back to where it lay.",
)
@click.argument("name", metavar="VOLUME", shell_complete=_complete)
@change_options()
@click.pass_obj
def restore(session: Session, /, name: str, dry_run: bool, detach: bool, timeout: float | None) -> None:
    _verb(session, name, "restore", {}, dry_run, Waiting(detach=detach, timeout=timeout))


@verb(
    "quarantine",
    examples=("vmorch volume quarantine hv-01 0192f0c1-7a3b-7000-8000-00000000beef",),
    help="Set a directory aside that nobody owns, as `vmorch volume list --orphans` shows it. It is moved and not"
    " deleted, and stands among the volumes as quarantined: `vmorch volume restore` puts it back, `vmorch volume"
    " delete` deletes it for good.",
)
@click.argument("host", metavar="HOST", shell_complete=complete_host)
@click.argument("id", metavar="ID")
@click.option("--storage", type=click.Choice(("local", "shared")), default="local", show_default=True, help="Where.")
@change_options()
@click.pass_obj
def quarantine(
    session: Session, /, host: str, id: str, storage: str, dry_run: bool, detach: bool, timeout: float | None
) -> None:
    body = {"id": id, "storage": storage}
    path = f"/v1/strays/{quote(host)}/set-aside"
    _change(session, id, "quarantine", path, body, dry_run, Waiting(detach=detach, timeout=timeout))


def _verb(session: Session, name: str, what: str, body: dict[str, Any], dry_run: bool, waiting: Waiting) -> None:
    _change(session, name, what, f"/v1/volumes/{quote(name)}/{what}", body, dry_run, waiting)


def _change(
    session: Session, name: str, what: str, path: str, body: dict[str, Any], dry_run: bool, waiting: Waiting
) -> None:
    request = Request(label=f"volume.{what}", name=name, path=path, body=body, request_id=session.request_id)
    plan_or_carry_out(session, request, waiting, dry_run=dry_run)
