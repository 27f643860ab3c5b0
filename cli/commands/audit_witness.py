"""`vmorch audit witness`: take the newest checkpoint, demand that it grew from the last, and keep it."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.client import decode
from cli.commands.audit import key_option, need_signatures, read_keys, read_witnessed
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.verbs import verb


class Offered(msgspec.Struct, frozen=True):
    """A checkpoint as the server offers it; the changes of keys are read by whoever verifies them."""

    size: int
    note: str
    turns: msgspec.Raw


class Growth(msgspec.Struct, frozen=True):
    """The proof that one log begins another."""

    hashes: list[str]


@verb(
    "witness",
    examples=(
        "vmorch audit witness --file /mnt/elsewhere/seen.jsonl --key auditor.key",
        "vmorch audit witness --url https://witness.example.org --key auditor.key",
    ),
    help="Take the log's newest checkpoint, demand the proof that it grew from the one that was kept last, and keep it:"
    " in a file where the log's keeper cannot write, or at a witness that speaks C2SP tlog-witness. To be run by a"
    " timer. Exits 11, and keeps nothing, if the log is shorter than it was or another one. Needs the role auditor.",
)
@click.option("--file", "kept", type=click.Path(path_type=Path, dir_okay=False), help="Keep it there.")
@click.option("--url", metavar="URL", help="Have the witness there keep it.")
@key_option(required=True)
@click.pass_obj
def witness(session: Session, /, kept: Path | None, url: str | None, keys: tuple[str, ...]) -> None:
    if kept is None and url is None:
        raise Problem("bad-request", "nowhere to keep the checkpoint", hint="add --file FILE or --url URL")
    need_signatures()
    from vmorch.audit.export import BadExport, Turn, unshown
    from vmorch.audit.notes import BadNote
    from vmorch.audit.trust import Trust
    from vmorch.audit.witness import Contradiction, demand_growth, trusted_checkpoint

    trust = Trust(read_keys(keys))
    offered = decode(session.client.get("/v1/audit/checkpoint").body, Offered)
    held = read_witnessed(kept)[-1:] if kept is not None and kept.exists() else []
    try:
        told = trusted_checkpoint(offered.note, decode(bytes(offered.turns), list[Turn]), trust)
        for each in held:
            path = _growth(session, each.size, told.size) if each.size < told.size else ()
            demand_growth(each, told, unshown(path))
    except Contradiction as error:
        facts = {"seen": held[0].text().split("\n")[:3], "offered": offered.note.split("\n")[:3]}
        raise Problem("log-tampered", str(error), facts=facts) from error
    except (BadNote, BadExport) as error:
        raise Problem("bad-checkpoint", str(error)) from error
    signatures = ""
    if url is not None:
        from cli.tlog_witness import add_checkpoint

        signatures = add_checkpoint(
            url, offered.note, told.size, lambda old: _growth(session, old, told.size)
        )
    new = not held or held[0].size < told.size
    if kept is not None and new:
        _keep(kept, offered.note)
    if kept is None:
        said = f"{told.size:,} events, seen by the witness"
    elif not held:
        said = f"{told.size:,} events, seen for the first time"
    elif new:
        said = f"{told.size:,} events, grown from the {held[0].size:,} that were seen before"
    else:
        said = f"{told.size:,} events, as seen before"
    _say(session, said, offered, signatures, new=new)


def _growth(session: Session, old: int, size: int) -> Sequence[str]:
    answer = session.client.get("/v1/audit/consistency", {"old": old, "size": size})
    return decode(answer.body, Growth).hashes


def _keep(kept: Path, note: str) -> None:
    from vmorch.audit.witness import Sighting, write_sighting

    line = write_sighting(Sighting(seen=datetime.now(UTC), note=note))
    try:
        handle = os.open(kept, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise Problem("bad-request", f"{kept}: {error.strerror}") from error


def _say(session: Session, said: str, offered: Offered, signatures: str, *, new: bool) -> None:
    if structured(session):
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "Sighting", "size": offered.size, "new": new}
        show_document(session, msgspec.json.encode({**body, "note": offered.note, "signatures": signatures}))
    elif not session.terminal.quiet:
        session.terminal.out(said)
        if signatures:
            session.terminal.out(signatures.rstrip("\n"))
