"""What is hashed of an event: every column that the log stores, in one framing that nothing else can produce.

    "vmorch.event.1" position version schema time  length stream  length kind  length meta  SHA-256(data)

Position, version and time (microseconds since 1970, UTC) are 8 bytes, schema and lengths 4, all big-endian; texts are
UTF-8, `meta` and `data` exactly as stored, `data` by its digest. The framing is forever: a changed one would be another
name than `vmorch.event.1`.
"""

import struct
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from vmorch.audit.merkle import leaf_hash
from vmorch.core.records import Recorded

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_head = struct.Struct(">14sqqiqI").pack
_length = struct.Struct(">I").pack


def leaf(
    *, position: int, version: int, schema: int, time: int, stream: bytes, kind: bytes, meta: bytes, digest: bytes
) -> bytes:
    """The bytes of a leaf. `time` is in microseconds, `digest` that of the event's data.

    Raises ValueError for numbers that no column holds.
    """
    try:
        head = _head(b"vmorch.event.1", position, version, schema, time, len(stream))
    except struct.error as error:
        raise ValueError(f"event {position} has numbers out of range") from error
    return b"".join((head, stream, _length(len(kind)), kind, _length(len(meta)), meta, digest))


def sealed_hash(record: Recorded) -> bytes:
    """The leaf hash of an event as the log holds it."""
    return leaf_hash(
        leaf(
            position=record.position,
            version=record.version,
            schema=record.schema,
            time=microseconds(record.recorded_at),
            stream=record.stream.encode(),
            kind=record.kind.encode(),
            meta=record.meta,
            digest=sha256(record.data).digest(),
        )
    )


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND
