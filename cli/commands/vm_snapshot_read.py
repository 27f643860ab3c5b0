"""Look at the snapshots of a VM."""

from collections.abc import Callable, Sequence
from datetime import datetime

import click

from cli.completion import complete_snapshot, complete_vm
from cli.listing import now
from cli.output import show_document, structured
from cli.session import Session
from cli.shapes import Listing, Single, Snapshot, SnapshotDetail
from cli.snapshots import HERE, Row, tree, when
from cli.table import Column, lines, pairs
from cli.transport import quote
from cli.units import show_gib, show_mib, show_seconds, show_time
from cli.verbs import past_option, verb


@verb(
    "list",
    examples=("vmorch vm snapshot list db-1", "vmorch vm snapshot list db-1 -o wide"),
    help="The tree of a VM's snapshots, each below the one that it came from, and where the guest is now.",
)
@click.argument("vm", metavar="VM", shell_complete=complete_vm)
@click.option("--no-headers", is_flag=True, help="No header line.")
@past_option
@click.pass_obj
def list_snapshots(session: Session, /, vm: str, no_headers: bool) -> None:
    answer = session.client.get(f"/v1/vms/{quote(vm)}/snapshots")
    if structured(session):
        show_document(session, answer.body)
        return
    from cli.client import decode

    found = decode(answer.body, Listing[Snapshot]).items
    output, rows = session.settings.output, tree(found)
    if not found:
        session.terminal.note(f"no snapshots of {vm}")
    elif output == "name":
        session.terminal.out("\n".join(row.label for row in rows if row.snapshot is not None))
    else:
        columns, paint = _columns(session, now()), session.terminal.paint
        session.terminal.out(
            "\n".join(lines(columns, rows, wide=output == "wide", headers=not no_headers, paint=paint))
        )


def _columns(session: Session, at: datetime) -> Sequence[Column[Row]]:
    def of(show: Callable[[Snapshot], str]) -> Callable[[Row], str]:
        # a line that is no snapshot has nothing to say, not even that
        return lambda row: " " if row.snapshot is None else show(row.snapshot)

    return [
        Column(header="NAME", cell=lambda row: row.name, style=lambda row: "bold" if row.label == HERE else ""),
        Column(header="TAKEN", cell=of(lambda each: show_time(each.taken_at, at, session.times)), right=True),
        Column(header="QUALITY", cell=of(lambda each: each.quality)),
        Column(header="POWER", cell=of(lambda each: each.power)),
        Column(header="ORIGIN", cell=of(lambda each: each.origin)),
        Column(header="FROZEN", cell=of(_frozen), right=True, wide=True),
        Column(header="LAYERS", cell=of(_layers), wide=True),
        Column(header="DESCRIPTION", cell=of(lambda each: each.description)),
    ]


def _frozen(snapshot: Snapshot) -> str:
    return "-" if snapshot.frozen is None else show_seconds(snapshot.frozen)


def _layers(snapshot: Snapshot) -> str:
    return ",".join(f"{disk}:{layer}" for disk, layer in sorted(snapshot.layers.items()))


@verb(
    "describe",
    examples=(
        "vmorch vm snapshot describe db-1 pre-upgrade",
        "vmorch vm snapshot describe db-1 pre-upgrade -o json --query item.differs",
    ),
    help="Everything about a snapshot: what it is worth, what came from it, its disks, how the VM differs from it now.",
)
@click.argument("vm", metavar="VM", shell_complete=complete_vm)
@click.argument("snapshot", metavar="SNAPSHOT", shell_complete=complete_snapshot)
@past_option
@click.pass_obj
def describe(session: Session, /, vm: str, snapshot: str) -> None:
    answer = session.client.get(f"/v1/vms/{quote(vm)}/snapshots/{quote(snapshot)}")
    if structured(session):
        show_document(session, answer.body)
        return
    from cli.client import decode

    found = decode(answer.body, Single[SnapshotDetail]).item
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    session.terminal.out("\n".join(describe_lines(found, now(), session)))


_WORTH = {
    "crash-consistent": "its disks are as after a power cut",
    "frozen": "the guest's file systems were at rest",
    "memory": "the guest goes on exactly where it was",
    "off": "the guest was off",
}


def describe_lines(found: SnapshotDetail, at: datetime, session: Session) -> list[str]:
    """A snapshot for reading."""
    rows = [
        ("Number", str(found.number)),
        ("Worth", _WORTH.get(found.quality, found.quality)),
        ("Came from", found.parent or "the VM as it was created"),
        ("Children", ", ".join(found.children) or "-"),
        ("Guest now", "came from this one" if found.current else "came from elsewhere"),
        ("Power", found.power),
        ("Size", f"{found.spec.vcpus} vCPUs, {show_mib(found.spec.memory)}"),
        ("Memory", "kept" if found.memory else "not kept"),
        ("Frozen", _frozen(found)),
        ("Origin", found.origin),
        ("Description", found.description or "-"),
    ]
    taken = when(found.taken_at, at, session.times)
    text = [f"Snapshot {found.vm_name}/{found.name}   Quality {found.quality}   Taken {taken}", *pairs(rows, "  ")]
    disks = [
        (disk.name, f"{show_gib(disk.size)}  {disk.storage}  layer {found.layers[disk.name]}")
        for disk in found.spec.disks
        if disk.name in found.layers
    ]
    text += ["Disks", *pairs(disks, "  ")]
    if found.differs:
        text.append("The VM differs from it now (a rollback with --config-too brings this back)")
        text += pairs([(each.field, f"{each.then or '-'} -> {each.now or '-'}") for each in found.differs], "  ")
    return text
