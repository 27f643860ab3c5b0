"""The bus over a NATS server: one link per process, which comes back by itself for as long as it is open.

Every connection is a new client of the NATS library, and none is ever resumed: the library's own reconnect
would first send what it had left over from the old connection. A command that arrives minutes late is a
command that nobody waits for any more, so what cannot be sent now is refused, never kept.
"""

import asyncio
import random
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Self

import structlog
from nats import errors

from vmorch.bus.bus import (
    BusError,
    BusUnavailable,
    Handler,
    NoResponders,
    ReplyAllowed,
    RequestTimeout,
    check_size,
)
from vmorch.bus.connection import NOT_SENT, PING_EVERY, PONG_WITHIN, Connection, apart
from vmorch.bus.keys import KeyPair
from vmorch.bus.serving import Serving

MINIMUM_SERVER = (2, 14)
"""Older servers have known ways around permissions."""

_CONNECT_WITHIN = 5
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 4.0
_STABLE_AFTER = 10.0
_CLOSE_WITHIN = 5.0

_log = structlog.get_logger(__name__)


class UnsafeBroker(BusError):
    """The server is too old, or lets anybody in: this link will not use it."""

    code = "unsafe-broker"


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
        self._connection: Connection | None = None
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

    async def request(
        self, subject: str, data: bytes, timeout: float, headers: dict[str, str] | None = None
    ) -> bytes:
        """See `Bus.request`."""
        check_size(data)
        connection = self._usable()
        asked = asyncio.create_task(connection.client.request(subject, data, timeout=timeout, headers=headers))
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
        except NOT_SENT as error:
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
            await connection.subscribe(serving)
            await connection.settle(PONG_WITHIN)
        except (errors.Error, OSError, TimeoutError) as error:
            # the next connection subscribes to everything again
            self._report(f"subscribe {subject}: {error}")
            connection.end()

    async def publish(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """See `Bus.publish`."""
        check_size(data)
        await self._usable().send(subject, data, headers)

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
                await connection.settle(1)
            except (errors.Error, OSError, TimeoutError) as error:
                self._report(f"leaving: {error}")
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
            if not self._life.cancelled():
                self._life.result()

    def _usable(self) -> Connection:
        connection = self._connection
        if connection is None or connection.lost.done() or not connection.client.is_connected:
            raise BusUnavailable(f"{self._name} has no connection to the bus")
        connection.check_backlog()
        return connection

    async def _live(self, tried: asyncio.Future[None]) -> None:
        wait = _FIRST_WAIT
        clock = asyncio.get_running_loop().time
        while True:
            connection = Connection()
            try:
                await self._open(connection)
                self._connection = connection
                began = clock()
                self._tell(True)
                if not tried.done():
                    tried.set_result(None)
                await connection.watch()
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

    async def _open(self, connection: Connection) -> None:
        def sign(nonce: str) -> bytes:
            connection.challenged = True
            return b64encode(self._keys.sign(nonce.encode()))

        async def on_error(error: Exception) -> None:
            self._report(str(error) or type(error).__name__)

        async def on_closed() -> None:
            connection.end()

        client = connection.client
        async with asyncio.timeout(_CONNECT_WITHIN):
            connecting = client.connect(
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
                ping_interval=PING_EVERY,
                # the library would otherwise keep messages while there is no connection
                pending_size=0,
            )
            await apart(connecting)
            connection.forget_unsent_at_end()
            if not connection.challenged:
                raise UnsafeBroker("the NATS server asks for no credentials")
            version = client.connected_server_version
            if (version.major, version.minor) < MINIMUM_SERVER:
                raise UnsafeBroker(f"NATS server {version}: older than {'.'.join(map(str, MINIMUM_SERVER))}")
            for serving in self._servings:
                await connection.subscribe(serving)
            await connection.settle(_CONNECT_WITHIN)

    def _tell(self, connected: bool) -> None:
        _log.info("bus connected" if connected else "bus disconnected", link=self._name)
        if self._on_state is not None:
            self._on_state(connected)

    def _report(self, error: str) -> None:
        _log.warning("bus error", link=self._name, error=error)
        if self._on_error is not None:
            self._on_error(error)
