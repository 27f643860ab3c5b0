"""What is said of volumes wherever one is shown."""

from collections.abc import Callable, Sequence
from datetime import datetime

from cli.session import Session
from cli.table import Column, pairs
from cli.units import show_bytes, show_time
from cli.volume_shapes import Stray, Volume

_STATES = {
    "attached": "good", "quarantined": "warn", "unfinished": "bad", "busy": "warn", "creating": "warn",
}  # fmt: skip


def columns_of(session: Session) -> Callable[[datetime], Sequence[Column[Volume]]]:
    """The columns of a list of volumes."""

    def columns(at: datetime) -> Sequence[Column[Volume]]:
        return [
            Column(header="NAME", cell=lambda each: each.name),
            Column(header="STATE", cell=lambda each: each.state, style=lambda each: _STATES.get(each.state, "")),
            Column(header="SIZE", cell=size_of, right=True),
            Column(header="STORAGE", cell=lambda each: each.storage),
            Column(header="HOST", cell=lambda each: each.host),
            Column(header="VM", cell=lambda each: f"{each.vm} ({each.disk})" if each.vm else "-"),
            Column(header="FROM", cell=lambda each: each.source or "-", wide=True),
            Column(header="AGE", cell=lambda each: show_time(each.created_at, at, session.times), right=True),
        ]

    return columns


def stray_columns(session: Session) -> Callable[[datetime], Sequence[Column[Stray]]]:
    """The columns of a list of directories that nobody owns."""

    def columns(at: datetime) -> Sequence[Column[Stray]]:
        return [
            Column(header="HOST", cell=lambda each: each.host),
            Column(header="STORAGE", cell=lambda each: each.storage),
            Column(header="ID", cell=lambda each: each.id),
            Column(header="SIZE", cell=lambda each: show_bytes(each.bytes), right=True),
            Column(header="FILES", cell=lambda each: ", ".join(each.files) or "-"),
            Column(header="SEEN", cell=lambda each: show_time(each.seen_at, at, session.times), right=True),
        ]

    return columns


def size_of(volume: Volume) -> str:
    """How large it is."""
    return show_bytes(volume.bytes) if volume.stray else f"{volume.size}Gi"


def describe_lines(found: Volume, at: datetime, session: Session) -> list[str]:
    """A volume for reading."""
    since = show_time(found.quarantined_at, at, session.times)
    ways = f"`vmorch volume restore {found.name}` has it back, `vmorch volume delete {found.name}` ends it for good"
    waits = "-" if found.quarantined_at is None else f"since {since}; {ways}"
    rows = [
        ("Id", found.id),
        ("Size", size_of(found)),
        ("Lies", f"{found.path} on {found.storage} storage of {found.host}"),
        ("Used by", f"{found.vm} as {found.disk}" if found.vm else "nobody"),
        ("From", found.source or "-"),
        ("Image", found.image or "-"),
        *([("Files", ", ".join(found.files) or "-")] if found.stray else []),
        ("Quarantined", waits),
    ]
    return [
        f"Volume {found.name}   State {found.state}   Made {show_time(found.created_at, at, session.times)}",
        *pairs(rows, "  "),
    ]


def became(name: str, verb: str, vm: str) -> str:
    """What became of a volume, in a line."""
    match verb:
        case "create-volume" | "clone-volume":
            return f"volume {name} is {'copied' if verb == 'clone-volume' else 'available'}"
        case "attach-volume":
            return f"volume {name} is a disk of {vm}"
        case "detach-volume":
            return f"volume {name} is available; {vm} has let go of it"
        case "delete-volume":
            return f"volume {name} is deleted for good"
        case "restore-volume":
            return f"{name} is back where it lay"
        case "set-aside":
            return f"{name} is set aside as volume stray-{name[-12:]}"
    return f"volume {name} is larger"
