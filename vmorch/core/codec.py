"""Messages to JSON bytes and back. Old shapes are lifted here, once, so that nobody else ever sees one.

Must not interpret a message: unknown kinds and unreadable bytes are refused with their place in the log.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta as Shape
from msgspec import Raw

from vmorch.core.ids import Position, Stream
from vmorch.core.messages import EVENTS, HOST_COMMANDS, Event, HostCommand, Message, Meta
from vmorch.core.records import NewEvent, Recorded
from vmorch.core.value import Value

_encode = msgspec.json.Encoder(order="deterministic").encode
_read_meta = msgspec.json.Decoder(Meta).decode
_readers: dict[str, tuple[int, Callable[[bytes], Event]]] = {}
"""Of each kind of event that was met, its newest schema and what reads that."""

T = TypeVar("T", bound=Message)


class Unreadable(Exception):
    """Bytes that no registered shape can read. `code` is `unknown-kind`, `future-schema` or `bad-shape`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Packed(Value, frozen=True, kw_only=True):
    """A message inside another one (a step's host command, a planned fact), with its kind and schema. It stays as it
    was written until somebody needs it: most are folded many times and carried out once."""

    kind: str
    schema: int
    data: Annotated[Raw, Shape(extra_json_schema={"type": "object"})]


class Fact(Value, frozen=True):
    """A recorded event, understood."""

    position: Position
    stream: Stream
    version: int
    event: Event
    meta: Meta
    recorded_at: Any  # datetime; Any keeps decoding of hot loops free of a second check


def encode(event: Event, meta: Meta) -> NewEvent:
    """The bytes to append. Equal events give equal bytes."""
    return NewEvent(kind=event.kind, schema=event.schema, data=_encode(event), meta=_encode(meta))


def decode(record: Recorded) -> Fact:
    """The fact that a record holds, in its newest shape. Raises Unreadable."""
    event = decode_event(record.kind, record.schema, record.data)
    try:
        meta = _read_meta(record.meta)
    except msgspec.MsgspecError as error:
        raise Unreadable("bad-shape", f"meta of {record.kind}: {error}") from error
    return Fact(record.position, record.stream, record.version, event, meta, record.recorded_at)


def decode_event(kind: str, schema: int, data: bytes) -> Event:
    """One event's bytes in their newest shape. Raises Unreadable."""
    try:
        newest, read = _readers.get(kind) or _reader(kind)
        if schema == newest:
            return read(data)
        return _lifted(EVENTS[kind], schema, data)
    except msgspec.MsgspecError as error:
        raise Unreadable("bad-shape", f"{kind} schema {schema}: {error}") from error


def _reader(kind: str) -> tuple[int, Callable[[bytes], Event]]:
    cls = EVENTS.get(kind)
    if cls is None:
        raise Unreadable("unknown-kind", f"no event is called {kind!r}")
    found = _readers[kind] = (cls.schema, msgspec.json.Decoder(cls).decode)
    return found


def pack(message: Message) -> Packed:
    """A message as data to be carried by another."""
    return Packed(kind=message.kind, schema=message.schema, data=Raw(_encode(message)))


def unpack_host_command(packed: Packed) -> HostCommand:
    """The host command inside. Raises Unreadable."""
    return _unpack(packed, HOST_COMMANDS)


def unpack_event(packed: Packed) -> Event:
    """The event inside. Raises Unreadable."""
    return _unpack(packed, EVENTS)


def _unpack(packed: Packed, table: Mapping[str, type[T]]) -> T:
    cls = table.get(packed.kind)
    if cls is None:
        raise Unreadable("unknown-kind", f"no message is called {packed.kind!r}")
    try:
        if packed.schema == cls.schema:
            return msgspec.json.decode(packed.data, type=cls)
        return _lifted(cls, packed.schema, packed.data)
    except msgspec.MsgspecError as error:
        raise Unreadable("bad-shape", f"{packed.kind} schema {packed.schema}: {error}") from error


def _lifted(cls: type[T], schema: int, data: bytes) -> T:
    fields = _lift(cls, schema, msgspec.json.decode(data, type=dict[str, Any]))
    # by way of bytes, because the messages inside stay bytes
    return msgspec.json.decode(_encode(fields), type=cls)


def _lift(cls: type[Message], schema: int, fields: dict[str, Any]) -> dict[str, Any]:
    if schema > cls.schema:
        raise Unreadable("future-schema", f"{cls.kind} schema {schema} is newer than {cls.schema}")
    if schema < 1:
        raise Unreadable("bad-shape", f"{cls.kind} has no schema {schema}")
    for step in range(schema, cls.schema):
        try:
            fields = cls.upcasters[step](fields)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # an upcaster expects what its schema promised; what is not that must stop its stream and nothing else
            raise Unreadable("bad-shape", f"{cls.kind} schema {step}: {error!r}") from error
    return fields
