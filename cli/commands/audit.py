"""`vmorch audit`: the log's proof. Verifying trusts no server, and needs none when it has an export."""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import click
import msgspec

from cli.client import decode
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.table import pairs
from cli.verbs import Entry, Group, SectionOption, verb
from vmorch.core.codes import code_of

if TYPE_CHECKING:
    from vmorch.audit.notes import Checkpoint, VerifierKey
    from vmorch.audit.verification import Verdict

_HERE = "cli.commands.audit"

INTEGRITY = 11
"""The exit status for a log that is not what it was."""
SHOWN = 20
"""Findings that are shown one by one."""

F = TypeVar("F", bound=Callable[..., Any])

audit = Group(
    "audit",
    {
        "status": Entry(f"{_HERE}:status", "How far the log is sealed, and by which key", "Look"),
        "key": Entry(f"{_HERE}:key", "The public key that checkpoints are signed with", "Look"),
        "verify": Entry(f"{_HERE}:verify", "Prove the log, or an export of it, with keys that you keep", "Prove"),
        "report": Entry("cli.commands.audit_report:report", "Who did what, when, why, with which outcome", "Look"),
        "replay": Entry("cli.commands.audit_replay:replay", "Fold the log anew and compare what is shown", "Prove"),
        "export": Entry(f"{_HERE}:export", "Write the log to a file that proves itself", "Prove"),
        "witness": Entry(
            "cli.commands.audit_witness:witness", "Keep checkpoints where the log's keeper cannot write", "Prove"
        ),
        "erase": Entry(
            "cli.commands.audit_erase:erase", "Make what is sealed for a VM or person unreadable for ever", "Change"
        ),
    },
    help="Who did what, and the log's proof: what was recorded is still there, unchanged, in its order.",
    foreign={
        "list": "vmorch event list",
        "check": "vmorch audit verify",
        "log": "vmorch event list",
        "dump": "vmorch audit export --file FILE",
        "checkpoint": "vmorch audit witness --file FILE --key KEY",
        "forget": "vmorch audit erase vm/NAME",
        "delete": "vmorch audit erase vm/NAME",
    },
    examples=(
        "vmorch audit report --actor oncall --between -7d now",
        "vmorch audit verify --key auditor.key",
        "vmorch audit export --file log.jsonl",
        "vmorch audit verify --file log.jsonl --key auditor.key --witness seen.jsonl",
    ),
)


class Stopped(msgspec.Struct, frozen=True):
    """Why nothing more is sealed."""

    code: str
    detail: str
    since: datetime


class Status(msgspec.Struct, frozen=True):
    """How far the log is sealed."""

    origin: str
    key: str
    head: int
    sealed: int
    stopped: Stopped | None = None


@verb(
    "status",
    examples=("vmorch audit status", "vmorch audit status -o json --query sealed"),
    help="How far the log is sealed, and by which key. Exits 11 if it is not what was sealed, 6 if the key is missing.",
)
@click.pass_obj
def status(session: Session, /) -> None:
    answer = session.client.get("/v1/audit/status")
    found = decode(answer.body, Status)
    stopped = found.stopped
    if structured(session):
        show_document(session, answer.body)
    else:
        rows = [
            ("Log", found.origin),
            ("Key", found.key or "none is announced"),
            ("Sealed", f"{found.sealed:,} of {found.head:,} events"),
        ]
        if stopped is not None:
            said = f"since {stopped.since:%Y-%m-%d %H:%M:%S} UTC: {stopped.detail} [{stopped.code}]"
            rows.append(("Stopped", session.terminal.paint("bad", said)))
        session.terminal.out("\n".join(pairs(rows)))
    if stopped is not None:
        raise SystemExit(code_of(stopped.code).exit)


@verb(
    "key",
    examples=("vmorch audit key > auditor.key",),
    help="The public key that checkpoints are signed with now, as a verifier keeps it. Get it from somebody you trust,"
    " or compare it with them: a server that lies about the log lies about its key.",
)
@click.pass_obj
def key(session: Session, /) -> None:
    answer = session.client.get("/v1/audit/status")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Status)
    if not found.key:
        raise Problem("other-log-key", "the log announces no key", hint="vmorch server init")
    session.terminal.out(found.key)


