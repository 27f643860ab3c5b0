"""One end of a cable between two network namespaces, run there by the test that cuts it.

`server DIRECTORY` is a NATS server and what its listener hears; `client DIRECTORY` publishes what it reads.
"""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

import structlog

from vmorch.bus.credentials import (
    account_jwts,
    ensure_keys,
    nats_config,
    operator_jwt,
    server_credentials,
)
from vmorch.bus.link import Link
from vmorch.embedded import EmbeddedNats
from vmorch.wire import subjects

ADDRESS = "10.64.77.2:4222"


def say(text: str) -> None:
    print(text, flush=True)


async def link(directory: Path) -> Link:
    keys = ensure_keys(directory / "keys")
    return await Link.connect(
        f"nats://{ADDRESS}",
        "end",
        lambda: server_credentials(keys, "c", datetime.now(UTC)),
        keys.server,
        subjects.server_inbox("c"),
        lambda connected: say("connected" if connected else "disconnected"),
    )


async def serve(directory: Path) -> None:
    keys, now = ensure_keys(directory / "keys"), datetime.now(UTC)
    config = directory / "nats.conf"
    config.write_text(nats_config(ADDRESS, operator_jwt(keys, now), account_jwts(keys, "c", now)))

    async def hear(subject: str, reply: str, data: bytes) -> None:
        say(data.decode())

    with EmbeddedNats(directory / "nats", config):
        listener = await link(directory)
        await listener.serve("vmorch.c.>", hear, reply_allowed=lambda subject, reply: True)
        say("ready")
        await asyncio.to_thread(sys.stdin.read)
        await listener.close()


async def publish(directory: Path) -> None:
    publisher = await link(directory)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await publisher.publish("vmorch.c.host.h1.command", line.strip().encode())
        say("published")
    await publisher.close()


structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
asyncio.run({"server": serve, "client": publish}[sys.argv[1]](Path(sys.argv[2])))
