"""A throw-away NATS server with a cluster's credentials, for tests of the bus."""

import asyncio
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nats.aio.client import Client

from vmorch.bus.credentials import (
    ControlKeys,
    account_jwts,
    ensure_keys,
    host_credentials,
    nats_config,
    operator_jwt,
    publisher_credentials,
    reader_credentials,
    server_credentials,
)
from vmorch.bus.keys import KeyPair, create
from vmorch.bus.link import Link
from vmorch.core.ids import HostId
from vmorch.embedded import EmbeddedError, EmbeddedNats
from vmorch.wire import subjects

CLUSTER = "c"


class Broker:
    """A NATS server on a loopback port that stays its own over restarts."""

    def __init__(self, directory: Path) -> None:
        self.keys_directory = directory / "keys"
        self.keys: ControlKeys = ensure_keys(self.keys_directory)
        self._directory = directory
        self.store = directory / "jetstream"
        self._server = self._start_on_free_port()
        self.url = self._server.url
        self.pid = self._server.pid

    def restart(self) -> None:
        self._server.start()
        self.pid = self._server.pid

    def kill(self) -> None:
        self._server.kill()

    def stop(self) -> None:
        self._server.stop()

    def host_jwt(self, host: str, pair: KeyPair, lifetime: timedelta = timedelta(hours=1)) -> str:
        return host_credentials(self.keys, CLUSTER, HostId(host), pair.public, datetime.now(UTC), lifetime)

    async def control_plane(
        self, on_state: Callable[[bool], None] | None = None, on_error: Callable[[str], None] | None = None
    ) -> Link:
        return await Link.connect(
            self.url,
            "server",
            lambda: server_credentials(self.keys, CLUSTER, datetime.now(UTC)),
            self.keys.server,
            subjects.server_inbox(CLUSTER),
            on_state,
            on_error,
        )

    async def host(
        self,
        host: str,
        on_state: Callable[[bool], None] | None = None,
        on_error: Callable[[str], None] | None = None,
    ) -> Link:
        pair = create("user")
        return await Link.connect(
            self.url,
            host,
            lambda: self.host_jwt(host, pair),
            pair,
            subjects.inbox(HostId(host)),
            on_state,
            on_error,
        )

    async def publisher(self) -> Link:
        return await Link.connect(
            self.url,
            "publisher",
            lambda: publisher_credentials(self.keys, CLUSTER, datetime.now(UTC)),
            self.keys.publisher,
            subjects.publisher_inbox(CLUSTER),
        )

    async def reader(self, name: str) -> "Raw":
        """A plain client with the credential of a reader of the published log."""
        pair, hour = create("user"), timedelta(hours=1)
        jwt = reader_credentials(self.keys, CLUSTER, name, pair.public, datetime.now(UTC), hour)
        return await self.raw(jwt, pair, subjects.reader_inbox(name))

    async def raw(self, jwt: str, pair: KeyPair, inbox: str) -> "Raw":
        """A client that does whatever the server lets it do, whoever stole the credential."""
        raw = Raw()
        await raw.client.connect(
            self.url,
            user_jwt_cb=lambda: jwt.encode(),
            signature_cb=lambda nonce: b64encode(pair.sign(nonce.encode())),
            inbox_prefix=inbox,
            error_cb=raw.note,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
        )
        return raw

    async def raw_host(self, host: str) -> "Raw":
        pair = create("user")
        return await self.raw(self.host_jwt(host, pair), pair, subjects.inbox(HostId(host)))

    def _start_on_free_port(self) -> EmbeddedNats:
        config = self._directory / "nats.conf"
        for _ in range(5):
            now = datetime.now(UTC)
            config.write_text(
                nats_config(
                    f"127.0.0.1:{free_port()}",
                    operator_jwt(self.keys, now),
                    account_jwts(self.keys, CLUSTER, now),
                    self.store,
                )
            )
            server = EmbeddedNats(self._directory / "nats", config)
            try:
                server.start()
            except EmbeddedError as error:
                # somebody else took the port in between
                failure = error
                continue
            return server
        raise failure


class Raw:
    """A plain NATS client and what the server objected to."""

    def __init__(self) -> None:
        self.client = Client()
        self.errors: list[str] = []

    async def note(self, error: Exception) -> None:
        self.errors.append(str(error))

    async def settle(self) -> None:
        """Return when the server has processed what was sent: the library's first PING may overtake that."""
        await self.client.flush()
        await self.client.flush()

    async def objections(self) -> list[str]:
        """What the server objected to since the last call."""
        await self.settle()
        found, self.errors = self.errors, []
        return found


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def a_broker(directory: Path) -> Iterator[Broker]:
    """A running broker, stopped afterwards."""
    broker = Broker(directory)
    yield broker
    broker.stop()


async def until(condition: Callable[[], bool], within: float = 20) -> None:
    """Return when the condition holds; fail if it does not within so many seconds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(0.01)
