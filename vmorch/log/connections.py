"""Connections to the log's Postgres: how they are set up, and a few kept for reading.

JSON comes back as the bytes that were written; nothing is parsed here. Must not write.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.types.string import ByteaBinaryLoader

from vmorch.log.errors import LogUnavailable

T = TypeVar("T")

Row = tuple[Any, ...]  # psycopg cannot know what a query returns; each caller names its columns

_OPTIONS = "-c timezone=UTC -c lock_timeout=10s -c statement_timeout=30s -c idle_in_transaction_session_timeout=60s"
_READERS = 4
READ_WITHIN = 15.0
"""Seconds until a server that is silent to a read counts as away: any takes far less, and callers wait a minute."""


async def connect(url: str) -> psycopg.AsyncConnection:
    """An autocommit connection with the log's settings. Raises `LogUnavailable`."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=5, options=_OPTIONS, prepare_threshold=0, application_name="vmorch"
        )
    except psycopg.OperationalError as error:
        raise LogUnavailable(str(error).strip()) from error
    connection.adapters.register_loader("json", ByteaBinaryLoader)
    return connection


async def in_time(reading: Coroutine[Any, Any, T]) -> T:
    """What a read gives. Raises `LogUnavailable` if Postgres is silent for READ_WITHIN."""
    task = asyncio.create_task(reading)
    try:
        # a query that is cancelled waits for the server to confirm that, so a hanging one is not waited for at all
        await asyncio.wait([task], timeout=READ_WITHIN)
        if not task.done():
            raise LogUnavailable(f"no answer within {READ_WITHIN:g} seconds")
        return task.result()
    finally:
        task.cancel()


class Readers:
    """At most four connections that read, opened when needed and replaced when broken."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[psycopg.AsyncConnection] = []
        self._free = asyncio.Semaphore(_READERS)

    async def fetch(self, query: LiteralString, params: Sequence[object] | Mapping[str, object] = ()) -> list[Row]:
        """All rows of a query that is harmless to repeat. Raises `LogUnavailable`."""
        return await in_time(self._fetched(query, params))

    async def _fetched(self, query: LiteralString, params: Sequence[object] | Mapping[str, object]) -> list[Row]:
        async with self._free:
            # a server that restarted shows only when its old connections are used, so those get a second chance
            while self._idle:
                try:
                    return await self._fetch(self._idle.pop(), query, params)
                except LogUnavailable as error:
                    if not isinstance(error.__cause__, psycopg.OperationalError):
                        raise
            return await self._fetch(await connect(self._url), query, params)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _fetch(
        self, connection: psycopg.AsyncConnection, query: LiteralString, params: Sequence[object] | Mapping[str, object]
    ) -> list[Row]:
        kept = False
        try:
            async with connection.cursor(binary=True) as cursor:
                await cursor.execute(query, params)
                rows = await cursor.fetchall()
            self._idle.append(connection)
            kept = True
        except psycopg.OperationalError as error:
            raise LogUnavailable(str(error).strip()) from error
        finally:
            if not kept:
                await connection.close()
        return rows
