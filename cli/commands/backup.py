"""`vmorch backup`: backups of VMs, whether or not the VM is still there.

Must not import what is needed only once the API was asked.
"""

from typing import Any

import click

from cli.changes import Request, Waiting, plan_or_carry_out
from cli.completion import complete_host, complete_vm
from cli.session import Session
from cli.transport import quote
from cli.verbs import Entry, Group, change_options, compares, diff_option, past_option, verb

_HERE = "cli.commands.backup"

backup = Group(
    "backup",
    {
        "list": Entry(f"{_HERE}:list_backups", "List backups", "Look"),
        "describe": Entry(f"{_HERE}:describe", "Everything about a backup", "Look"),
        "verify": Entry(f"{_HERE}:verify", "Prove that a VM can be had back from a backup", "Change"),
        "restore": Entry(f"{_HERE}:restore", "Make a new VM from a backup", "Change"),
        "delete": Entry(f"{_HERE}:delete", "Delete a backup", "Change"),
    },
    help="Backups: VMs' disks in a directory of their own, from which new VMs are made.",
    foreign={
        "ls": "vmorch backup list",
        "get": "vmorch backup list",
        "show": "vmorch backup describe NAME",
        "info": "vmorch backup describe NAME",
        "create": "vmorch vm backup create VM",
        "take": "vmorch vm backup create VM",
        "add": "vmorch vm backup create VM",
        "new": "vmorch vm backup create VM",
        "check": "vmorch backup verify NAME",
        "test": "vmorch backup verify NAME --boot",
        "rm": "vmorch backup delete NAME",
        "remove": "vmorch backup delete NAME",
        "prune": "vmorch backup delete NAME",
    },
    examples=(
        "vmorch vm backup create db-1 --quiesce",
        "vmorch backup list --vm db-1",
        "vmorch backup verify db-1-nightly --boot",
        "vmorch backup restore db-1-nightly --name db-1-again",
    ),
)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from cli.completion import names

    return names(ctx, "backups", incomplete)


@verb(
    "list",
    examples=("vmorch backup list", "vmorch backup list --vm db-1 -o wide", "vmorch backup list 'nightly-*'"),
    help="List backups, newest first, with how each stood its last verification.",
)
@click.argument("pattern", required=False)
@click.option("--vm", metavar="VM", help="Only of this VM.", shell_complete=complete_vm)
@click.option("--no-headers", is_flag=True, help="No header line.")
@click.option("-w", "--watch", is_flag=True, help="Stay and show changes.")
@diff_option
@past_option
@click.pass_obj
def list_backups(session: Session, /, pattern: str | None, vm: str | None, no_headers: bool, watch: bool) -> None:
    show(session, "/v1/backups", {"name": pattern, "vm": vm}, headers=not no_headers, watch=watch)


def show(session: Session, path: str, query: dict[str, Any], *, headers: bool, watch: bool) -> None:
    """A list of backups."""
    from cli.backup_shapes import Backup
    from cli.backups import columns_of
    from cli.listing import View, query_of, show_list

    view = View(path=path, shape=Backup, columns=columns_of(session), name=lambda each: each.name, noun="backup")
    show_list(session, view, query_of(query), headers=headers, watch=watch)


@verb(
    "describe",
    examples=("vmorch backup describe db-1-nightly", "vmorch backup describe db-1-nightly -o json --query item.chain"),
    help="Everything about a backup: what it stands on, what its disks take, how it stood its last verification.",
)
@click.argument("name", metavar="BACKUP", shell_complete=_complete)
@past_option
@click.pass_obj
@compares("backup", "name")
def describe(session: Session, /, name: str) -> None:
    from cli.output import show_document, structured

    answer = session.client.get(f"/v1/backups/{quote(name)}")
    if structured(session):
        show_document(session, answer.body)
        return
    from cli.backup_shapes import BackupDetail
    from cli.backups import describe_lines
    from cli.client import decode
    from cli.listing import now
    from cli.shapes import Single

    found = decode(answer.body, Single[BackupDetail]).item
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    session.terminal.out("\n".join(describe_lines(found, now(), session)))


