"""Reading what a caller sent: headers, parameters, bodies. Bad input is refused with the place in it.

Must not act on any of it.
"""

import asyncio
import hmac
import re
from collections.abc import Callable, Collection
from datetime import datetime
from hashlib import sha256
from typing import TypeVar

import msgspec
from starlette.requests import Request

from vmorch.core.errors import Rejected, bad_value
from vmorch.core.ids import Position, RequestId

REQUEST_HEADER = "Vmorch-Request-Id"
REASON_HEADER = "Vmorch-Reason"
DIGEST_HEADER = "X-Vmorch-Content-SHA256"

MAX_BODY = 1024 * 1024
BODY_WITHIN = 30.0
MAX_LIMIT = 10_000
_LONGEST_REASON = 500
_UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
_TRACEPARENT = re.compile(r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
_INTEGER = re.compile(r"^[0-9]{1,18}$")

T = TypeVar("T")


def request_id(request: Request, new: Callable[[], str]) -> RequestId:
    """The request's id, or a new one. Raises Rejected `bad-request` unless it is a UUID."""
    given = request.headers.get(REQUEST_HEADER)
    if given is None:
        return RequestId(new())
    if not _UUID.match(given.lower()):
        raise Rejected("bad-request", f"{REQUEST_HEADER} must be a UUID")
    return RequestId(given.lower())


def reason(request: Request) -> str:
    """Why the caller asks, in UTF-8. Raises Rejected `bad-request`."""
    given = request.headers.get(REASON_HEADER, "")
    try:
        text = given.encode("latin-1").decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise Rejected("bad-request", f"{REASON_HEADER} must be UTF-8") from error
    if len(text) > _LONGEST_REASON or not text.isprintable():
        raise Rejected("bad-request", f"{REASON_HEADER} must be at most {_LONGEST_REASON} printable characters")
    return text


def traceparent(request: Request) -> str | None:
    """The W3C trace context; a malformed one is ignored, as its standard asks."""
    given = request.headers.get("traceparent", "")
    return given if _TRACEPARENT.match(given) else None


async def body(request: Request, type: type[T], *, limit: int = MAX_BODY) -> T:
    """The JSON body as `type`; an empty one is `{}`. Raises Rejected `bad-request`, `bad-name` or `too-large`, and
    `unauthenticated` unless it is the one that its sender signed."""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_WITHIN):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise Rejected("too-large", f"the body exceeds {limit} bytes")
                chunks.append(chunk)
    except TimeoutError as error:
        raise Rejected("bad-request", f"the body did not come within {BODY_WITHIN:g} s") from error
    data = b"".join(chunks)
    signed = request.headers.get(DIGEST_HEADER)
    if signed is not None and not hmac.compare_digest(signed.encode(), sha256(data).hexdigest().encode()):
        raise Rejected("unauthenticated", "the body is not the one that was signed")
    try:
        return msgspec.json.decode(data or b"{}", type=type)
    except msgspec.ValidationError as error:
        raise bad_value(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad-request", f"the body is not JSON: {error}") from error


def only(request: Request, known: Collection[str]) -> None:
    """Refuse parameters that nothing reads: a misspelt filter must not become none. Raises Rejected."""
    unknown = sorted(set(request.query_params).difference(known))
    if unknown:
        raise Rejected("bad-request", f"unknown parameter {', '.join(unknown)}", facts={"known": sorted(known)})


def flag(request: Request, name: str) -> bool | None:
    """A boolean parameter, None if absent. Raises Rejected `bad-request`."""
    given = request.query_params.get(name)
    if given is None:
        return None
    if given not in ("true", "false"):
        raise Rejected("bad-request", f"{name} must be true or false")
    return given == "true"


def whole(request: Request, name: str) -> int | None:
    """A whole number, None if absent. Raises Rejected `bad-request`."""
    given = request.query_params.get(name)
    return None if given is None else whole_number(given, name)


def whole_number(given: str, name: str) -> int:
    """A whole number from text. Raises Rejected `bad-request`."""
    if not _INTEGER.match(given):
        raise Rejected("bad-request", f"{name} must be a whole number, not negative")
    return int(given)


def position(request: Request, name: str) -> Position | None:
    """A log position, None if absent. Raises Rejected `bad-request`."""
    given = whole(request, name)
    return None if given is None else Position(given)


def limit(request: Request) -> int:
    """How many items a page may have. Raises Rejected `bad-request`."""
    given = whole(request, "limit")
    if given is not None and not 1 <= given <= MAX_LIMIT:
        raise Rejected("bad-request", f"limit must be 1 to {MAX_LIMIT}")
    return given or 1000


def moment(request: Request, name: str) -> datetime | None:
    """A time with its offset, None if absent. Raises Rejected `bad-request`."""
    given = request.query_params.get(name)
    if given is None:
        return None
    try:
        # a + in a query string means a space to many a client's library
        parsed = datetime.fromisoformat(given.replace(" ", "+") if given.count(" ") == 1 and "T" in given else given)
    except ValueError as error:
        raise Rejected("bad-request", f"{name} must be a time such as 2026-11-20T14:00:00Z") from error
    if parsed.tzinfo is None:
        raise Rejected("bad-request", f"{name} needs a time zone, such as Z")
    return parsed


def labels(request: Request) -> dict[str, str]:
    """The repeatable parameter `label=key=value`. Raises Rejected `bad-request`."""
    found: dict[str, str] = {}
    for given in request.query_params.getlist("label"):
        key, equals, value = given.partition("=")
        if not key or not equals:
            raise Rejected("bad-request", "label must be key=value")
        found[key] = value
    return found
