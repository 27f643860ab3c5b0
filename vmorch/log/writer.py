"""The one connection that appends, driven through libpq itself.

psycopg's own waiting and adapting is made for any query; here there are two, and a lone caller's latency is
mostly their overhead. Must not know what an append is.
"""

import asyncio
import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from vmorch.log.connections import connect
from vmorch.log.errors import LogUnavailable

ANSWER_WITHIN = 45.0
"""Seconds until a silent server counts as away: more than an append may take by the server's own timeouts."""


class Writer:
    """Runs prepared statements one at a time. Once it is not usable it stays so: open another."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._broken = False
        self._connection = connection
        self._libpq = connection.pgconn
        self._socket = connection.fileno()
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[PGresult] | None = None
        self._result: PGresult | None = None
        self._loop.add_reader(self._socket, self._readable)
        self._input = select.poll()
        self._input.register(self._socket, select.POLLIN)

    @classmethod
    async def open(cls, url: str, statements: dict[bytes, bytes]) -> Self:
        """Connect and prepare the statements by name. Raises `LogUnavailable`."""
        writer = cls(await connect(url))
        try:
            for name, query in statements.items():
                await writer._answered(partial(writer._libpq.send_prepare, name, query))
        except BaseException:
            await writer.close()
            raise
        return writer

    async def execute(self, statement: bytes, params: Sequence[bytes]) -> PGresult:
        """The statement's result, in binary. Raises `LogUnavailable`, or what Postgres refused."""
        return await self._answered(partial(self._libpq.send_query_prepared, statement, params, result_format=1))

    def is_usable(self) -> bool:
        """Whether the server still listens, as far as one can know without asking it."""
        return not self._broken and not self._input.poll(0)

    async def close(self) -> None:
        self._broken = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        await self._connection.close()

    async def _answered(self, send: Callable[[], None]) -> PGresult:
        try:
            send()
        except psycopg.OperationalError as error:
            self._broken = True
            raise LogUnavailable(str(error).strip()) from error
        self._answer = self._loop.create_future()
        self._writable()
        patience = self._loop.call_later(ANSWER_WITHIN, self._fail, f"no answer within {ANSWER_WITHIN:.0f} seconds")
        try:
            result = await self._answer
        finally:
            patience.cancel()
            self._answer = None
        if result.status == ExecStatus.FATAL_ERROR:
            refusal = error_from_result(result)
            if isinstance(refusal, psycopg.OperationalError):
                self._broken = True
                raise LogUnavailable(str(refusal).strip()) from refusal
            raise refusal
        return result

    def _writable(self) -> None:
        try:
            unsent = self._libpq.flush()
        except psycopg.OperationalError as error:
            self._fail(str(error).strip())
            return
        if unsent:
            self._loop.add_writer(self._socket, self._writable)
        else:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        if self._answer is None:
            # an idle server says nothing but that it ends; noticed now, it leaves no append's outcome unknown
            self._fail("the connection was closed")
            return
        try:
            self._libpq.consume_input()
            while not self._libpq.is_busy():
                result = self._libpq.get_result()
                if result is None:
                    if not self._answer.done() and self._result is not None:
                        self._answer.set_result(self._result)
                    self._result = None
                    return
                self._result = result
        except psycopg.OperationalError as error:
            self._fail(str(error).strip())

    def _fail(self, cause: str) -> None:
        self._broken = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LogUnavailable(cause))
