"""What somebody did: the events of one request, or what a policy or a host began of its own accord.

Must not read the log, and must not say how an act ended: that lies after it.
"""

from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from vmorch.core.causes import STARTED, cause_of
from vmorch.core.ids import OperationId, Position, RequestId, Stream
from vmorch.core.records import Recorded
from vmorch.core.value import Value


class Act(Value, frozen=True, kw_only=True):
    """One act at the position of its first event: who, what, to what, why.

    `what` is the verb of the operation that it began, or else the kind of the event; `details` are the operation's
    arguments or that event's fields, as stored. `events` counts those that were recorded at once.
    """

    position: Position
    time: datetime
    actor: str
    what: str
    subject: Stream
    reason: str
    request: RequestId | None
    operation: OperationId | None
    details: Any
    events: int = 1


class _Meta(Value, frozen=True):
    actor: str = ""
    reason: str = ""
    request: RequestId | None = None
    fingerprint: str | None = None


class _Begun(Value, frozen=True):
    operation: OperationId
    verb: str
    arguments: Any = None


_read_meta = msgspec.json.Decoder(_Meta).decode
_read_begun = msgspec.json.Decoder(_Begun).decode


class Acts:
    """Events in log order, all or those of one stream, made into acts."""

    def __init__(self) -> None:
        self._open: Act | None = None
        self._key: tuple[object, ...] = ()

    def take(self, record: Recorded) -> Act | None:
        """Look at the next event; the act before it, if that is complete now."""
        meta = _meta_of(record)
        before = self._open
        # what was appended at once on one request
        key = (meta.request, meta.fingerprint, record.recorded_at)
        if before is not None and meta.fingerprint is not None and key == self._key:
            self._open = _joined(before, record)
            return None
        self._open, self._key = _begun_by(record, meta), key
        return before

    def end(self) -> Act | None:
        """The last act, when no event follows."""
        last, self._open = self._open, None
        return last


def _meta_of(record: Recorded) -> _Meta:
    try:
        return _read_meta(record.meta)
    except msgspec.ValidationError:
        return _Meta()


def _begun_by(record: Recorded, meta: _Meta) -> Act | None:
    """The act that begins with this event; None if it only follows from others."""
    asked = meta.fingerprint is not None
    if not asked and record.kind != STARTED:
        cause = cause_of(record)
        if (cause.causation, cause.operation, cause.correlation) != (None, None, None):
            return None
    act = Act(
        position=record.position,
        time=record.recorded_at,
        actor=meta.actor,
        what=record.kind,
        subject=record.stream,
        reason=meta.reason,
        # what nobody asked for may carry the request of whoever did
        request=meta.request if asked else None,
        operation=None,
        details=msgspec.json.decode(record.data),
    )
    return _operating(act, record)


def _joined(act: Act, record: Recorded) -> Act:
    return replace(_operating(act, record), events=act.events + 1)


def _operating(act: Act, record: Recorded) -> Act:
    if record.kind != STARTED or act.operation is not None:
        return act
    try:
        begun = _read_begun(record.data)
    except msgspec.ValidationError:
        return act
    return replace(
        act, what=begun.verb, subject=record.stream, operation=begun.operation, details=begun.arguments or {}
    )
