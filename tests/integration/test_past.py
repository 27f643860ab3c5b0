"""The past on a real log: the same answers as when it was the present, with checkpoints and without."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import psycopg
import pytest
from test_views import append, engine_of, running

from tests.core.histories import random_history
from tests.core.world import History as Told
from tests.integration.databases import Database
from vmorch.core.aggregates.vm import StepDone
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Observed
from vmorch.core.ids import Position, stream
from vmorch.core.resources import vm_resource
from vmorch.core.states import Held, digest, read_row, row_of
from vmorch.engine.checkpoints import Checkpoints
from vmorch.engine.history import History
from vmorch.engine.replay import Stored, replay
from vmorch.log.state_store import StateStore
from vmorch.log.store import EventLog
from vmorch.views.filters import Filters
from vmorch.views.past import rows_of
from vmorch.views.projector import Projector
from vmorch.views.queries import ReadModels
from vmorch.views.rows import ids_of
from vmorch.views.tables import Model

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

MODELS: tuple[Model, ...] = ("vms", "hosts", "images", "tokens", "operations", "drains")


@asynccontextmanager
async def store_of(database: Database, fingerprint: str | None = None) -> AsyncIterator[StateStore]:
    store = StateStore(database.app_url) if fingerprint is None else StateStore(database.app_url, fingerprint)
    try:
        yield store
    finally:
        await store.close()


def _filters(told: Told, chance: random.Random) -> list[Filters]:
    vms = [vm for vm in told.fleet.vms.values() if vm.name]
    vm = chance.choice(vms)
    return [
        Filters(),
        Filters(name="vm-*"),
        Filters(name=f"*{vm.name[-2:]}"),
        Filters(name="vm-?%_\\"),
        Filters(name=vm.name),
        Filters(host="h1"),
        Filters(state=chance.choice(("running", "off", "starting", "succeeded", "undone", "active", "cordoned"))),
        Filters(labels={"n": chance.choice([*(str(each.labels.get("n")) for each in vms)])}),
        Filters(vm=vm.id),
        Filters(vm=vm.name, active=False),
        Filters(verb="start", actor="ada"),
        Filters(active=True),
        Filters(started=True),
    ]


async def every_page(models: ReadModels, model: Model, filters: Filters, limit: int) -> list[bytes]:
    found: list[bytes] = []
    after = None
    while True:
        docs = (await models.rows(model, filters, limit, after)).docs
        found += docs
        if len(docs) < limit:
            return found
        last = msgspec.json.decode(docs[-1])
        after = f"{last.get('name', '')}/{last['id']}"


@pytest.mark.parametrize("seed", range(3))
async def test_a_list_of_the_past_is_the_list_that_was_shown_then(
    database: Database, event_log: EventLog, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that a short history holds operations that were forgotten
    monkeypatch.setattr("vmorch.core.aggregates.vm.KEPT_OPERATIONS", 2)
    monkeypatch.setattr("vmorch.core.fleet.KEPT_DRAINS", 2)
    monkeypatch.setattr("vmorch.core.fleet.KEPT_PLANS", 2)
    monkeypatch.setattr("vmorch.core.fleet.KEPT_DELETED", 2)
    told, chance = random_history(seed, 700), random.Random(seed)
    then = chance.randrange(300, 600)
    wanted = _filters(told, chance)
    async with engine_of(database) as engine:
        projector = Projector(event_log, engine)
        models = ReadModels(engine, projector)
        async with running(projector):
            await append(event_log, told.facts[:then])
            assert await projector.reached(Position(then), 20)
            shown = {(model, index): await every_page(models, model, each, 3) for model in MODELS
                     for index, each in enumerate(wanted)}
            await append(event_log, told.facts[then:])
            assert await projector.reached(Position(len(told.facts)), 20)
            fleet = await History(event_log, None).fleet(Position(then))
            assert fleet.recorded_at is not None
            forgotten_by_then = 0
            for (model, index), docs in shown.items():
                rows = rows_of(fleet, model, wanted[index])
                found = [(row["id"], row["doc"].encode()) for row in rows]
                if model in ("operations", "drains"):
                    but = list(ids_of(fleet, model))
                    forgotten = await models.over(model, wanted[index], 1000, None, fleet.recorded_at, but)
                    forgotten_by_then += len(forgotten)
                    found += [(msgspec.json.decode(doc)["id"], doc) for doc in forgotten]
                    found.sort(reverse=True)
                assert [doc for _, doc in found] == docs, (model, wanted[index])
    assert shown[("operations", 0)]
    assert shown[("vms", 0)]
    assert forgotten_by_then


async def test_pages_of_the_past_go_on_after_the_one_before(database: Database, event_log: EventLog) -> None:
    told = random_history(11, 300)
    fleet = told.fleet
    for model in MODELS:
        whole = rows_of(fleet, model, Filters())
        for row in whole:
            rest = rows_of(fleet, model, Filters(), f"{row.get('name', '')}/{row['id']}")
            assert [row["id"], *(each["id"] for each in rest)] == [each["id"] for each in whole][-len(rest) - 1 :]


async def test_the_past_is_the_same_with_checkpoints_and_without(database: Database, event_log: EventLog) -> None:
    told = random_history(21, 900)
    await append(event_log, told.facts)
    async with store_of(database) as store:
        plain, marked = History(event_log, None), History(event_log, store)
        assert await Checkpoints(marked, store, every=100).catch_up() == len(told.facts) // 100
        assert await Checkpoints(marked, store, every=100).catch_up() == 0
        for at in (0, 1, 99, 100, 101, 455, 800, len(told.facts)):
            found, expected = await marked.fleet(Position(at)), await plain.fleet(Position(at))
            assert digest(found) == digest(expected), at
            assert (found.position, found.recorded_at) == (expected.position, expected.recorded_at)


async def test_lists_of_the_past_need_hardly_an_operation_that_is_over(
    database: Database, event_log: EventLog
) -> None:
    told = random_history(26, 920)
    over = [
        (vm, each)
        for vm in told.fleet.vms.values()
        for each in vm.operations.values()
        if vm.deleted_at is None and each.outcome is not None and each.steps and each.steps[0].host == vm.host
    ]
    # what a host says of an operation after its end still tells of the VM
    late, operation = over[0]
    seen = Observed(power="crashed", reason="told late", vcpus=1)
    told.record(stream("vm", late.id), StepDone(operation=operation.id, index=0, observed=seen))
    end = Position(len(told.facts))
    await append(event_log, told.facts)
    async with store_of(database) as store:
        await Checkpoints(History(event_log, store), store, every=300).catch_up()
        lacking = 0
        for at in (300, 301, 477, 600, 899, end):
            whole = await History(event_log, None).fleet(Position(at))
            part = await History(event_log, store).standing(Position(at))
            for model in ("vms", "hosts", "images", "tokens"):
                assert rows_of(part, model, Filters()) == rows_of(whole, model, Filters()), (at, model)
            lacking += sum(len(whole.vms[id].operations) - len(vm.operations) for id, vm in part.vms.items())
        assert list(part.vms[late.id].operations) == list(whole.vms[late.id].operations)
    assert part.vms[late.id].power == "crashed"
    assert lacking > 20


async def test_one_vm_of_the_past_is_found_without_the_others(database: Database, event_log: EventLog) -> None:
    told = random_history(22, 900)
    await append(event_log, told.facts)
    async with store_of(database) as store:
        await Checkpoints(History(event_log, store), store, every=150).catch_up()
        plain, alone = History(event_log, None), History(event_log, store)
        seen = 0
        for at in (160, 299, 450, 777, 900):
            whole = await plain.fleet(Position(at))
            for vm in whole.vms.values():
                if vm.spec is None:
                    continue
                # a name may have been given on; a deleted VM is found by its id only
                for ref in (vm.id, vm.name) if vm.deleted_at is None else (vm.id,):
                    part = await alone.around_vm(ref, Position(at))
                    found = part.vms[vm.id] if ref == vm.id else part.find_vm(ref)
                    assert vm_resource(part, found) == vm_resource(whole, vm)
                    assert (part.position, part.recorded_at) == (whole.position, whole.recorded_at)
                    seen += 1
        assert seen > 20


async def test_a_checkpoint_of_other_code_is_ignored(database: Database, event_log: EventLog) -> None:
    told = random_history(23, 300)
    await append(event_log, told.facts)
    async with store_of(database, "of-another-version") as foreign, store_of(database) as ours:
        assert await Checkpoints(History(event_log, foreign), foreign, every=100).catch_up() == 3
        assert await ours.newest(Position(300)) is None
        assert digest(await History(event_log, ours).fleet(Position(300))) == digest(
            await History(event_log, None).fleet(Position(300))
        )


async def test_two_writers_of_one_checkpoint_leave_one(database: Database, event_log: EventLog) -> None:
    told = random_history(24, 300)
    await append(event_log, told.facts)
    async with store_of(database) as one, store_of(database) as other:
        await asyncio.gather(
            Checkpoints(History(event_log, one), one, every=100).catch_up(),
            Checkpoints(History(event_log, other), other, every=100).catch_up(),
        )
        assert await one.marks(Position(300)) == [100, 200, 300]
        mark = await one.newest(Position(300))
        assert mark is not None
        assert len(await one.states(mark.position)) == mark.things


async def test_the_auditor_reads_checkpoints_and_writes_none(database: Database, event_log: EventLog) -> None:
    async with await psycopg.AsyncConnection.connect(database.auditor_url) as connection:
        await connection.execute("SELECT count(*) FROM vmorch.checkpointed_states")
        with pytest.raises(psycopg.Error):
            await connection.execute("DELETE FROM vmorch.state_checkpoints")


async def test_a_replay_finds_a_wrong_checkpoint_row_and_state_and_names_the_last_event(
    database: Database, event_log: EventLog
) -> None:
    told = random_history(25, 400)
    await append(event_log, told.facts)
    end = Position(len(told.facts))
    async with engine_of(database) as engine, store_of(database) as store:
        projector = Projector(event_log, engine)
        await projector.start()
        models, history = ReadModels(engine, projector), History(event_log, store)
        await Checkpoints(history, store, every=100).catch_up()

        async def verify(live: Fleet) -> list[tuple[str, str, str, int | None]]:
            stored = Stored(*await models.everything(), live)
            done = await replay(History(event_log, store), None, stored)
            assert (done.position, done.checkpoints, done.live) == (end, 4, True)
            assert done.total == len(done.differences)
            return [(each.where, each.subject, each.detail, each.position) for each in done.differences]

        # times are the log's own
        fleet = await History(event_log, None).fleet(end)
        assert await verify(fleet) == []

        # each of the three is spoilt alone
        mark = await store.newest(Position(200))
        assert mark is not None
        rows = await store.states(mark.position)
        wrong = next(row for row in rows if row.stream.startswith("vm/"))
        at, last = wrong.stream, max(f.position for f in told.facts[:200] if f.stream == wrong.stream)
        spoilt = Held(at, wrong.name, msgspec.structs.replace(read_row(wrong).state, epoch=77))
        with psycopg.connect(database.owner_url, autocommit=True) as connection:
            connection.execute(
                "UPDATE vmorch.checkpointed_states SET state = %s WHERE position = 200 AND stream = %s",
                (row_of(spoilt).state, at),
            )
        assert await verify(fleet) == [("checkpoint @200", at, "epoch", last)]

        await store.drop(Position(200))
        with psycopg.connect(database.owner_url, autocommit=True) as connection:
            connection.execute("UPDATE views.hosts SET state = 'retired' WHERE name = 'h1'")
        await Checkpoints(history, store, every=100).write(await History(event_log, None).past(Position(200)))
        host = next(host for host in fleet.hosts.values() if host.name == "h1")
        last = max(fact.position for fact in told.facts if fact.stream == f"host/{host.id}")
        assert await verify(fleet) == [("read model hosts", f"host/{host.id}", "state", last)]

        await projector.rebuild()
        other = fleet.copy()
        other.hosts[host.id] = msgspec.structs.replace(host, cordoned="nobody said so")
        assert await verify(other) == [("live state", f"host/{host.id}", "cordoned", last)]

        with psycopg.connect(database.owner_url, autocommit=True) as connection:
            connection.execute("UPDATE vmorch.checkpointed_states SET state = 'x' WHERE position = 300 AND place = 0")
        damaged = {(where, detail[:9]) for where, _, detail, _ in await verify(fleet)}
        assert damaged == {("checkpoint @300", "the state"), ("checkpoint @300", "is missin")}
