"""The shapes around resources: single objects, lists, receipts. Additive within v1.

Must not decode a resource that comes as bytes: what the read models stored is what the caller gets.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from starlette.responses import Response

from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position
from vmorch.engine.caller import Accepted

VERSION = "v1"
POSITION_HEADER = "Vmorch-Position"

encode = msgspec.json.Encoder().encode


class AsOf(Struct, frozen=True, kw_only=True):
    """The log position that an answer was computed at, and when that was recorded."""

    position: int
    time: datetime | None


def as_of(fleet: Fleet) -> AsOf:
    """The moment of a fleet: the live one's is now."""
    return AsOf(position=fleet.position, time=fleet.recorded_at)


def document(kind: str, fields: dict[str, Any], *, status: int = 200, position: int | None = None) -> Response:
    """A JSON document of a kind."""
    body = encode({"apiVersion": VERSION, "kind": kind, **fields})
    headers = {} if position is None else {POSITION_HEADER: str(position)}
    return Response(body, status, headers, "application/json")


def single(kind: str, resource: Struct | bytes, at: AsOf, *, status: int = 200) -> Response:
    """One object."""
    item = msgspec.Raw(resource) if isinstance(resource, bytes) else resource
    return document(kind, {"asOf": at, "item": item}, status=status, position=at.position)


def listing(kind: str, docs: Iterable[bytes], at: AsOf, next: str | None = None) -> Response:
    """A page of objects; `next` is the cursor of the page after it, if there is one."""
    items = msgspec.Raw(b"[" + b",".join(docs) + b"]")
    return document(kind + "List", {"asOf": at, "items": items, "next": next}, position=at.position)


def plain_listing(kind: str, items: Sequence[Any]) -> Response:
    """A list that is not computed from the log."""
    return document(kind + "List", {"items": items})


def accepted(receipt: Accepted, *, status: int = 202) -> Response:
    """The request is in the log."""
    return document("Accepted", msgspec.to_builtins(receipt), status=status, position=receipt.position)


class _Row(Struct):
    id: str
    name: str = ""


def cursor(docs: Sequence[bytes], limit: int) -> tuple[Sequence[bytes], str | None]:
    """The first `limit` docs and, if there are more, the cursor that the next page begins after."""
    if len(docs) <= limit:
        return docs, None
    page = docs[:limit]
    last = msgspec.json.decode(page[-1], type=_Row)
    # both: what it is sorted by, and what tells equals apart; the row itself may be gone by then
    return page, f"{last.name}/{last.id}"


def id_of(doc: bytes) -> str:
    """The id in a document."""
    return msgspec.json.decode(doc, type=_Row).id


def at_position(position: Position, time: datetime | None) -> AsOf:
    """A read model's own place in the log."""
    return AsOf(position=position, time=time)
