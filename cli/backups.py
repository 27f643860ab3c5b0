"""What is said of backups wherever one is shown."""

from collections.abc import Callable, Sequence
from datetime import datetime

from cli.backup_shapes import Backup, BackupDetail
from cli.session import Session
from cli.table import Column, pairs
from cli.units import show_bytes, show_mib, show_seconds, show_time

_WORTH = {
    "crash-consistent": "its disks are as after a power cut",
    "frozen": "the guest's file systems were at rest",
    "off": "the guest was off",
}
_STATES = {"whole": "", "taking": "warn", "unfinished": "bad", "deleting": "warn"}


def columns_of(session: Session) -> Callable[[datetime], Sequence[Column[Backup]]]:
    """The columns of a list of backups."""

    def columns(at: datetime) -> Sequence[Column[Backup]]:
        return [
            Column(header="NAME", cell=lambda each: each.name),
            Column(header="VM", cell=lambda each: each.vm_name),
            Column(header="STATE", cell=lambda each: each.state, style=lambda each: _STATES.get(each.state, "")),
            Column(header="KIND", cell=lambda each: each.kind or "-"),
            Column(header="SIZE", cell=lambda each: show_bytes(each.bytes) if each.kind else "-", right=True),
            Column(header="QUALITY", cell=lambda each: each.quality),
            Column(header="TARGET", cell=lambda each: each.target),
            Column(header="VERIFIED", cell=verified, style=_judged),
            Column(header="AGE", cell=lambda each: show_time(each.begun_at, at, session.times), right=True),
            Column(header="PARENT", cell=lambda each: each.parent or "-", wide=True),
            Column(header="WHY FULL", cell=lambda each: each.why or "-", wide=True),
        ]

    return columns


def verified(backup: Backup) -> str:
    """How the newest look at it ended, in a word or two."""
    found = backup.verification
    if found is None:
        return "never"
    return found.by if found.ok else f"FAILED ({found.by})"


def _judged(backup: Backup) -> str:
    return "" if backup.verification is None else "good" if backup.verification.ok else "bad"


def taken(backup: Backup) -> str:
    """What became of taking it, in a line."""
    why = f" ({backup.why})" if backup.why else ""
    on = f" on {backup.parent}" if backup.parent else ""
    return f"backup {backup.name} of {backup.vm_name} is whole: {backup.kind}{why}{on}, {show_bytes(backup.bytes)}"


def describe_lines(found: BackupDetail, at: datetime, session: Session) -> list[str]:
    """A backup for reading."""
    look = found.verification
    looked = "never" if look is None else (
        f"{'stood it' if look.ok else 'FAILED: ' + look.why}, by {look.by}, {show_time(look.at, at, session.times)}"
    )
    rows = [
        ("Id", found.id),
        ("VM", found.vm_name + ("" if found.vm_exists else " (which is gone)")),
        ("Kind", (found.kind or "-") + (f": {found.why}" if found.why else "")),
        ("Stands on", " <- ".join(found.chain[:-1]) or "nothing"),
        ("Below", ", ".join(found.children) or "-"),
        ("Worth", _WORTH.get(found.quality, found.quality)),
        ("Frozen", "-" if found.frozen is None else show_seconds(found.frozen)),
        ("Target", f"{found.target}, written by {found.host}"),
        ("Size", f"{show_bytes(found.bytes)} for {show_bytes(found.size)} of disks"),
        ("Shape", f"{found.spec.vcpus} vCPUs, {show_mib(found.spec.memory)}"),
        ("Verified", looked),
        ("Description", found.description or "-"),
    ]
    text = [
        f"Backup {found.name}   State {found.state}   Taken {show_time(found.begun_at, at, session.times)}",
        *pairs(rows, "  "),
    ]
    disks = [
        (disk.name, f"{show_bytes(disk.size)}  {show_bytes(disk.bytes)} written  sha256 {disk.sha256[:12]}")
        for disk in found.disks
    ]
    return [*text, "Disks", *pairs(disks, "  ")] if disks else text
