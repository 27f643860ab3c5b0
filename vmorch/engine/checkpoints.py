"""Writes checkpoints of the state at every EVERY-th position, for parts of the log that have none as for new ones.

It folds a fleet of its own, a batch at a time, so that appends wait for nothing but a small slice of the loop; the
bytes are made in a thread. Run by one server at a time; a second one would find its rows written.
"""

import asyncio

import structlog

from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position
from vmorch.core.states import Frame, Held, StateRow, frame_of, held, pack_frame, row_of
from vmorch.engine.history import History, Past
from vmorch.log.errors import LogUnavailable
from vmorch.log.state_store import StateStore

logger = structlog.get_logger()

EVERY = 10_000
"""Events between two checkpoints: folding half as many is what a question about the past costs at least."""
PAUSE = 5.0
"""Seconds between looks whether a checkpoint is due."""


class Checkpoints:
    """Keeps the checkpoints level with the log, `every` so many events."""

    def __init__(self, history: History, states: StateStore, every: int = EVERY) -> None:
        self.history = history
        self.states = states
        self.every = every

    async def run(self) -> None:
        """Write each checkpoint that is due, for ever."""
        while True:
            try:
                await self.catch_up()
            except (LogUnavailable, ValueError) as error:
                # the past is answered without them, only later
                logger.warning("no checkpoint of the state", why=str(error))
            await asyncio.sleep(PAUSE)

    async def catch_up(self) -> int:
        """Write every checkpoint up to now; how many were missing."""
        head = await self.history.log.head()
        mark = await self.states.newest(head)
        due = Position((0 if mark is None else mark.position // self.every * self.every) + self.every)
        if due > head:
            return 0
        past = Past(Fleet(), {}) if mark is None else await self.history.at_mark(mark)
        written = 0
        while due <= head:
            await self.history.advance(past, due)
            await self.write(past)
            written += 1
            due = Position(due + self.every)
        return written

    async def write(self, past: Past) -> None:
        """Keep the state where it stands."""
        fleet = past.fleet
        things, frame = held(fleet), frame_of(fleet, past.poisoned)
        # states are immutable, so a thread may read them while the fold goes on
        rows, packed = await asyncio.to_thread(_bytes, things, frame)
        await self.states.write(fleet.position, packed, rows)


def _bytes(things: list[Held], frame: Frame) -> tuple[list[StateRow], bytes]:
    return [row_of(each) for each in things], pack_frame(frame)
