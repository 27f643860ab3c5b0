"""Run blocking calls beside the event loop.

A call's thread belongs to the call, not to whoever waits for it: a cancelled waiter never frees a running
thread's place, and a thread that never returns does not keep the process alive. Must not retry anything.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from hostagent.workers import WORKERS

T = TypeVar("T")


class Blocking(Protocol):
    """Where blocking calls run; a simulation runs them in place."""

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result or exception."""
        ...

    def apart(self) -> "Blocking":
        """Another such place, whose calls do not wait for those here."""
        ...


class Threads:
    """Each call has a thread while it lasts, at most `limit` at once; further calls wait their turn."""

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._places = asyncio.Semaphore(limit)

    def apart(self) -> "Threads":
        """As many threads more."""
        return Threads(self._limit)

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in a thread. If the waiter is cancelled the call goes on and its result is dropped."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def hand_over(result: T | None, error: BaseException | None) -> None:
            self._places.release()
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]  # None here is the call's own result

        def work() -> None:
            try:
                result, error = call(), None
            except BaseException as raised:  # carried to the waiter, whatever it is
                result, error = None, raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(hand_over, result, error)

        WORKERS.start(work)
        return await done


class InPlace:
    """Runs calls where they are asked for: the order of everything is then the event loop's alone."""

    def apart(self) -> "InPlace":
        return self

    async def run(self, call: Callable[[], T]) -> T:
        return call()
