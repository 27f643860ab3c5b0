"""The effects that the composition root hands in, so that one process can run everything under a seeded schedule.

Must not have defaults: whoever composes says which clock and which ids.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for deadlines, and waiting."""

    def now(self) -> datetime:
        """The wall time, in UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


Ids = Callable[[], str]
"""A new time-ordered UUID at each call."""

Secrets = Callable[[str], str]
"""A secret of at least 256 bits, URL-safe: always the same for one seed, and not to be had without the server's key."""
