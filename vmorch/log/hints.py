"""Wake-ups for followers: something was committed, perhaps. Only a hint; reading by position is the truth.

NOTIFY is sent after the commit, on a connection of its own: inside the append it would halve the throughput.
"""

import asyncio

import psycopg

from vmorch.log.connections import connect
from vmorch.log.errors import LogUnavailable

_CHANNEL = "vmorch_log"
# a burst of commits needs no more than one wake-up in this many seconds
_SPACING = 0.02
_POLL = 1.0


class Hints:
    """Counts wake-ups, from this process's commits and from those of others."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._count = 0
        self._told = 0
        self._next: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commits = asyncio.Event()
        self._own_backend = 0
        self._notifier: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """Take it before reading and hand it to `wait`: then no wake-up falls between the two."""
        return self._count

    @property
    def told(self) -> int:
        """How often other processes told of commits of theirs."""
        return self._told

    def committed(self) -> None:
        """Wake followers here at once, and soon those of other processes."""
        self._wake()
        self._commits.set()
        if self._notifier is None:
            self._notifier = asyncio.get_running_loop().create_task(self._notify(), name="log-notify")

    async def wait(self, seen: int) -> None:
        """Return when woken since `seen` was taken, and after a second in any case."""
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen(), name="log-listen")
        if self._count == seen:
            await asyncio.wait([self._next], timeout=_POLL)

    async def close(self) -> None:
        tasks = [task for task in (self._notifier, self._listener) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        self._count += 1
        self._next.set_result(None)
        self._next = asyncio.get_running_loop().create_future()

    async def _notify(self) -> None:
        while True:
            try:
                async with await connect(self._url) as connection:
                    self._own_backend = connection.info.backend_pid
                    while True:
                        await self._commits.wait()
                        self._commits.clear()
                        await connection.execute(f"NOTIFY {_CHANNEL}")
                        await asyncio.sleep(_SPACING)
            except (LogUnavailable, psycopg.OperationalError):
                await asyncio.sleep(_POLL)

    async def _listen(self) -> None:
        while True:
            try:
                async with await connect(self._url) as connection:
                    await connection.execute(f"LISTEN {_CHANNEL}")
                    async for notice in connection.notifies():
                        if notice.pid != self._own_backend:
                            self._told += 1
                            self._wake()
            except (LogUnavailable, psycopg.OperationalError):
                await asyncio.sleep(_POLL)
