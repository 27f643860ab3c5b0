"""One lane per VM (or image): jobs of a lane run in order, jobs of different lanes side by side.

A lane is a task with a queue, not a lock: giving up on a lane never lets its next job begin while the last
one's thread still runs. Idle lanes vanish. Must not know what a job is.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Lanes(Generic[Job]):
    """Serial lanes over `work`, which must not return before its job's effects have ended."""

    def __init__(self, work: Callable[[Job], Awaitable[None]], failed: Callable[[BaseException], None]) -> None:
        """`failed` is told of an exception out of `work`: that lane has ended with jobs left in it."""
        self._work = work
        self._failed = failed
        self._queues: dict[str, deque[Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True

    @property
    def open(self) -> bool:
        """Whether new jobs begin."""
        return self._open

    def put(self, lane: str, job: Job) -> None:
        """Begin the job when all earlier ones of its lane have ended; never, if the lanes are closed."""
        if not self._open:
            return
        queue = self._queues.get(lane)
        if queue is not None:
            queue.append(job)
            return
        queue = self._queues[lane] = deque([job])
        task = asyncio.create_task(self._drain(lane, queue), name=f"lane {lane}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def remove(self, lane: str, job: Job) -> bool:
        """Take back a job that has not begun. False if it has, or was never there."""
        queue = self._queues.get(lane, deque())
        # the head is the one that runs
        if job not in queue or queue[0] is job:
            return False
        queue.remove(job)
        return True

    def __len__(self) -> int:
        """How many lanes have work."""
        return len(self._queues)

    async def close(self, grace: float) -> bool:
        """Begin nothing more and wait at most `grace` seconds for what runs. Whether all of it ended."""
        self._open = False
        for queue in self._queues.values():
            while len(queue) > 1:
                queue.pop()
        tasks = set(self._tasks)
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return not late

    async def _drain(self, lane: str, queue: deque[Job]) -> None:
        try:
            while queue:
                await self._work(queue[0])
                queue.popleft()
        finally:
            del self._queues[lane]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)
