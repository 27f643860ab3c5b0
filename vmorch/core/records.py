"""What goes into the event log and what comes out of it, as bytes that nobody interprets.

The log stores and orders these; only the codec knows what they mean. Must not import any message.
"""

from datetime import datetime

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.value import Value


class NewEvent(Value, frozen=True, kw_only=True):
    """An event on its way into the log. `data` and `meta` are JSON documents, stored byte for byte."""

    kind: str
    schema: int
    data: bytes
    meta: bytes


class StreamAppend(Value, frozen=True, kw_only=True):
    """Events for one stream, valid only while the stream's version is `expected` (0: it does not exist)."""

    stream: Stream
    expected: int
    events: tuple[NewEvent, ...]


class NameClaim(Value, frozen=True, kw_only=True):
    """`name` is held by `stream` within `scope` (such as `vm`); at most one stream holds a name."""

    scope: str
    name: str
    stream: Stream


class Append(Value, frozen=True, kw_only=True):
    """One all-or-nothing write: every stream at its expected version, every claimed name free, or nothing.

    Releases are applied before claims. `request` makes it repeatable: a second append with the same
    request id writes nothing and answers with the positions of the first.
    """

    streams: tuple[StreamAppend, ...]
    claims: tuple[NameClaim, ...] = ()
    releases: tuple[NameClaim, ...] = ()
    request: RequestId | None = None


class Recorded(Value, frozen=True, kw_only=True):
    """An event as the log holds it."""

    position: Position
    stream: Stream
    version: int
    kind: str
    schema: int
    data: bytes
    meta: bytes
    recorded_at: datetime
