"""An export of the log: lines of JSON, each a CloudEvent 1.0, that prove themselves.

    vmorch.audit.header       which log, which positions, and the tree before them
    any other type            an event: its id is its position, `data` its bytes exactly as stored
    vmorch.audit.missing      a position that was sealed and that the log does not hold any more
    vmorch.audit.checkpoint   a signed checkpoint of exactly the events before the line
    vmorch.audit.end          the rest of the tree up to the last checkpoint, and that

`sealedhash` is the leaf hash that was sealed, in base64. Must not verify: a line is only parsed here.
"""

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from vmorch.audit.leaves import leaf, microseconds
from vmorch.audit.merkle import HASH, leaf_hash
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded

FORMAT = 1
SPECVERSION = "1.0"
HEADER, MISSING, CHECKPOINT, END = (f"vmorch.audit.{each}" for each in ("header", "missing", "checkpoint", "end"))
OURS = "vmorch.audit."
"""What the types of lines begin with that are no events."""

_NOTHING = Raw(b"")

T = TypeVar("T", bound=Struct)


class BadExport(Exception):
    """A line is none of an export's; the message says what is wrong with it."""

    code = "bad-export"


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Any line, as a CloudEvent with the extensions named above."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str = ""
    time: datetime | None = None
    datacontenttype: str = ""
    version: str = ""
    schemaversion: int = 0
    meta: str = ""
    sealedhash: str = ""
    data: Raw = _NOTHING
    data_base64: str = ""


class Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of keys before the export begins: the event that announces a key, the tree before it, and the
    checkpoint that ends with it."""

    event: Line
    left: tuple[str, ...]
    note: str


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The events after `after` up to `until` of a log that had `head` events. `left` is the cover of those before."""

    format: int
    origin: str
    after: int
    until: int
    head: int
    left: tuple[str, ...]
    turns: tuple[Turn, ...] = ()


class CheckpointLine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signed checkpoint."""

    note: str


class EndLine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cover of what lies between the export's last event and the end of the checkpoint's tree."""

    right: tuple[str, ...]
    note: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def read_line(text: bytes) -> Line:
    """A line. Raises BadExport."""
    try:
        line = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadExport(f"not a line of an export: {error}") from error
    if line.specversion != SPECVERSION:
        raise BadExport(f"CloudEvents {line.specversion!r}, not {SPECVERSION}")
    return line


def content(line: Line, type: type[T]) -> T:
    """What a line that is no event carries. Raises BadExport."""
    try:
        return msgspec.json.decode(line.data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadExport(f"{line.type}: {error}") from error


def position_of(line: Line) -> int:
    """The position that a line is about. Raises BadExport."""
    if not (line.id.isascii() and line.id.isdecimal() and 0 < len(line.id) < 19):
        raise BadExport(f"{line.id!r} is no position")
    return int(line.id)


def data_of(line: Line) -> bytes:
    """The bytes of an event's data as stored. Raises BadExport."""
    return _unbase64(line.data_base64) if line.data_base64 else bytes(line.data)


def event_hash(line: Line) -> bytes:
    """The leaf hash of the event that a line shows. Raises BadExport."""
    if line.time is None or line.time.tzinfo is None:
        raise BadExport(f"event {line.id} has no time")
    if not (line.version.isascii() and line.version.isdecimal() and len(line.version) < 19):
        raise BadExport(f"event {line.id} has no version")
    try:
        return leaf_hash(
            leaf(
                position=position_of(line),
                version=int(line.version),
                schema=line.schemaversion,
                time=microseconds(line.time),
                stream=line.subject.encode(),
                kind=line.type.encode(),
                meta=line.meta.encode(),
                digest=sha256(data_of(line)).digest(),
            )
        )
    except ValueError as error:
        raise BadExport(str(error)) from error


def unhash(text: str) -> bytes:
    """A hash from its base64. Raises BadExport."""
    raw = _unbase64(text)
    if len(raw) != HASH:
        raise BadExport(f"{text[:60]!r} is no SHA-256")
    return raw


def show_hash(hash: bytes) -> str:
    """A hash as base64."""
    return b64encode(hash).decode()


def write_line(line: Line) -> bytes:
    """A line with its end."""
    return _encode(line) + b"\n"


def event_line(origin: str, record: Recorded, sealed: bytes | None) -> Line:
    """The line of an event as the log holds it. `sealed` is the hash that was sealed at its position, if any was."""
    data = record.data
    # JSON that has white space around it or line ends inside would not come back byte for byte
    plain = data.strip() == data and b"\n" not in data and b"\r" not in data
    return Line(
        specversion=SPECVERSION,
        id=str(record.position),
        source=source_of(origin),
        type=record.kind,
        subject=record.stream,
        time=record.recorded_at,
        datacontenttype="application/json",
        version=str(record.version),
        schemaversion=record.schema,
        meta=record.meta.decode(),
        sealedhash="" if sealed is None else show_hash(sealed),
        data=Raw(data) if plain else _NOTHING,
        data_base64="" if plain else b64encode(data).decode(),
    )


def record_of(line: Line) -> Recorded:
    """The event that a line shows, as the log held it. Raises BadExport."""
    if line.time is None or not (line.version.isascii() and line.version.isdecimal()):
        raise BadExport(f"event {line.id} has no time or no version")
    return Recorded(
        position=Position(position_of(line)),
        stream=Stream(line.subject),
        version=int(line.version),
        kind=line.type,
        schema=line.schemaversion,
        data=data_of(line),
        meta=line.meta.encode(),
        recorded_at=line.time,
    )


def missing_line(origin: str, position: int, sealed: bytes) -> Line:
    """The line of a position that was sealed and whose event is gone."""
    return Line(
        specversion=SPECVERSION,
        id=str(position),
        source=source_of(origin),
        type=MISSING,
        sealedhash=show_hash(sealed),
    )


def header_line(header: Header) -> Line:
    """The first line."""
    return _ours(HEADER, header.origin, f"{header.after}-{header.until}", header)


def checkpoint_line(origin: str, size: int, note: str) -> Line:
    """The line of a checkpoint of `size` events."""
    return _ours(CHECKPOINT, origin, str(size), CheckpointLine(note=note))


def end_line(origin: str, until: int, right: Iterable[bytes], note: str) -> Line:
    """The last line."""
    return _ours(END, origin, str(until), EndLine(right=shown(right), note=note))


def shown(hashes: Iterable[bytes]) -> tuple[str, ...]:
    """Hashes as base64."""
    return tuple(show_hash(each) for each in hashes)


def unshown(hashes: Sequence[str]) -> list[bytes]:
    """Hashes from base64. Raises BadExport."""
    return [unhash(each) for each in hashes]


def source_of(origin: str) -> str:
    """The log as the source of CloudEvents."""
    return f"/{origin}"


def _ours(type: str, origin: str, id: str, content: Struct) -> Line:
    return Line(
        specversion=SPECVERSION,
        id=f"{type.removeprefix(OURS)}/{id}",
        source=source_of(origin),
        type=type,
        datacontenttype="application/json",
        data=Raw(_encode(content)),
    )


def _unbase64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (NotBase64, ValueError) as error:
        raise BadExport(f"not base64: {text[:60]!r}") from error
