"""One server at a time drives operations: whoever holds an advisory lock of the log's database.

The lock lives with a connection, so a server that dies or is cut off loses it by itself. It saves double work; that
two leaders do no harm follows from expected versions and order ids, not from this.
"""

import asyncio
from collections.abc import Callable, Coroutine

import psycopg
import structlog

from vmorch.log.connections import connect
from vmorch.log.errors import LogUnavailable

logger = structlog.get_logger()

EVERY = 1.0
"""Seconds between tries to lead, and between looks whether the lock is still held."""
PATIENCE = 5.0
"""Seconds without an answer on the lock's connection until it counts as lost."""
_KEY = "hashtext('vmorch.leader')"


async def lead_while_elected(url: str, lead: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run `lead` whenever this process holds the lock, cancelling it when the lock is lost, for ever."""
    while True:
        try:
            connection = await connect(url)
        except LogUnavailable:
            await asyncio.sleep(EVERY)
            continue
        try:
            # the lock is another process's to give up, so there is nothing to wait for but time
            while not await _ask(connection, f"SELECT pg_try_advisory_lock({_KEY})"):  # noqa: ASYNC110
                await asyncio.sleep(EVERY)
            logger.info("leading")
            await _lead_until_lost(connection, lead)
        except (psycopg.OperationalError, LogUnavailable, TimeoutError) as error:
            logger.warning("no longer leading", why=str(error))
        finally:
            await connection.close()


async def _lead_until_lost(
    connection: psycopg.AsyncConnection, lead: Callable[[], Coroutine[object, object, None]]
) -> None:
    task = asyncio.create_task(lead(), name="leader")
    try:
        while not task.done():
            await asyncio.wait([task], timeout=EVERY)
            await _ask(connection, "SELECT true")
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ask(connection: psycopg.AsyncConnection, query: str) -> bool:
    async with asyncio.timeout(PATIENCE):
        row = await (await connection.execute(query.encode())).fetchone()
    return row is not None and bool(row[0])
