"""What every keyring promises: in memory, and in Postgres."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from databases import Database

from vmorch.core.ids import Stream
from vmorch.log.keyring import Kept, Keyring, MemoryKeyring, PostgresKeyring

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

WEB, SHOP = Stream("vm/web"), Stream("vm/shop")
FIRST, SECOND = b"1" * 60, b"2" * 60


@pytest.fixture(params=["memory", "postgres"])
async def keyring(request: pytest.FixtureRequest) -> AsyncIterator[Keyring]:
    if request.param == "memory":
        yield MemoryKeyring()
        return
    database: Database = request.getfixturevalue("database")
    opened = PostgresKeyring(database.app_url)
    yield opened
    await opened.close()


async def test_a_key_is_found_as_it_was_kept(keyring: Keyring) -> None:
    assert await keyring.add(WEB, FIRST, "m1") == Kept(FIRST, "m1")
    assert await keyring.find([WEB, SHOP]) == {WEB: Kept(FIRST, "m1")}
    assert await keyring.find([]) == {}


async def test_a_subject_keeps_the_first_key_that_it_got(keyring: Keyring) -> None:
    await keyring.add(WEB, FIRST, "m1")
    assert await keyring.add(WEB, SECOND, "m2") == Kept(FIRST, "m1")
    assert await keyring.find([WEB]) == {WEB: Kept(FIRST, "m1")}


async def test_an_erased_subject_never_gets_another_key(keyring: Keyring) -> None:
    await keyring.add(WEB, FIRST, "m1")
    assert await keyring.erase(WEB)
    assert await keyring.find([WEB]) == {WEB: Kept(None, "m1")}
    assert await keyring.add(WEB, SECOND, "m2") == Kept(None, "m1")


async def test_erasing_says_whether_there_was_a_key_to_destroy(keyring: Keyring) -> None:
    await keyring.add(WEB, FIRST, "m1")
    await keyring.add(SHOP, SECOND, "m1")
    assert [await keyring.erase(each) for each in (WEB, WEB, Stream("vm/never"))] == [True, False, False]
    assert (await keyring.find([SHOP]))[SHOP].wrapped == SECOND


async def test_master_keys_are_named_as_long_as_they_wrap_a_key(keyring: Keyring) -> None:
    assert set(await keyring.masters()) == set()
    await keyring.add(WEB, FIRST, "m1")
    await keyring.add(SHOP, SECOND, "m2")
    assert set(await keyring.masters()) == {"m1", "m2"}
    await keyring.erase(SHOP)
    assert set(await keyring.masters()) == {"m1"}


async def test_the_table_tells_when_a_key_went_and_holds_no_half_erased_one(database: Database) -> None:
    keyring = PostgresKeyring(database.app_url)
    await keyring.add(WEB, FIRST, "m1")
    await keyring.erase(WEB)
    await keyring.close()
    with psycopg.connect(database.owner_url) as connection:
        row = connection.execute("SELECT wrapped_key, erased_at >= created_at FROM vmorch.subject_keys").fetchone()
        assert row == (None, True)
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute("UPDATE vmorch.subject_keys SET erased_at = NULL")
