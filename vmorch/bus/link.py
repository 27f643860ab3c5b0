"""The bus over a NATS server: one link per process, which comes back by itself for as long as it is open.

Every connection is a new client of the NATS library, and none is ever resumed: the library's own reconnect
would first send what it had left over from the old connection. A command that arrives minutes late is a
command that nobody waits for any more, so what cannot be sent now is refused, never kept.
"""

import asyncio
import random
import socket
import struct
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Self

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from vmorch.bus.bus import (
    BusError,
    BusUnavailable,
    Handler,
    NoResponders,
    ReplyAllowed,
    RequestTimeout,
    check_size,
)
from vmorch.bus.keys import KeyPair
from vmorch.bus.serving import Serving

MINIMUM_SERVER = (2, 14)
"""Older servers have known ways around permissions."""

_CONNECT_WITHIN = 5
_PING_EVERY = 2
_PONG_WITHIN = 3
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 4.0
_STABLE_AFTER = 10.0
_CLOSE_WITHIN = 5.0
_BACKLOG = 8 * 1024 * 1024
_NOT_SENT = (errors.ConnectionClosedError, errors.ConnectionDrainingError, errors.OutboundBufferLimitError)
_RST_ON_CLOSE = struct.pack("ii", 1, 0)

_log = structlog.get_logger(__name__)


class UnsafeBroker(BusError):
    """The server is too old, or lets anybody in: this link will not use it."""

    code = "unsafe-broker"