@verb(
    "verify",
    examples=("vmorch backup verify db-1-nightly", "vmorch backup verify db-1-nightly --boot"),
    help="Prove that a VM can be had back from a backup: every byte of it, and of what it stands on, is compared with"
    " what was noted when it was made. With --boot a VM is made from it, without network cards, started, waited for"
    " until it is up, and deleted. What comes of it is recorded and shown in the list.",
)
@click.argument("name", metavar="BACKUP", shell_complete=_complete)
@click.option("--boot", is_flag=True, help="Also start a VM from it.")
@change_options()
@click.pass_obj
def verify(
    session: Session, /, name: str, boot: bool, dry_run: bool, detach: bool, timeout: float | None
) -> None:
    body = {"boot": True} if boot else {}
    _change(session, name, "verify", body, dry_run=dry_run, waiting=Waiting(detach=detach, timeout=timeout))


@verb(
    "restore",
    examples=(
        "vmorch backup restore db-1-nightly --name db-1-again",
        "vmorch backup restore db-1-nightly --name db-1-look --isolated --no-start",
        "vmorch backup restore db-1-nightly --name db-2 --host hv-02 --storage shared",
    ),
    help="Make a new VM from a backup: shaped as it was then, with cards of its own. The VM that was backed up is not"
    " touched.",
)
@click.argument("backup", metavar="BACKUP", shell_complete=_complete)
@click.option("--name", required=True, metavar="VM", help="What the new VM is called.")
@click.option("--host", metavar="HOST", help="Where it is made; else where it suits.", shell_complete=complete_host)
@click.option("--storage", type=click.Choice(("local", "shared")), help="Where its disks go; else as they were.")
@click.option("--isolated", is_flag=True, help="Without network cards.")
@click.option("--start/--no-start", default=True, help="Start it; the default.")
@change_options()
@click.pass_obj
def restore(
    session: Session,
    /,
    backup: str,
    name: str,
    host: str | None,
    storage: str | None,
    isolated: bool,
    start: bool,
    dry_run: bool,
    detach: bool,
    timeout: float | None,
) -> None:
    body: dict[str, Any] = {"name": name}
    body |= {key: value for key, value in (("host", host), ("storage", storage)) if value is not None}
    body |= ({"isolated": True} if isolated else {}) | ({} if start else {"start": False})
    _change(session, backup, "restore", body, dry_run=dry_run, waiting=Waiting(detach=detach, timeout=timeout))


@verb(
    "delete",
    examples=("vmorch backup delete db-1-monday", "vmorch backup delete db-1-sunday --with-children -y"),
    help="Delete a backup. One that others stand on stays, unless they shall go too.",
)
@click.argument("name", metavar="BACKUP", shell_complete=_complete)
@click.option("--with-children", is_flag=True, help="Also those that stand on it.")
@change_options(confirms=True)
@click.pass_obj
def delete(
    session: Session,
    /,
    name: str,
    with_children: bool,
    dry_run: bool,
    detach: bool,
    timeout: float | None,
    yes: bool,
) -> None:
    if not dry_run:
        session.demand_reason()
        if not yes:
            _confirm(session, name, with_children)
    body = {"with_children": True} if with_children else {}
    _change(session, name, "delete", body, dry_run=dry_run, waiting=Waiting(detach=detach, timeout=timeout))


def _confirm(session: Session, name: str, with_children: bool) -> None:
    if not session.terminal.can_ask:
        session.confirm(f"delete backup {name}", name, yes=False)
    from cli.backup_shapes import BackupDetail
    from cli.backups import verified
    from cli.units import show_bytes

    found = session.client.single(f"/v1/backups/{quote(name)}", BackupDetail).item
    what = [f"delete backup {found.name} of {found.vm_name}: {found.kind}, {show_bytes(found.bytes)}, "
            f"verified: {verified(found)}"]  # fmt: skip
    if found.children and with_children:
        what.append(f"  go too, with all that stands on them: {', '.join(found.children)}")
    session.confirm("\n".join(what), found.name, yes=False, asked_for="backup's name")


def _change(
    session: Session, name: str, what: str, body: dict[str, Any], *, dry_run: bool, waiting: Waiting
) -> None:
    request = Request(
        label=f"backup.{what}",
        name=name,
        path=f"/v1/backups/{quote(name)}/{what}",
        body=body,
        request_id=session.request_id,
    )
    plan_or_carry_out(session, request, waiting, dry_run=dry_run)
