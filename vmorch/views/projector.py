"""Keeps the read models level with the log: fold a batch, write the rows it touched and the checkpoint together.

Must not decide what a row says. A rebuild folds the whole log beside the live models and replaces all rows in one
transaction, so that readers see either the old or the new and never less.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

import structlog
from msgspec import Struct
from sqlalchemy import Connection, Table, delete, text
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from tenacity import retry, retry_if_exception, wait_random_exponential

from vmorch.core.codec import Unreadable, decode
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded
from vmorch.log.folding import uncollected
from vmorch.log.interface import Log
from vmorch.views.rows import Key, Row, Rows
from vmorch.views.tables import TABLES, Model

logger = structlog.get_logger()

NAME = "read-models"
BATCH = 5000
CHUNK = 2000
SPACING = 0.05
"""Seconds between two writes: what comes meanwhile shares the next one, and operations do not wait for a write each."""

_CHECKPOINT = text(
    "INSERT INTO vmorch.checkpoints (projection, position, updated_at) VALUES (:name, :position, now())"
    " ON CONFLICT (projection) DO UPDATE SET position = excluded.position, updated_at = now()"
)


def _upsert(table: Table) -> Insert:
    statement = insert(table)
    columns = {column.name: statement.excluded[column.name] for column in table.c if column.name != "id"}
    return statement.on_conflict_do_update(index_elements=["id"], set_=columns)


# made once: making one takes longer than carrying it out, on the loop that operations are driven from
UPSERTS = {model: _upsert(table) for model, table in TABLES.items()}


class ProjectionStatus(Struct, frozen=True, kw_only=True):
    """How far a follower of the log is. `poisoned` names streams that stand still, and the event they stand at;
    `trouble` says why the whole follower does, if it does."""

    name: str
    position: Position
    head: Position
    poisoned: Mapping[Stream, str]
    trouble: str = ""


class Rebuilt(Struct, frozen=True, kw_only=True):
    """What a rebuild did."""

    events: int
    rows: int
    seconds: float


def _is_away(error: BaseException) -> bool:
    return isinstance(error, OperationalError | InterfaceError)


class Projector:
    """Runs the read models of one database."""

    def __init__(self, log: Log, engine: AsyncEngine) -> None:
        self.log = log
        self.engine = engine
        self.position = Position(0)
        self.recorded_at: datetime | None = None
        self.poisoned: dict[Stream, str] = {}
        self._rows = Rows()
        self._turn = asyncio.Lock()
        self._moved = asyncio.Condition()
        self._waiting = 0
        self._asked = asyncio.Event()

    async def start(self) -> None:
        """Be where the stored models are: fold up to their checkpoint, or rebuild models without one."""
        async with self.engine.connect() as connection:
            found = await connection.scalar(
                text("SELECT position FROM vmorch.checkpoints WHERE projection = :name"), {"name": NAME}
            )
        if found is None:
            await self.rebuild()
            return
        await self._fold(self._rows, self.poisoned, Position(found))
        self._rows.take()
        await self._advance()

    async def run(self) -> None:
        """Follow the log, for ever; while log or database are away, wait."""
        async for batch in self.log.follow(self.position, self._asked.is_set):
            await self._pause()
            async with self._turn:
                fresh = [record for record in batch if record.position > self._rows.fleet.position]
                for record in fresh:
                    take(self._rows, record, self.poisoned)
                changed = self._rows.take()
                if fresh:
                    await self._write(changed)
                    await self._advance()

    async def reached(self, position: Position, seconds: float) -> bool:
        """Whether the models stand at `position` or beyond within that time. As long as anybody waits, they are written
        without a pause."""
        if self.position >= position:
            return True
        self._waiting += 1
        self._asked.set()
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: self.position >= position)
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._asked.clear()
        return True

    async def _pause(self) -> None:
        """Let changes gather, and whoever made them go first, unless somebody waits for them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SPACING):
                await self._asked.wait()

    async def status(self) -> list[ProjectionStatus]:
        """How far the models are behind the log."""
        head = await self.log.head()
        return [ProjectionStatus(name=NAME, position=self.position, head=head, poisoned=dict(self.poisoned))]

    async def rebuild(self) -> Rebuilt:
        """Replace every row by what the log says. Reads go on and see the old rows until all new ones are there."""
        with uncollected():
            return await self._rebuild()

    async def _rebuild(self) -> Rebuilt:
        began = asyncio.get_running_loop().time()
        rows, poisoned = Rows(), dict[Stream, str]()
        every: dict[Key, Row | None] = {}
        # most of the log is folded while the live models go on; only the rest is folded with them held
        await self._fold(rows, poisoned, await self.log.head(), into=every)
        async with self._turn:
            await self._fold(rows, poisoned, await self.log.head(), into=every)
            await self._write(every, wipe=True, position=rows.fleet.position)
            self._rows, self.poisoned = rows, poisoned
            await self._advance()
        kept = sum(row is not None for row in every.values())
        seconds = asyncio.get_running_loop().time() - began
        return Rebuilt(events=int(rows.fleet.position), rows=kept, seconds=seconds)

    async def _fold(
        self,
        rows: Rows,
        poisoned: dict[Stream, str],
        until: Position,
        into: dict[Key, Row | None] | None = None,
    ) -> None:
        while rows.fleet.position < until:
            for record in await self.log.read(rows.fleet.position, BATCH, until):
                take(rows, record, poisoned)
            if into is not None:
                into.update(rows.take())
            # a long fold must not starve the loop that everything else runs on
            await asyncio.sleep(0)

    @retry(
        retry=retry_if_exception(_is_away),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        before_sleep=lambda state: logger.warning("read models wait for the database", tries=state.attempt_number),
    )
    async def _write(
        self, changed: dict[Key, Row | None], *, wipe: bool = False, position: Position | None = None
    ) -> None:
        """Store rows and checkpoint together, or neither; while the database is away, wait for it."""
        at = position or self._rows.fleet.position
        async with self.engine.begin() as connection:
            await connection.run_sync(_store, changed, at, wipe)

    async def _advance(self) -> None:
        self.position, self.recorded_at = self._rows.fleet.position, self._rows.fleet.recorded_at
        async with self._moved:
            self._moved.notify_all()


def take(rows: Rows, record: Recorded, poisoned: dict[Stream, str]) -> None:
    """Take a record, unless its stream stands still at one that cannot be read."""
    try:
        fact = decode(record)
        if record.stream not in poisoned:
            rows.apply(fact)
            return
    except Unreadable as error:
        poisoned.setdefault(record.stream, f"{record.position}: {error}")
        logger.error("unreadable event", position=record.position, stream=record.stream, why=str(error))
    rows.fleet.skip(record.stream, record.version, record.position, record.recorded_at)


def _store(connection: Connection, changed: dict[Key, Row | None], position: Position, wipe: bool) -> None:
    gone: dict[Model, list[str]] = {}
    kept: dict[Model, list[Row]] = {}
    for (model, id), row in changed.items():
        if row is None:
            gone.setdefault(model, []).append(id)
        else:
            kept.setdefault(model, []).append(row)
    for model, table in TABLES.items():
        if wipe:
            connection.execute(delete(table))
        elif model in gone:
            connection.execute(delete(table).where(table.c.id.in_(gone[model])))
        rows = kept.get(model, [])
        for start in range(0, len(rows), CHUNK):
            connection.execute(UPSERTS[model], rows[start : start + CHUNK])
    connection.execute(_CHECKPOINT, {"name": NAME, "position": position})


__all__ = ["UPSERTS", "ProjectionStatus", "Projector", "Rebuilt", "take"]
