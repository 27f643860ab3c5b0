"""Eight attacks on the log by the owner of its database, each found offline, in an export made afterwards.

The verifier has the export, the first public key and, where it says so, what a witness kept.
"""

from collections.abc import AsyncIterator

import psycopg
import pytest
from databases import Database
from sealing import SealedLog, found, sealed_log, server_of

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

COLUMNS = "position, stream, version, kind, schema, data, meta, recorded_at"


@pytest.fixture
async def log(database: Database) -> AsyncIterator[SealedLog]:
    """61 events, sealed at 1, 21, 41 and 61."""
    async with sealed_log(database) as server:
        await server.grow(0, 20, 20, 20)
        assert (await server.verdict()).sound
        yield server


@pytest.mark.parametrize(
    "change",
    [
        "stream = 'vm/elsewhere'",
        "version = version + 1",
        "kind = 'vm-deleted'",
        "schema = 2",
        """data = '{"note":"forged"}'""",
        "data = (data::text || ' ')::json",
        """meta = '{"actor":"somebody-else"}'""",
        "recorded_at = recorded_at - interval '1 microsecond'",
    ],
)
async def test_an_edited_event_is_named_whichever_column_was_edited(log: SealedLog, change: str) -> None:
    log.attack(f"UPDATE vmorch.events SET {change} WHERE position = 30")
    assert found(await log.verdict()) == [("changed", 30, 30)]


async def test_an_edited_event_is_found_when_its_sealed_hash_is_edited_too(log: SealedLog) -> None:
    edit_with_its_hash(log, 30)
    assert found(await log.verdict()) == [("not-sealed", 22, 41)]


async def test_an_edited_event_is_found_in_an_export_of_a_part(log: SealedLog) -> None:
    log.attack("""UPDATE vmorch.events SET data = '{"note":"forged"}' WHERE position = 30""")
    assert found(await log.verdict(after=25, until=35)) == [("changed", 30, 30)]
    assert (await log.verdict(after=30, until=35)).sound, "the others are what they were"


async def test_deleted_events_are_named(log: SealedLog) -> None:
    log.attack("DELETE FROM vmorch.events WHERE position IN (30, 50, 51)")
    assert found(await log.verdict()) == [("missing", 30, 30), ("missing", 50, 51)]


async def test_a_deletion_is_found_when_the_gap_is_closed(log: SealedLog) -> None:
    log.attack(
        "DELETE FROM vmorch.events WHERE position = 30",
        "UPDATE vmorch.events SET position = position - 1 + 1000 WHERE position > 30",
        "UPDATE vmorch.events SET position = position - 1000 WHERE position > 1000",
        "UPDATE vmorch.log_head SET position = 60",
    )
    assert found(await log.verdict()) == [("changed", at, at) for at in range(30, 61)] + [("missing", 61, 61)]


async def test_an_inserted_event_is_found_where_it_was_put(log: SealedLog) -> None:
    log.attack(
        "UPDATE vmorch.events SET position = position + 1001 WHERE position >= 30",
        "UPDATE vmorch.events SET position = position - 1000 WHERE position > 1000",
        f"INSERT INTO vmorch.events ({COLUMNS}) SELECT 30, 'vm/planted', 1, kind, schema, data, meta, recorded_at"
        " FROM vmorch.events WHERE position = 29",
        "UPDATE vmorch.log_head SET position = 62",
    )
    assert found(await log.verdict()) == [("changed", at, at) for at in range(30, 62)]


async def test_a_second_event_at_one_position_is_found(log: SealedLog) -> None:
    log.attack(
        "ALTER TABLE vmorch.events DROP CONSTRAINT events_pkey CASCADE",
        f"INSERT INTO vmorch.events ({COLUMNS}) SELECT 30, 'vm/planted', 1, kind, schema, data, meta, recorded_at"
        " FROM vmorch.events WHERE position = 29",
    )
    assert ("out-of-place", 30, 31) in found(await log.verdict())


async def test_two_swapped_events_are_both_named(log: SealedLog) -> None:
    log.attack(
        "UPDATE vmorch.events SET position = 1030 WHERE position = 30",
        "UPDATE vmorch.events SET position = 30 WHERE position = 50",
        "UPDATE vmorch.events SET position = 50 WHERE position = 1030",
    )
    assert found(await log.verdict()) == [("changed", 30, 30), ("changed", 50, 50)]


async def test_a_tail_that_was_cut_off_is_named(log: SealedLog) -> None:
    cut(log, 45)
    assert found(await log.verdict()) == [("missing", 46, 61)]


