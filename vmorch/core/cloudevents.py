"""A recorded event as a CloudEvent 1.0 in JSON, for readers outside vmorch.

The fields of an event are passed on as they were stored, in the schema they were stored in. Must not interpret them:
what this version cannot read goes out all the same.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from vmorch.core.ids import Position
from vmorch.core.records import Recorded
from vmorch.core.value import Value

MEDIA_TYPE = "application/cloudevents+json"


class CloudEvent(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One event for the outside. `id` is INCARNATION/POSITION; `time` is when the log recorded it.

    Positions are written in decimal as strings, because an integer of CloudEvents ends at 2^31. What follows
    `datacontenttype` but for `data` are extension attributes. `dataref` stands in place of `data` that is too large.
    """

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    dataschema: str
    specversion: str
    datacontenttype: str
    position: str
    streamversion: str
    actor: str
    reason: str = ""
    request: str = ""
    operation: str = ""
    causation: str = ""
    correlation: str = ""
    occurredat: datetime | None = None
    traceparent: str = ""
    dataref: str = ""
    data: Any = None


class _Meta(Value, frozen=True):
    actor: str = ""
    reason: str | None = None
    request: str | None = None
    operation: str | None = None
    causation: int | None = None
    correlation: str | None = None
    occurred_at: datetime | None = None
    traceparent: str | None = None


_read_meta = msgspec.json.Decoder(_Meta).decode
_encode = msgspec.json.Encoder().encode


def source(cluster: str) -> str:
    """The source of a cluster's events; together with the id it is unique in the world."""
    return f"/vmorch/{cluster}"


def type_of(kind: str) -> str:
    """The type that an event's kind is published under."""
    return f"vmorch.{kind}"


def schema_uri(kind: str, schema: int) -> str:
    """The name of the shape that `data` has."""
    return f"urn:vmorch:event:{kind}:{schema}"


def event_id(incarnation: str, position: Position) -> str:
    """The id of the event at a position of one log."""
    return f"{incarnation}/{position}"


def cloudevent(record: Recorded, cluster: str, incarnation: str) -> CloudEvent:
    """The event as the outside sees it; equal records give equal events."""
    try:
        meta = _read_meta(record.meta)
    except msgspec.ValidationError:
        # one odd event must not keep all later ones in; whoever wants to know reads it in the log
        meta = _Meta()
    return CloudEvent(
        specversion="1.0",
        datacontenttype="application/json",
        id=event_id(incarnation, record.position),
        source=source(cluster),
        type=type_of(record.kind),
        subject=record.stream,
        time=record.recorded_at.astimezone(UTC),
        dataschema=schema_uri(record.kind, record.schema),
        position=str(record.position),
        streamversion=str(record.version),
        actor=meta.actor,
        reason=meta.reason or "",
        request=meta.request or "",
        operation=meta.operation or "",
        causation="" if meta.causation is None else str(meta.causation),
        correlation=meta.correlation or "",
        occurredat=meta.occurred_at,
        traceparent=meta.traceparent or "",
        data=msgspec.Raw(record.data),
    )


def rendered(record: Recorded, cluster: str, incarnation: str, limit: int) -> bytes:
    """The CloudEvent's JSON in at most `limit` bytes: what does not fit is left out and named by `dataref`."""
    event = cloudevent(record, cluster, incarnation)
    text = _encode(event)
    if len(text) <= limit:
        return text
    return _encode(msgspec.structs.replace(event, data=None, dataref=f"/v1/events/{record.position}"))
