"""Server-sent events: lines for one reader, with signs of life, ended when the server stops.

Must not keep anything for a reader that is gone; whoever comes back says from where.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from starlette.responses import StreamingResponse

MEDIA_TYPE = "text/event-stream"
KEEPALIVE = b": keepalive\n\n"

T = TypeVar("T")


def message(data: bytes, *, event: str = "", id: int | None = None) -> bytes:
    """One event. `data` is JSON on one line."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {event}\n" if event else "")
    return head.encode() + b"data: " + data + b"\n\n"


def response(lines: AsyncIterator[bytes]) -> StreamingResponse:
    """The response that sends `lines` as they come."""
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(lines, 200, headers, MEDIA_TYPE)


async def lively(source: AsyncIterator[T], stopping: asyncio.Event, every: float) -> AsyncGenerator[T | None, None]:
    """What `source` yields, None after each `every` seconds of silence; over when it is or when `stopping` is set."""
    stop = asyncio.ensure_future(stopping.wait())
    coming: asyncio.Future[tuple[T] | None] | None = None
    try:
        while True:
            # one pending fetch lives across silences: cancelling it would end the source
            coming = coming or asyncio.ensure_future(_next(source))
            both: set[asyncio.Future[Any]] = {coming, stop}
            await asyncio.wait(both, timeout=every, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return
            if not coming.done():
                yield None
                continue
            come, coming = coming.result(), None
            if come is None:
                return
            yield come[0]
    finally:
        pending: list[asyncio.Future[Any]] = [each for each in (coming, stop) if each is not None]
        for each in pending:
            each.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def _next(source: AsyncIterator[T]) -> tuple[T] | None:
    """The next one in a tuple; None at the end."""
    try:
        return (await anext(source),)
    except StopAsyncIteration:
        return None
