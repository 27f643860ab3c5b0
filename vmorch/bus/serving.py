"""Handling what comes in on a subject, the same over every carrier.

The one place where a reply subject is judged, so that no handler can forget to. Must not connect to anything.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from vmorch.bus.bus import BusError, Handler, ReplyAllowed

CONCURRENT = 64
"""Messages of one `serve` handled at once; the next ones wait in the order in which they came."""

Answer = Callable[[str, bytes], Awaitable[None]]
"""Publishes an answer to a reply subject."""

_log = structlog.get_logger(__name__)


class Serving:
    """A subject, who handles it, and the messages being handled now."""

    def __init__(self, subject: str, handler: Handler, reply_allowed: ReplyAllowed) -> None:
        self.subject = subject
        self._handler = handler
        self._reply_allowed = reply_allowed
        self._places = asyncio.Semaphore(CONCURRENT)
        self._running: set[asyncio.Task[None]] = set()

    async def take(self, subject: str, reply: str, data: bytes, answer: Answer) -> None:
        """Begin to handle a message; returns when it has begun, not when it is done."""
        # A stolen credential may publish where it is allowed to and name any reply subject: answering
        # there would publish, with our rights, where the credential itself may not.
        if reply and not self._reply_allowed(subject, reply):
            _log.warning("message dropped: foreign reply subject", subject=subject, reply=reply)
            return
        await self._places.acquire()
        task = asyncio.create_task(self._handle(subject, reply, data, answer))
        self._running.add(task)
        task.add_done_callback(self._done)

    async def finish(self, within: float) -> None:
        """Wait for what is being handled; cancel what takes more than `within` seconds."""
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=within)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _handle(self, subject: str, reply: str, data: bytes, answer: Answer) -> None:
        try:
            response = await self._handler(subject, reply, data)
        except Exception:  # one message's fault, whatever it is, must not end the service of all others
            _log.exception("handler failed", subject=subject)
            return
        if response is None or not reply:
            return
        try:
            await answer(reply, response)
        except BusError as error:
            _log.warning("answer not sent", subject=subject, code=error.code, error=str(error))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._places.release()
