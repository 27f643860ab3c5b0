"""One connection to a NATS server, from its beginning to its end; it is never resumed.

Must not reconnect: that is the link's, with a new connection.
"""

import asyncio
import socket
import struct
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from vmorch.bus.bus import BusUnavailable, check_size
from vmorch.bus.serving import Serving

PING_EVERY, PONG_WITHIN = 2, 3
"""Seconds; their sum is how long a cut cable may stay unnoticed."""

NOT_SENT = (errors.ConnectionClosedError, errors.ConnectionDrainingError, errors.OutboundBufferLimitError)
"""What the library raises before it sends anything."""

_BACKLOG = 8 * 1024 * 1024
_RST_ON_CLOSE = struct.pack("ii", 1, 0)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Connection:
    """One connection, from its beginning to its end."""

    def __init__(self) -> None:
        self.client = Client()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.subscriptions: list[Subscription] = []
        self.challenged = False

    def end(self) -> None:
        """Count as lost from now on."""
        if not self.lost.done():
            self.lost.set_result(None)

    def check_backlog(self) -> None:
        """Raises BusUnavailable if the server takes nothing, so that memory does not fill up meanwhile."""
        if self.client.pending_data_size > _BACKLOG:
            raise BusUnavailable("the server does not keep up")

    async def send(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Publish, or raise BusUnavailable."""
        if self.lost.done():
            raise BusUnavailable("the connection broke")
        self.check_backlog()
        try:
            await self.client.publish(subject, data, headers=headers)
        except NOT_SENT as error:
            raise BusUnavailable("the connection broke") from error

    async def subscribe(self, serving: Serving) -> None:
        """Have the serving take what comes in on its subject, over this connection."""

        async def take(message: Msg) -> None:
            # answered on the connection it came by: permission to answer is the connection's
            await serving.take(message.subject, message.reply, message.data, self._answer)

        self.subscriptions.append(await apart(self.client.subscribe(serving.subject, cb=take)))

    async def settle(self, within: int) -> None:
        """Return when the server has processed everything that was sent before; `within` in seconds, twice."""
        # the library's PING overtakes what waits in its own queue; a second one comes after that
        await apart(self.client.flush(timeout=within))
        await apart(self.client.flush(timeout=within))

    async def watch(self) -> None:
        """Return when the connection is lost."""
        while not self.lost.done():
            await asyncio.wait({self.lost}, timeout=PING_EVERY)
            alive = asyncio.create_task(self.client.flush(timeout=PONG_WITHIN))
            try:
                ends: tuple[asyncio.Future[Any], ...] = (alive, self.lost)
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if alive.done():
                    alive.result()
            except (errors.Error, OSError, TimeoutError):
                return
            finally:
                alive.cancel()

    def forget_unsent_at_end(self) -> None:
        """However this connection ends, keep the kernel from delivering later what it could not deliver yet.

        Otherwise an orphaned socket retransmits for minutes, and a healed cable brings what was said before
        the cut.
        """
        sock = self._writer().transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)

    async def drop(self) -> None:
        """Leave at once. Only what was settled before has certainly arrived."""
        self.end()
        if self.client._transport:
            # the library's own close waits until a dead server takes what is left
            self._writer().transport.abort()
        try:
            async with asyncio.timeout(1):
                await self.client.close()
        except (errors.Error, OSError, TimeoutError) as error:
            _log.debug("closing a lost connection", error=str(error))

    def _writer(self) -> asyncio.StreamWriter:
        # the library has no way to its socket, nor an abort
        transport = self.client._transport
        assert isinstance(transport, TcpTransport)
        assert transport._bare_io_writer is not None
        return transport._bare_io_writer

    async def _answer(self, reply: str, data: bytes) -> None:
        check_size(data)
        await self.send(reply, data)


async def apart(call: Coroutine[Any, Any, T]) -> T:
    """The outcome of a call of the library, in a task of its own: a cancellation that comes together with what the call
    waits for is lost on the library, and whoever was cancelled would go on."""
    calling = asyncio.create_task(call)
    try:
        await asyncio.wait({calling})
        return calling.result()
    finally:
        calling.cancel()
        # what it ends with after that interests nobody
        calling.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
