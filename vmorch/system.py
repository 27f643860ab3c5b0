"""The real clock and real ids. Only composition roots hand them in."""

import asyncio
import time
from datetime import UTC, datetime

import uuid_utils


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def new_id() -> str:
    """A time-ordered UUID (version 7)."""
    return str(uuid_utils.uuid7())