def key_option(*, required: bool) -> Callable[[F], F]:
    """The keys that the caller trusts."""
    return click.option(
        "--key",
        "keys",
        multiple=True,
        required=required,
        metavar="KEY",
        cls=SectionOption,
        section="Trust",
        help="A public key that you trust, or a file with some. It vouches for those that follow it.",
    )


def _range(function: F) -> F:
    options = [
        click.option(
            "--from", "first", type=click.IntRange(1), metavar="N", cls=SectionOption, section="Selection",
            help="From this position; by default from the first.",
        ),
        click.option(
            "--to", "last", type=click.IntRange(1), metavar="N", cls=SectionOption, section="Selection",
            help="Up to this position; by default to the last that is sealed.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@verb(
    "export",
    examples=(
        "vmorch audit export --file log.jsonl",
        "vmorch audit export --from 48000 --to 48999 | gzip > incident.jsonl.gz",
    ),
    help="Write the log as CloudEvents, one on each line, with what proves them. Needs the role auditor. Do not"
    " reformat it: the proof is about its bytes.",
)
@_range
@click.option("--file", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write there, not to stdout.")
@click.pass_obj
def export(session: Session, /, first: int | None, last: int | None, target: Path | None) -> None:
    lines = _whole(_fetched(session, first, last))
    if target is None:
        for line in lines:
            session.terminal.out_bytes(line)
        return
    import os

    part = target.with_name(f"{target.name}.part")
    count = 0
    try:
        with part.open("wb") as file:
            for line in lines:
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise Problem("bad-request", f"{error.filename or target}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    session.terminal.note(f"{target}: {count:,} lines")


def _fetched(session: Session, first: int | None, last: int | None) -> Iterator[bytes]:
    query = {"after": None if first is None else first - 1, "until": last}
    return session.client.transport.lines("/v1/audit/export", query=query)


def _whole(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines, if they come to their end."""
    last = b""
    for last in lines:
        yield last
    if b'"type":"vmorch.audit.end"' not in last:
        raise Problem("bad-export", "the export broke off before its end", hint="repeat it")


@verb(
    "verify",
    examples=(
        "vmorch audit verify --key auditor.key",
        "vmorch audit verify --file log.jsonl --key auditor.key --witness seen.jsonl",
        "vmorch audit verify --from 48000 --to 48999 --key auditor.key",
    ),
    help="Hash every event again, grow the tree, and hold it against the signed checkpoints and what a witness saw."
    " With --file it needs neither server nor database. Exits 11 if anything is not what it was.",
)
@_range
@click.option(
    "--file", "source", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An export or an archive, instead of the server's log as it is now.",
)  # fmt: skip
@key_option(required=False)
@click.option(
    "--witness", "sightings", type=click.Path(path_type=Path, exists=True, dir_okay=False), cls=SectionOption,
    section="Trust", help="What `audit witness` kept: the log must still begin with it.",
)  # fmt: skip
@click.option("--part", is_flag=True, help="The export was asked for in part: do not expect the rest.")
@click.pass_obj
def verify(
    session: Session,
    /,
    first: int | None,
    last: int | None,
    source: Path | None,
    keys: tuple[str, ...],
    sightings: Path | None,
    part: bool,
) -> None:
    need_signatures()
    from vmorch.audit.export import BadExport
    from vmorch.audit.verification import verify as verified

    if source is not None and (first is not None or last is not None):
        raise Problem("bad-request", "--from and --to choose from the server's log, not from a file")
    if source is not None and not keys:
        raise Problem("bad-request", "an export is verified by a key that you keep", hint="add --key KEY")
    trusted = read_keys(keys) if keys else [_servers_word(session)]
    witnessed = [] if sightings is None else read_witnessed(sightings)
    part = part or first is not None or last is not None
    try:
        if source is None:
            verdict = verified(_whole(_fetched(session, first, last)), trusted, witnessed, part=part)
        else:
            with _opened(source) as file:
                verdict = verified(file, trusted, witnessed, part=part)
    except BadExport as error:
        raise Problem("bad-export", str(error)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise Problem("bad-export", f"{source} cannot be read to its end: {error}") from error
    _tell(session, verdict)
    if not verdict.sound:
        raise SystemExit(INTEGRITY)


def _opened(source: Path) -> BinaryIO:
    """An export's lines; archives, and whatever was compressed with gzip, are unpacked on the way."""
    with source.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(source)) if packed else source.open("rb")


def need_signatures() -> None:
    """Raises Problem unless the library that verifies signatures is installed."""
    from importlib.util import find_spec

    if find_spec("cryptography") is None:
        raise Problem(
            "bad-request",
            "verifying signatures needs cryptography, which is not installed",
            hint="pip install 'vmorch[audit]'",
        )


def read_keys(given: Iterable[str]) -> "list[VerifierKey]":
    """Keys from what was typed: each is a key or a file with one on each line. Raises Problem."""
    from vmorch.audit.notes import BadNote, read_key

    found = []
    for text in given:
        try:
            found += [read_key(line) for line in _key_lines(text)]
        except (OSError, UnicodeDecodeError, BadNote) as error:
            raise Problem("bad-checkpoint", f"--key {text}: {error}", hint="vmorch audit key prints one") from error
    if not found:
        raise Problem("bad-request", "no key is given", hint="vmorch audit key prints one")
    return found


def _key_lines(text: str) -> list[str]:
    if "+" in text and not Path(text).exists():
        return [text]
    return [line for line in Path(text).read_text().splitlines() if line.strip() and not line.startswith("#")]


def read_witnessed(path: Path) -> "list[Checkpoint]":
    """The checkpoints that a witness kept in a file. Raises Problem."""
    from vmorch.audit.notes import BadNote
    from vmorch.audit.witness import read_sightings

    try:
        return read_sightings(path.read_bytes())
    except OSError as error:
        raise Problem("bad-request", f"{path}: {error.strerror}") from error
    except BadNote as error:
        raise Problem("bad-checkpoint", f"{path}: {error}") from error


def _servers_word(session: Session) -> "VerifierKey":
    """The key that the server says is the log's."""
    found = decode(session.client.get("/v1/audit/status").body, Status)
    session.terminal.note("note: the key is the server's own word; give --key to hold it to one that you keep")
    return read_keys([found.key])[0]


def _tell(session: Session, verdict: "Verdict") -> None:
    if structured(session):
        body = {"apiVersion": "v1", "kind": "Verdict", "sound": verdict.sound, **msgspec.to_builtins(verdict)}
        show_document(session, msgspec.json.encode(body))
        return
    paint = session.terminal.paint
    count = len(verdict.findings) + verdict.more
    said = paint("good", "as they were sealed") if verdict.sound else paint("bad", f"{count:,} findings")
    rows = [
        ("Log", verdict.origin),
        ("Events", f"{verdict.after + 1:,} to {verdict.until:,}: {said}"),
        ("Checkpoint", f"{verdict.size:,} events, root {verdict.root}"),
        ("Signed by", verdict.signed_by or "no key that counts"),
    ]
    if verdict.witnessed or verdict.beyond:
        beyond = f", {verdict.beyond:,} lie beyond what was looked at" if verdict.beyond else ""
        rows.append(("Witnessed", f"{verdict.witnessed:,} compared{beyond}"))
    if verdict.unsealed:
        rows.append(("Not covered", f"{verdict.unsealed:,} events after the checkpoint"))
    text = pairs(rows)
    text += [f"{paint('bad', each.what)}: {each.detail}" for each in verdict.findings[:SHOWN]]
    if count > SHOWN:
        text.append(f"and {count - SHOWN:,} more; -o json shows all")
    session.terminal.out("\n".join(text))
