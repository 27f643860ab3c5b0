"""User data and holders from the request to the guest and into an erasure, with everything that vmorch keeps or sends
searched for them."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import msgspec
import psycopg
import pytest
from bus_fixtures import Broker, a_broker
from databases import Database
from sealing import SealedLog
from test_published import level, published, read_all, running
from test_views import engine_of
from test_views import running as projecting

from tests.engine.cluster import OPERATOR, Clock, Cluster, until
from vmorch.audit.notes import read_key
from vmorch.audit.verification import verify
from vmorch.core.errors import Rejected
from vmorch.core.states import read_row
from vmorch.engine.checkpoints import Checkpoints
from vmorch.engine.history import History
from vmorch.engine.logkeys import LogKeys, log_origin
from vmorch.engine.masterkey import MasterKey
from vmorch.engine.sealer import Sealer
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.log.keyring import PostgresKeyring
from vmorch.log.seals import Seals
from vmorch.log.state_store import StateStore
from vmorch.log.store import EventLog
from vmorch.views.projector import Projector

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.postgres]

SECRET = "#cloud-config\npassword: hunter2\n"
ALICE = "Alice Meyer <alice@example.org>"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    yield from a_broker(tmp_path / "nats")


@asynccontextmanager
async def site(log: EventLog, database: Database, directory: Path) -> AsyncIterator[Cluster]:
    """A cluster on this log with a host and an image; keys of subjects lie in the same database."""
    made, keyring = Cluster(log, directory, Clock()), PostgresKeyring(database.app_url)
    made.keyring, made.random = keyring, os.urandom
    async with made.plane(), made.host("h1").agent():
        await made.image()
        await until(lambda: any(host.agent == "connected" for host in made.fleet.hosts.values()))
        yield made
    await keyring.close()


def everything(database: Database) -> bytes:
    """All rows of all tables as text, and what is packed in them."""
    found = []
    with psycopg.connect(database.owner_url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('vmorch', 'views')"
        ).fetchall()
        for (table,) in tables:
            rows = connection.execute(f"SELECT t::text FROM {table} AS t").fetchall()
            found += [str(row).encode() for (row,) in rows]
    return b"\n".join(found)


async def packed(states: StateStore, history: History) -> bytes:
    """What the checkpoints of the state hold."""
    head = await history.log.head()
    marks = await states.marks(head)
    assert marks
    rows = [row for mark in marks for row in await states.states(mark)]
    return b"\n".join(msgspec.json.encode(read_row(row).state) for row in rows)


def assert_nothing_lies_open_in(text: bytes) -> None:
    for secret in (SECRET, "hunter2", ALICE, "Alice"):
        assert secret.encode() not in text
        assert secret.encode().hex().encode() not in text
    # nor is there anything that a guess could be held against
    for secret in (SECRET, ALICE):
        assert sha256(secret.encode()).hexdigest()[:12].encode() not in text


async def test_what_is_for_few_lies_open_nowhere_and_the_log_verifies_before_and_after_an_erasure(
    event_log: EventLog, database: Database, broker: Broker, tmp_path: Path
) -> None:
    link, reader = await broker.publisher(), await broker.reader("audit")
    seals, states = Seals(database.app_url), StateStore(database.app_url)
    keys, publisher = LogKeys(tmp_path / "keys", log_origin("test", event_log.incarnation)), published(event_log, link)
    async with site(event_log, database, tmp_path / "site") as made, engine_of(database) as engine:
        projector, history = Projector(event_log, engine), History(event_log, states)
        sealer = Sealer(event_log, seals, keys, made.control.recorder, made.clock)
        log = SealedLog(database, event_log, seals, keys, sealer, made.control, tmp_path / "keys")
        key = keys.create().text()
        await made.control.announce_log_key(key, orphaned=False, actor="setup")

        async with projecting(projector), running(publisher):
            accepted = await made.create("web", user_data=SECRET)
            assert accepted.operation is not None
            assert (await made.over(accepted.operation)).outcome == "succeeded"
            await made.control.create_token("am", "operator", None, OPERATOR, ALICE)
            vm = made.vm("web")
            assert made.host("h1").hypervisor.host.seeds[vm.id].seed.user_data == SECRET
            await sealer.seal()
            before = await log.export()

            await made.control.erasing.erase("vm/web", OPERATOR)
            await made.control.erasing.erase("token/am", OPERATOR)
            await sealer.seal()
            after = await log.export()
            await Checkpoints(history, states, every=5).catch_up()
            assert await projector.reached(made.fleet.position, 20)
            await level(event_log, publisher)
            head = await event_log.head()
            sent = str(await read_all(reader, 1, head)).encode()

        for lines in (before, after):
            verdict = verify(lines, [read_key(key)])
            assert verdict.sound, verdict.findings
            assert_nothing_lies_open_in(b"".join(lines))
        live = await log.verdict(read_key(key))
        assert live.sound, live.findings
        assert b"sealed:1:vm/" in sent
        for text in (everything(database), await packed(states, history), sent):
            assert_nothing_lies_open_in(text)
        for holder in (made.fleet.find_token("am").holder, vm.spec.seed.user_data):  # type: ignore[union-attr]
            with pytest.raises(Rejected, match="cannot be read any more"):
                await made.control.keys.open(holder)
    await link.close()
    await reader.client.close()
    await states.close()
    await seals.close()


async def test_a_dump_of_the_database_opens_nothing_without_the_master_key(
    event_log: EventLog, database: Database, tmp_path: Path
) -> None:
    async with site(event_log, database, tmp_path) as made:
        await made.control.create_token("am", "operator", None, OPERATOR, ALICE)
        holder = made.fleet.find_token("am").holder
        thief = SubjectKeys(made.keyring, MasterKey(b"x" * 32), os.urandom)
        with pytest.raises(Rejected) as refusal:
            await thief.open(holder)
        assert refusal.value.code == "other-master-key"
        with psycopg.connect(database.owner_url) as connection:
            connection.execute("UPDATE vmorch.subject_keys SET master = %s", (MasterKey(b"x" * 32).name,))
        with pytest.raises(Rejected) as refusal:
            await thief.open(holder)
        assert refusal.value.code == "key-damaged"


async def test_a_key_opens_nothing_that_was_sealed_for_another_subject(
    event_log: EventLog, database: Database, tmp_path: Path
) -> None:
    async with site(event_log, database, tmp_path) as made:
        for name in ("am", "bm"):
            await made.control.create_token(name, "operator", None, OPERATOR, ALICE)
        am, bm = made.fleet.find_token("am"), made.fleet.find_token("bm")
        with pytest.raises(Rejected) as refusal:
            await made.control.keys.open(am.holder.replace(am.id, bm.id))
        assert refusal.value.code == "key-damaged"
        assert await made.control.keys.reveal([am.holder.replace(am.id, bm.id)]) != {}
        with psycopg.connect(database.owner_url) as connection:
            connection.execute(
                "UPDATE vmorch.subject_keys SET wrapped_key = (SELECT wrapped_key FROM vmorch.subject_keys"
                " WHERE subject = %s) WHERE subject = %s",
                (f"token/{am.id}", f"token/{bm.id}"),
            )
        with pytest.raises(Rejected) as refusal:
            await made.control.keys.open(bm.holder)
        assert refusal.value.code == "key-damaged"
