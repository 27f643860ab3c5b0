"""Questions to the read models. Documents come back as the JSON text they were written as, undecoded."""

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import TypeVar

from msgspec import Struct
from sqlalchemy import ColumnElement, DateTime, Select, Text, and_, cast, literal, or_, select, text, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from vmorch.core.ids import Position
from vmorch.log.connections import in_time
from vmorch.log.errors import LogUnavailable
from vmorch.views.filters import Filters
from vmorch.views.projector import NAME, ProjectionStatus, Projector, Rebuilt
from vmorch.views.rows import Key, Row
from vmorch.views.tables import TABLES, Model

T = TypeVar("T")


class Page(Struct, frozen=True, kw_only=True):
    """Documents in order, and the position and time of the state that they show."""

    position: Position
    time: datetime | None
    docs: list[bytes]


class ReadModels:
    """Lists and single documents of the present."""

    def __init__(self, engine: AsyncEngine, projector: Projector) -> None:
        self.engine = engine
        self.projector = projector

    async def rows(self, model: Model, filters: Filters, limit: int, after: str | None = None) -> Page:
        """At most `limit` documents: VMs and the like by name, operations and drains newest first.

        `after` is NAME/ID of the last document of the page before. Raises LogUnavailable.
        """
        position, time = self.projector.position, self.projector.recorded_at
        query = _query(model, filters, limit, after)

        async def read(connection: AsyncConnection) -> list[bytes]:
            return [str(row.doc).encode() for row in (await connection.execute(query)).all()]

        return Page(position=position, time=time, docs=await self._ask(read))

    async def over(
        self, model: Model, filters: Filters, limit: int, after: str | None, ended: datetime, but: Collection[str]
    ) -> list[bytes]:
        """At most `limit` operations or drains, newest first, that were over before `ended` and are not among `but`;
        drains also if they were planned before and never begun.

        Nothing changes their documents any more once a VM, or the fleet, has forgotten them. Raises LogUnavailable.
        """
        query = _over_before(_query(model, filters, limit, after), model, ended, but)

        async def read(connection: AsyncConnection) -> list[bytes]:
            return [str(row.doc).encode() for row in (await connection.execute(query)).all()]

        return await self._ask(read)

    async def row(self, model: Model, id: str) -> bytes | None:
        """The document with this id. Raises LogUnavailable."""
        table = TABLES[model]

        async def read(connection: AsyncConnection) -> bytes | None:
            doc = await connection.scalar(select(table.c.doc).where(table.c.id == id))
            return None if doc is None else str(doc).encode()

        return await self._ask(read)

    async def _ask(self, question: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await in_time(self._answer(question))

    async def _answer(self, question: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        try:
            async with self.engine.connect() as connection:
                return await question(connection)
        except (OperationalError, InterfaceError) as error:
            raise LogUnavailable(str(error.orig)) from error

    async def everything(self) -> tuple[Position, dict[Key, Row]]:
        """Every row of every model, and the position that they show, all of one moment. Raises LogUnavailable."""

        async def read(connection: AsyncConnection) -> tuple[Position, dict[Key, Row]]:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            at = await connection.scalar(
                text("SELECT position FROM vmorch.checkpoints WHERE projection = :name"), {"name": NAME}
            )
            found: dict[Key, Row] = {}
            for model, table in TABLES.items():
                rows = (await connection.execute(select(table))).mappings().all()
                found |= {(model, str(row["id"])): dict(row) for row in rows}
            return Position(at or 0), found

        return await self._ask(read)

    async def settled(self, position: Position, seconds: float) -> bool:
        """Whether the models show everything up to `position` within that time."""
        return await self.projector.reached(position, seconds)

    async def status(self) -> list[ProjectionStatus]:
        """How far the models are behind the log."""
        return await self.projector.status()

    async def rebuild(self) -> Rebuilt:
        """Refill every model from the log."""
        return await self.projector.rebuild()


def _query(model: Model, filters: Filters, limit: int, after: str | None) -> Select[tuple[str]]:
    table = TABLES[model]
    columns = table.c
    query = select(columns.doc).limit(limit)
    if model in ("operations", "drains"):
        query = query.order_by(columns.id.desc())
        if after is not None:
            query = query.where(columns.id < after.rpartition("/")[2])
    else:
        query = query.order_by(columns.name, columns.id)
        if after is not None:
            name, _, id = after.rpartition("/")
            query = query.where(tuple_(columns.name, columns.id) > tuple_(name, id))
    for field in ("host", "state", "verb", "actor", "active", "started"):
        wanted = getattr(filters, field)
        if wanted is not None and field in columns:
            query = query.where(columns[field] == wanted)
    if filters.name is not None and "name" in columns:
        query = query.where(columns.name.like(_like(filters.name), escape="\\"))
    if filters.vm is not None and "vm" in columns:
        query = query.where((columns.vm == filters.vm) | (columns.vm_name == filters.vm))
    if filters.labels and "labels" in columns:
        query = query.where(columns.labels.contains(dict(filters.labels)))
    return query


def _over_before(query: Select[tuple[str]], model: Model, ended: datetime, but: Collection[str]) -> Select[tuple[str]]:
    columns = TABLES[model].c
    doc = cast(columns.doc, JSONB)
    over: ColumnElement[bool] = cast(doc["ended_at"].astext, DateTime(timezone=True)) < ended
    if model == "drains":
        planned = cast(doc["planned_at"].astext, DateTime(timezone=True)) < ended
        over = or_(over, and_(columns.state == "planned", planned))
    return query.where(columns.active.is_(False), over, columns.id != literal(list(but), ARRAY(Text)).all_())


def _like(glob: str) -> str:
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