async def test_a_tail_that_was_cut_off_with_its_seals_is_found_by_a_witness(log: SealedLog) -> None:
    seen = await log.checkpoint()
    cut(log, 41)
    forget_seals(log, 41)
    assert (await log.verdict()).sound, "it is what the log once was"
    assert found(await log.verdict(witnessed=[seen])) == [("shorter", 42, 61)]


async def test_a_log_sealed_anew_without_the_key_is_not_signed_by_it(log: SealedLog, database: Database) -> None:
    thief = await seal_anew(log, database, own_key=True)
    assert found(await log.verdict()) == [("unsigned", 61, 61)]
    assert thief != await log.key()


async def test_a_log_sealed_anew_with_the_key_is_found_by_a_witness(log: SealedLog, database: Database) -> None:
    before = await log.checkpoint()
    await seal_anew(log, database)
    assert (await log.verdict()).sound, "nothing but a witness can know"
    assert found(await log.verdict(witnessed=[before])) == [("forked", 42, 61)]


async def test_a_fork_is_found_by_a_witness_of_the_other_branch(log: SealedLog, database: Database) -> None:
    seen = await log.checkpoint()
    cut(log, 41)
    forget_seals(log, 41)
    async with server_of(database, log.directory) as forger:
        forger.streams = 1000
        await forger.grow(30, 30)
    assert (await log.verdict()).sound
    assert found(await log.verdict(witnessed=[seen])) == [("forked", 42, 61)]


async def test_a_shorter_log_signed_anew_is_found_by_a_witness(log: SealedLog, database: Database) -> None:
    seen = await log.checkpoint()
    cut(log, 41)
    forget_seals(log, 41)
    async with server_of(database, log.directory) as forger:
        forger.streams = 1000
        await forger.grow(7)
    assert (await log.verdict()).sound
    assert found(await log.verdict(witnessed=[seen])) == [("shorter", 49, 61)]


def edit_with_its_hash(log: SealedLog, position: int) -> None:
    """Change an event, and the hash that the seal has of it to match."""
    log.attack(f"""UPDATE vmorch.events SET data = '{{"note":"forged"}}' WHERE position = {position}""")
    with psycopg.connect(log.database.owner_url) as connection:
        # the framing that is documented, in SQL
        connection.execute(
            """
            UPDATE vmorch.seals SET leaves = overlay(leaves PLACING (
              SELECT sha256('\\x00'::bytea || 'vmorch.event.1'::bytea || int8send(position) || int8send(version)
                     || int4send(schema) || int8send((extract(epoch FROM recorded_at) * 1000000)::bigint)
                     || int4send(octet_length(stream)) || convert_to(stream, 'UTF8')
                     || int4send(octet_length(kind)) || convert_to(kind, 'UTF8')
                     || int4send(octet_length(meta::text)) || convert_to(meta::text, 'UTF8')
                     || sha256(convert_to(data::text, 'UTF8')))
                FROM vmorch.events WHERE position = %(position)s)
              FROM ((%(position)s - after - 1) * 32 + 1)::int)
             WHERE after < %(position)s AND size >= %(position)s
            """,
            {"position": position},
        )


def cut(log: SealedLog, size: int) -> None:
    """Leave the first events of the log."""
    log.attack(
        f"DELETE FROM vmorch.events WHERE position > {size}",
        "DELETE FROM vmorch.streams AS s WHERE NOT EXISTS (SELECT FROM vmorch.events AS e WHERE e.stream = s.stream)",
        "UPDATE vmorch.streams AS s SET version = (SELECT max(version) FROM vmorch.events AS e"
        " WHERE e.stream = s.stream)",
        f"UPDATE vmorch.log_head SET position = {size}",
    )


def forget_seals(log: SealedLog, size: int) -> None:
    """Leave the seals of the first events."""
    log.attack(f"DELETE FROM vmorch.seals WHERE size > {size}", "DELETE FROM vmorch.seal_nodes")


async def seal_anew(log: SealedLog, database: Database, *, own_key: bool = False) -> object:
    """Change event 50 and seal again from 41 on, with a key of one's own or the log's. Answers whose."""
    log.attack("""UPDATE vmorch.events SET data = '{"note":"forged"}' WHERE position = 50""")
    forget_seals(log, 41)
    async with server_of(database, log.directory) as forger:
        if own_key:
            thief = forger.keys.create()
            forger.sealer._keys = Impostor(forger.keys, thief.text())  # type: ignore[assignment]
            await forger.sealer.seal()
            return thief
        await forger.sealer.seal()
        return await log.key()


class Impostor:
    """Signs with a key of the attacker, whichever one the log asks for."""

    def __init__(self, keys: object, key: str) -> None:
        self._keys, self._key = keys, key
        self.origin = keys.origin  # type: ignore[attr-defined]

    def signer(self, announced: str) -> object:
        return self._keys.signer(self._key)  # type: ignore[attr-defined]
