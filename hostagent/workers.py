"""Threads that are used again: to start one takes longer than most calls, and whoever starts it waits until it runs.

They do not keep the process alive, whatever they hang in. Must not limit how many there are: a thread that hangs
belongs to its call.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE_SECONDS = 10.0
"""How long a thread without work is kept."""

Work = Callable[[], None]


class Workers:
    """Threads of which each does one thing at a time. Thread-safe."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._idle: list[SimpleQueue[Work]] = []
        self._lock = threading.Lock()

    def start(self, work: Work) -> None:
        """Have it done at once, and return."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), daemon=True, name="vmorch-worker").start()
        inbox.put(work)

    def _serve(self, inbox: "SimpleQueue[Work]") -> None:
        while (work := self._next(inbox)) is not None:
            work()
            # what it holds must not live as long as the thread
            del work
            with self._lock:
                self._idle.append(inbox)

    def _next(self, inbox: "SimpleQueue[Work]") -> Work | None:
        """What is to be done next; None if nothing came for so long that the thread is not kept."""
        while True:
            try:
                return inbox.get(timeout=self._idle_seconds)
            except Empty:
                with self._lock:
                    # else somebody has chosen this thread just now
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return None


WORKERS = Workers()
"""Those of this process."""