class _Connection:
    """One connection, from its beginning to its end."""

    def __init__(self) -> None:
        self.client = Client()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.subscriptions: list[Subscription] = []
        self.challenged = False

    def end(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    async def send(self, subject: str, data: bytes) -> None:
        if self.lost.done():
            raise BusUnavailable("the connection broke")
        if self.client.pending_data_size > _BACKLOG:
            raise BusUnavailable("the server does not keep up")
        try:
            await self.client.publish(subject, data)
        except _NOT_SENT as error:
            raise BusUnavailable("the connection broke") from error

    async def answer(self, reply: str, data: bytes) -> None:
        check_size(data)
        await self.send(reply, data)

    async def drop(self) -> None:
        """Leave at once, and keep the kernel from delivering later what it could not deliver yet."""
        self.end()
        # The library knows no abort. Without it, an orphaned socket retransmits for minutes, and a healed
        # cable would bring the control plane's orders from before the cut.
        writer = getattr(self.client._transport, "_bare_io_writer", None)
        if writer is not None:
            sock = writer.transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            writer.transport.abort()
        try:
            async with asyncio.timeout(1):
                await self.client.close()
        except (errors.Error, OSError, TimeoutError) as error:
            _log.debug("closing a lost connection", error=str(error))


class Link:
    """A `Bus` over NATS. Create it with `connect`; it then lives in a task of its own until `close`."""

    def __init__(
        self,
        url: str,
        name: str,
        jwt: Callable[[], str],
        keys: KeyPair,
        inbox_prefix: str,
        on_state: Callable[[bool], None] | None,
        on_error: Callable[[str], None] | None,
    ) -> None:
        self._servers = url.split(",")
        self._name = name
        self._jwt = jwt
        self._keys = keys
        self._inbox_prefix = inbox_prefix
        self._on_state = on_state
        self._on_error = on_error
        self._servings: list[Serving] = []
        self._connection: _Connection | None = None
        self._life: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str,
        name: str,
        jwt: Callable[[], str],
        keys: KeyPair,
        inbox_prefix: str,
        on_state: Callable[[bool], None] | None = None,
        on_error: Callable[[str], None] | None = None,
    ) -> Self:
        """A link after its first attempt to connect, which may have failed: it goes on trying by itself.

        `url` may name several servers, separated by commas. `jwt` is asked for the newest credential at every
        attempt and must not block. `on_state` is told of every connection (its subscriptions are then in
        force) and every loss. Raises UnsafeBroker if the server is there but must not be used.
        """
        link = cls(url, name, jwt, keys, inbox_prefix, on_state, on_error)
        tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link._life = asyncio.create_task(link._live(tried), name=f"bus {name}")
        try:
            await asyncio.wait({tried, link._life}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            link._life.cancel()
            raise
        if link._life.done():
            link._life.result()
        return link

    @property
    def connected(self) -> bool:
        """Whether there is a connection; a cut cable is noticed within 6 seconds."""
        return self._connection is not None and not self._connection.lost.done()

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """See `Bus.request`."""
        check_size(data)
        connection = self._usable()
        asked = asyncio.create_task(connection.client.request(subject, data, timeout=timeout))
        try:
            ends: tuple[asyncio.Future[Any], ...] = (asked, connection.lost)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise RequestTimeout(f"the connection broke before {subject} answered")
            return bytes(asked.result().data)
        except errors.NoRespondersError as error:
            raise NoResponders(f"nobody serves {subject}") from error
        except errors.TimeoutError as error:
            raise RequestTimeout(f"no answer from {subject} within {timeout} s") from error
        except _NOT_SENT as error:
            raise BusUnavailable("the connection broke") from error
        finally:
            asked.cancel()

    async def serve(self, subject: str, handler: Handler, *, reply_allowed: ReplyAllowed) -> None:
        """See `Bus.serve`. May be called while there is no connection."""
        serving = Serving(subject, handler, reply_allowed)
        self._servings.append(serving)
        connection = self._connection
        if connection is None:
            return
        try:
            await _subscribe(connection, serving)
            await _settle(connection.client, _PONG_WITHIN)
        except (errors.Error, OSError, TimeoutError) as error:
            # the next connection subscribes to everything again
            self._report(f"subscribe {subject}: {error}")
            connection.end()

    async def publish(self, subject: str, data: bytes) -> None:
        """See `Bus.publish`."""
        check_size(data)
        await self._usable().send(subject, data)

    async def close(self) -> None:
        """See `Bus.close`. Takes at most 10 seconds."""
        connection = self._connection
        if connection is not None:
            try:
                async with asyncio.timeout(1):
                    for subscription in connection.subscriptions:
                        await subscription.unsubscribe()
            except (errors.Error, OSError, TimeoutError) as error:
                self._report(f"leaving: {error}")
        await asyncio.gather(*(serving.finish(_CLOSE_WITHIN) for serving in self._servings))
        if connection is not None and not connection.lost.done():
            try:
                await _settle(connection.client, 1)
            except (errors.Error, OSError, TimeoutError) as error:
                self._report(f"leaving: {error}")
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
            if not self._life.cancelled():
                self._life.result()

    def _usable(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.lost.done() or not connection.client.is_connected:
            raise BusUnavailable(f"{self._name} has no connection to the bus")
        if connection.client.pending_data_size > _BACKLOG:
            raise BusUnavailable("the server does not keep up")
        return connection

    async def _live(self, tried: asyncio.Future[None]) -> None:
        wait = _FIRST_WAIT
        clock = asyncio.get_running_loop().time
        while True:
            connection = _Connection()
            try:
                await self._open(connection)
                self._connection = connection
                began = clock()
                self._tell(True)
                if not tried.done():
                    tried.set_result(None)
                await self._watch(connection)
                self._report(f"connection lost: {connection.client.last_error or 'no sign of life'}")
                if clock() - began > _STABLE_AFTER:
                    wait = _FIRST_WAIT
            except UnsafeBroker as error:
                if not tried.done():
                    raise
                self._report(f"not connected: {error}")
            except (errors.Error, OSError, TimeoutError) as error:
                self._report(f"not connected: {error or type(error).__name__}")
            finally:
                known, self._connection = self._connection, None
                await connection.drop()
                if known is not None:
                    self._tell(False)
            if not tried.done():
                tried.set_result(None)
            # full jitter: all hosts lose the server in the same moment
            await asyncio.sleep(random.uniform(0.05, wait))  # noqa: S311  not a secret
            wait = min(wait * 2, _LONGEST_WAIT)

    async def _open(self, connection: _Connection) -> None:
        def sign(nonce: str) -> bytes:
            connection.challenged = True
            return b64encode(self._keys.sign(nonce.encode()))

        async def on_error(error: Exception) -> None:
            self._report(str(error) or type(error).__name__)

        async def on_closed() -> None:
            connection.end()

        client = connection.client
        async with asyncio.timeout(_CONNECT_WITHIN):
            await client.connect(
                servers=self._servers,
                name=self._name,
                user_jwt_cb=lambda: self._jwt().encode(),
                signature_cb=sign,
                inbox_prefix=self._inbox_prefix,
                error_cb=on_error,
                closed_cb=on_closed,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                ping_interval=_PING_EVERY,
                # the library would otherwise keep messages while there is no connection
                pending_size=0,
            )
            if not connection.challenged:
                raise UnsafeBroker("the NATS server asks for no credentials")
            version = client.connected_server_version
            if (version.major, version.minor) < MINIMUM_SERVER:
                raise UnsafeBroker(f"NATS server {version}: older than {'.'.join(map(str, MINIMUM_SERVER))}")
            for serving in self._servings:
                await _subscribe(connection, serving)
            await _settle(client, _CONNECT_WITHIN)

    async def _watch(self, connection: _Connection) -> None:
        """Return when the connection is lost."""
        while True:
            await asyncio.wait({connection.lost}, timeout=_PING_EVERY)
            if connection.lost.done():
                return
            try:
                await connection.client.flush(timeout=_PONG_WITHIN)
            except (errors.Error, TimeoutError, OSError):
                return

    def _tell(self, connected: bool) -> None:
        _log.info("bus connected" if connected else "bus disconnected", link=self._name)
        if self._on_state is not None:
            self._on_state(connected)

    def _report(self, error: str) -> None:
        _log.warning("bus error", link=self._name, error=error)
        if self._on_error is not None:
            self._on_error(error)


async def _subscribe(connection: _Connection, serving: Serving) -> None:
    async def take(message: Msg) -> None:
        # answered on the connection it came by: permission to answer is the connection's
        await serving.take(message.subject, message.reply, message.data, connection.answer)

    connection.subscriptions.append(await connection.client.subscribe(serving.subject, cb=take))


async def _settle(client: Client, within: int) -> None:
    """Return when the server has processed everything that was sent before."""
    # the library's PING overtakes what waits in its own queue; a second one comes after that
    await client.flush(timeout=within)
    await client.flush(timeout=within)
