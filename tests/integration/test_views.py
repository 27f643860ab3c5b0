"""Read models: level with the log, and the same row for row however they came to be."""

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.core.histories import random_history
from tests.core.world import START, WHO
from tests.integration.databases import Database, fresh_database, make_template
from vmorch.core.codec import Fact, encode
from vmorch.core.ids import Position, stream
from vmorch.core.messages import Meta
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.embedded import EmbeddedPostgres
from vmorch.log.errors import LogUnavailable
from vmorch.log.store import EventLog
from vmorch.views.filters import Filters
from vmorch.views.projector import Projector
from vmorch.views.queries import ReadModels
from vmorch.views.tables import TABLES

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@asynccontextmanager
async def engine_of(database: Database) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database.app_url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        yield engine
    finally:
        await engine.dispose()


async def append(log: EventLog, facts: list[Fact]) -> None:
    for fact in facts:
        event = encode(fact.event, fact.meta)
        await log.append(
            Append(streams=(StreamAppend(stream=fact.stream, expected=fact.version - 1, events=(event,)),))
        )


async def everything(engine: AsyncEngine) -> dict[str, list[tuple[object, ...]]]:
    async with engine.connect() as connection:
        return {
            name: [tuple(row) for row in await connection.execute(table.select().order_by(table.c.id))]
            for name, table in TABLES.items()
        }


@asynccontextmanager
async def running(projector: Projector) -> AsyncIterator[None]:
    await projector.start()
    task = asyncio.create_task(projector.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("seed", range(6))
async def test_a_rebuild_gives_the_live_rows_back_row_for_row(
    database: Database, event_log: EventLog, seed: int
) -> None:
    history = random_history(seed, 400)
    cuts = sorted(random.Random(seed).sample(range(len(history.facts)), 5))
    async with engine_of(database) as engine:
        projector = Projector(event_log, engine)
        async with running(projector):
            for start, end in zip([0, *cuts], [*cuts, len(history.facts)], strict=True):
                await append(event_log, history.facts[start:end])
                assert await projector.reached(Position(end), 20)
            live = await everything(engine)
            rebuilt = await projector.rebuild()
            assert rebuilt.events == len(history.facts)
            assert await everything(engine) == live
    assert live["vms"]


async def test_models_go_on_where_their_checkpoint_stands(database: Database, event_log: EventLog) -> None:
    history = random_history(7, 300)
    async with engine_of(database) as engine:
        await append(event_log, history.facts[:150])
        first = Projector(event_log, engine)
        async with running(first):
            assert await first.reached(Position(150), 20)
        await append(event_log, history.facts[150:])
        second = Projector(event_log, engine)
        async with running(second):
            assert await second.reached(Position(len(history.facts)), 20)
            live = await everything(engine)
            await second.rebuild()
            assert await everything(engine) == live


async def test_reads_go_on_while_models_are_rebuilt(database: Database, event_log: EventLog) -> None:
    history = random_history(8, 400)
    await append(event_log, history.facts)
    async with engine_of(database) as engine:
        projector = Projector(event_log, engine)
        async with running(projector):
            assert await projector.reached(Position(len(history.facts)), 20)
            models = ReadModels(engine, projector)
            expected = (await models.rows("vms", Filters(), 1000)).docs
            rebuilding = asyncio.create_task(projector.rebuild())
            reads = 0
            while not rebuilding.done() or reads < 3:
                assert (await models.rows("vms", Filters(), 1000)).docs == expected
                reads += 1
            await rebuilding


async def test_an_event_nobody_knows_stops_its_stream_alone_and_loudly(
    database: Database, event_log: EventLog
) -> None:
    history = random_history(9, 200)
    await append(event_log, history.facts)
    vms = [vm for vm in history.fleet.vms.values() if vm.deleted_at is None]
    at = stream("vm", vms[0].id)
    meta = encode(history.facts[0].event, Meta(actor=WHO.actor, occurred_at=START)).meta
    alien = NewEvent(kind="vm.from-the-future", schema=1, data=b"{}", meta=meta)
    expected = history.fleet.version(at)
    done = await event_log.append(Append(streams=(StreamAppend(stream=at, expected=expected, events=(alien,)),)))
    async with engine_of(database) as engine:
        projector = Projector(event_log, engine)
        async with running(projector):
            assert await projector.reached(done.last, 20)
            [status] = await projector.status()
            assert list(status.poisoned) == [at]
            assert "vm.from-the-future" in status.poisoned[at]
            async with engine.connect() as connection:
                assert await connection.scalar(text("SELECT count(*) FROM views.vms")) == len(vms)


async def test_lists_are_filtered_and_paged(database: Database, event_log: EventLog) -> None:
    history = random_history(10, 300)
    await append(event_log, history.facts)
    async with engine_of(database) as engine:
        projector = Projector(event_log, engine)
        async with running(projector):
            assert await projector.reached(Position(len(history.facts)), 20)
            models = ReadModels(engine, projector)
            whole = (await models.rows("operations", Filters(), 1000)).docs
            stops = (await models.rows("operations", Filters(verb="stop"), 1000)).docs
            assert 0 < len(stops) < len(whole)
            first = (await models.rows("vms", Filters(name="vm-*"), 3)).docs
            assert len(first) == 3


@contextmanager
def stopped(server: EmbeddedPostgres) -> Iterator[None]:
    """Postgres and its children hang."""
    found = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True, check=True)
    family = [server.pid, *map(int, found.stdout.split())]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)


async def test_a_postgres_that_hangs_is_told_instead_of_waited_for(
    service_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmorch.log.connections.READ_WITHIN", 0.5)
    with EmbeddedPostgres(service_directory / "hanging") as server:
        make_template(server)
        database = next(fresh_database(server))
        log = await EventLog.open(database.app_url)
        async with engine_of(database) as engine:
            models = ReadModels(engine, Projector(log, engine))
            assert (await models.rows("vms", Filters(), 10)).docs == []
            with stopped(server):
                for question in (models.rows("vms", Filters(), 10), log.head(), log.read(Position(0))):
                    async with asyncio.timeout(3):
                        with pytest.raises(LogUnavailable, match="no answer"):
                            await question
            assert (await models.rows("vms", Filters(), 10)).docs == []
        await log.close()
