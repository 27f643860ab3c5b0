"""How long one order may go on: until its deadline, or until it is withdrawn.

Asked from the order's lane thread, withdrawn from the event loop. Must not end anything by force.
"""

import threading
from collections.abc import Callable

from hostagent.hypervisor import Expired, Withdrawn
from vmorch.core.hostcommands import Done, Sample


class OrderScope:
    """A `Scope` that ends at `until` on the monotonic clock, or when it is withdrawn. `tell` takes its samples, and
    `answer` what it is answered with before its end."""

    def __init__(
        self,
        clock: Callable[[], float],
        until: float,
        tell: Callable[[Sample], None] = lambda sample: None,
        answer: Callable[[Done], None] = lambda done: None,
        *,
        answered: bool = False,
    ) -> None:
        self._clock = clock
        self._until = until
        self._tell = tell
        self._answer = answer
        self.answered = answered
        self._withdrawn = threading.Event()

    def withdraw(self) -> None:
        """From now on the order must not go on; a pause ends at once."""
        self._withdrawn.set()

    def check(self) -> None:
        if self._withdrawn.is_set():
            raise Withdrawn
        if self._clock() >= self._until:
            raise Expired

    def remaining(self) -> float:
        return max(0.0, self._until - self._clock())

    def pause(self, seconds: float) -> None:
        self.check()
        self._withdrawn.wait(min(seconds, self.remaining()))
        self.check()

    def tell(self, sample: Sample) -> None:
        self._tell(sample)

    def answer(self, done: Done) -> None:
        self.answered = True
        self._answer(done)
