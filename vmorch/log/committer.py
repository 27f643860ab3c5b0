"""Group commit: appends that arrive while a transaction is being flushed share the next one.

One task owns the one connection that writes. Must not decide whether an append is right: the SQL function does.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import psycopg

from vmorch.log.batch import ALONE, APPEND, STATEMENTS, Encoded, columns, columns_alone, is_plain, result_alone, results
from vmorch.log.errors import InvalidAppend, LogError, LogFull, LogUnavailable
from vmorch.log.interface import Appended
from vmorch.log.tail import Tail
from vmorch.log.writer import Writer

# keeps one transaction, and with it everybody's wait, in the range of tens of milliseconds
_MOST_EVENTS = 2000

_Waiting = tuple[Encoded, asyncio.Future[Appended]]


class Committer:
    """Takes encoded appends and answers each when its transaction is on disk."""

    def __init__(self, url: str, committed: Callable[[], None]) -> None:
        self._url = url
        self.tail = Tail()
        self._committed = committed
        self._waiting: deque[_Waiting] = deque()
        self._arrival = asyncio.Event()
        self._closing = False
        self.written = 0
        """Events that were appended here."""
        self._writer: Writer | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="log-committer")

    async def submit(self, append: Encoded) -> Appended:
        """The append's result. A cancelled caller's append may be written all the same."""
        if self._closing or self._task.done():
            raise LogUnavailable("the log is closed")
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._waiting.append((append, future))
        self._arrival.set()
        return await future

    async def close(self) -> None:
        """Write what waits, then disconnect."""
        self._closing = True
        self._arrival.set()
        await self._task

    async def _run(self) -> None:
        try:
            while True:
                await self._arrival.wait()
                self._arrival.clear()
                while self._waiting:
                    await self._flush(self._collect())
                    # callers just answered may append again: let them join the next transaction
                    await asyncio.sleep(0)
                if self._closing:
                    return
        finally:
            for _, future in self._waiting:
                _fail(future, LogUnavailable("the log is closed"))
            await self._disconnect()

    def _collect(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        events = 0
        while self._waiting and (not batch or events + self._waiting[0][0].size <= _MOST_EVENTS):
            append, future = self._waiting.popleft()
            if not future.cancelled():
                batch.append((append, future))
                events += append.size
        return batch

    async def _flush(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        try:
            answers = await self._write([append for append, _ in batch])
        except LogUnavailable as error:
            for _, future in batch:
                _fail(future, LogUnavailable(error.cause))
        except psycopg.Error as error:
            # nothing was written; one malformed append must not take the others with it
            if len(batch) > 1:
                for one in batch:
                    await self._flush([one])
            else:
                _fail(batch[0][1], _refusal(error))
        except BaseException:
            for _, future in batch:
                _fail(future, LogUnavailable("the log is closing"))
            raise
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if isinstance(answer, LogError):
                    _fail(future, answer)
                elif not future.done():
                    future.set_result(answer)
            done = False
            for (append, _), answer in zip(batch, answers, strict=True):
                if isinstance(answer, Appended) and not answer.repeated:
                    self.tail.add(append.append, answer, len(append.datas) + len(append.metas))
                    self.written += append.size
                    done = True
            if done:
                self._committed()

    async def _write(self, batch: list[Encoded]) -> list[Appended | LogError]:
        if self._writer is not None and not self._writer.is_usable():
            await self._disconnect()
        if self._writer is None:
            self._writer = await Writer.open(self._url, STATEMENTS)
        if len(batch) == 1 and is_plain(batch[0]):
            result = await self._writer.execute(ALONE, columns_alone(batch[0]))
            return [result_alone(batch[0], [result.get_value(0, column) for column in range(3)])]
        result = await self._writer.execute(APPEND, columns(batch))
        return results(batch, [result.get_value(0, column) for column in range(3)])

    async def _disconnect(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.close()


def _fail(future: asyncio.Future[Appended], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _refusal(error: psycopg.Error) -> Exception:
    match error:
        case psycopg.errors.CheckViolation():
            return LogFull("no partition exists for the next positions")
        case psycopg.DataError():
            return InvalidAppend(str(error).strip())
        case _:
            return error
