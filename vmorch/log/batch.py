"""Appends as the parameters of the SQL append function, and its answer as one result for each append.

Texts travel as one joined string per column, a line each: arrays of text cost many times more to escape.
Pure; must not touch a connection.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Struct

from vmorch.core.ids import Position, Stream
from vmorch.core.records import Append
from vmorch.log.errors import InvalidAppend, LogError, NameTaken, VersionConflict
from vmorch.log.interface import Appended

APPEND = b"append"
ALONE = b"append alone"
STATEMENTS = {
    APPEND: b"SELECT first_position, recorded_at, problems"
    b" FROM vmorch.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    ALONE: b"SELECT first_position, recorded_at, actual FROM vmorch.append_alone($1, $2, $3, $4, $5, $6, $7)",
}
"""Each answers one row, read here in its binary form."""

# a timestamp travels as microseconds since this moment
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Repeated(Struct, tag_field="code", tag="repeated", frozen=True):
    append: int
    first: Position
    last: Position
    recorded_at: datetime


class Outdated(Struct, tag_field="code", tag="version", frozen=True):
    append: int
    stream: Stream
    expected: int
    actual: int


class Taken(Struct, tag_field="code", tag="name", frozen=True):
    append: int
    scope: str
    name: str
    holder: Stream


_problems = msgspec.json.Decoder(list[Repeated | Outdated | Taken])


class Encoded(Struct, frozen=True):
    """One append and its share of every column; of those that have a line per event, the lines already joined."""

    append: Append
    size: int
    streams: list[bytes]
    expected: list[int]
    counts: list[int]
    kinds: bytes
    schemas: list[int]
    datas: bytes
    metas: bytes
    request: bytes
    claimed: list[bool]
    scopes: list[bytes]
    names: list[bytes]
    holders: list[bytes]


def encode(append: Append) -> Encoded:
    """The append as lines. Raises `InvalidAppend` for what the log could not hold or return unchanged."""
    _check(append)
    events = [event for part in append.streams for event in part.events]
    touched = [(False, name) for name in append.releases] + [(True, name) for name in append.claims]
    return Encoded(
        append=append,
        size=len(events),
        streams=[_line(part.stream, "stream") for part in append.streams],
        expected=[part.expected for part in append.streams],
        counts=[len(part.events) for part in append.streams],
        kinds=_lines([_text(event.kind) for event in events], "kind"),
        schemas=[event.schema for event in events],
        datas=_lines([event.data for event in events], "data"),
        metas=_lines([event.meta for event in events], "meta"),
        request=b"" if append.request is None else _line(append.request, "request id"),
        claimed=[claimed for claimed, _ in touched],
        scopes=[_line(name.scope, "scope") for _, name in touched],
        names=[_line(name.name, "name") for _, name in touched],
        holders=[_line(name.stream, "stream") for _, name in touched],
    )


def _check(append: Append) -> None:
    streams = {part.stream for part in append.streams}
    if len(streams) != len(append.streams):
        raise InvalidAppend("a stream appears twice in one append")
    if not any(part.events for part in append.streams):
        raise InvalidAppend("an append holds no event")
    for part in append.streams:
        if part.expected < 0:
            raise InvalidAppend(f"version {part.expected} of {part.stream} cannot be")


def columns(batch: Sequence[Encoded]) -> list[bytes]:
    """The parameters of `APPEND` for appends in this order."""
    named = any(one.claimed for one in batch)
    return [
        _numbers(len(one.streams) for one in batch),
        b"\n".join(line for one in batch for line in one.streams),
        _numbers(version for one in batch for version in one.expected),
        _numbers(count for one in batch for count in one.counts),
        b"\n".join([one.kinds for one in batch]),
        _numbers(schema for one in batch for schema in one.schemas),
        b"\n".join([one.datas for one in batch]),
        b"\n".join([one.metas for one in batch]),
        b"\n".join(one.request for one in batch) if any(one.request for one in batch) else b"",
        _numbers(len(one.claimed) for one in batch) if named else b"{}",
        b"{" + b",".join(b"t" if claimed else b"f" for one in batch for claimed in one.claimed) + b"}",
        b"\n".join(line for one in batch for line in one.scopes),
        b"\n".join(line for one in batch for line in one.names),
        b"\n".join(line for one in batch for line in one.holders),
    ]


def results(batch: Sequence[Encoded], row: Sequence[bytes | None]) -> list[Appended | LogError]:
    """What `APPEND` answered, append by append: positions follow each other, problems take none."""
    first, recorded_at, problems = _number(row[0]), _moment(row[1]), row[2]
    failed = {problem.append: problem for problem in _problems.decode(problems)} if problems else {}
    answers: list[Appended | LogError] = []
    following = first
    for number, one in enumerate(batch, start=1):
        match failed.get(number):
            case None:
                last = following + one.size - 1
                answers.append(
                    Appended(first=Position(following), last=Position(last), recorded_at=recorded_at, repeated=False)
                )
                following = last + 1
            case Repeated() as found:
                answers.append(
                    Appended(first=found.first, last=found.last, recorded_at=found.recorded_at, repeated=True)
                )
            case Outdated() as found:
                answers.append(VersionConflict(found.stream, found.expected, found.actual))
            case Taken() as found:
                answers.append(NameTaken(found.scope, found.name, found.holder))
    return answers


def is_plain(one: Encoded) -> bool:
    """Whether the append concerns one stream and nothing else, so that `ALONE` can write it."""
    return len(one.streams) == 1 and not one.request and not one.claimed


def columns_alone(one: Encoded) -> list[bytes]:
    """The parameters of `ALONE`."""
    return [
        one.streams[0],
        b"%d" % one.expected[0],
        b"%d" % one.size,
        one.kinds,
        _numbers(one.schemas),
        one.datas,
        one.metas,
    ]


def result_alone(one: Encoded, row: Sequence[bytes | None]) -> Appended | LogError:
    """What `ALONE` answered."""
    if row[2] is not None:
        return VersionConflict(Stream(one.streams[0].decode()), one.expected[0], _number(row[2]))
    first = _number(row[0])
    last = Position(first + one.size - 1)
    return Appended(first=Position(first), last=last, recorded_at=_moment(row[1]), repeated=False)


def _number(value: bytes | None) -> int:
    assert value is not None
    return int.from_bytes(value, "big", signed=True)


def _moment(value: bytes | None) -> datetime:
    return _EPOCH + timedelta(microseconds=_number(value))


def _lines(lines: list[bytes], what: str) -> bytes:
    # one look at the joined text instead of one at each line
    joined = b"\n".join(lines)
    if b"" in lines or joined.count(b"\n") != len(lines) - 1 or b"\0" in joined:
        raise InvalidAppend(f"an event's {what} is empty or spans lines")
    return joined


def _line(text: str, what: str) -> bytes:
    if not text or "\n" in text or "\0" in text:
        raise InvalidAppend(f"{text!r} is no {what}")
    return _text(text)


def _text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidAppend(f"{text!r} is no text") from None


def _numbers(numbers: Iterable[int]) -> bytes:
    return b"{" + b",".join(b"%d" % number for number in numbers) + b"}"
