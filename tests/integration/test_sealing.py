"""The sealer on real Postgres: everything is sealed once, by whichever server, and nothing that is not what it was."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from databases import Database
from logbook import until
from sealing import SealedLog, found, kinds, sealed_log, server_of

from vmorch.audit.export import unshown
from vmorch.audit.leaves import sealed_hash
from vmorch.audit.merkle import consistency, extends, includes, inclusion
from vmorch.audit.notes import read_checkpoint, read_note
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.engine.exports import proof

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]


@pytest.fixture
async def log(database: Database) -> AsyncIterator[SealedLog]:
    async with sealed_log(database) as server:
        yield server


async def sizes(log: SealedLog) -> list[int]:
    return [seal.size for seal in await log.seals.between(Position(0), Position(1 << 40))]


async def test_what_was_appended_is_sealed_in_seals_of_a_thousand_events(log: SealedLog) -> None:
    await log.grow(2599, 5)
    assert await sizes(log) == [1, 1001, 2001, 2600, 2605]
    verdict = await log.verdict()
    assert verdict.sound, verdict.findings
    assert (verdict.size, verdict.events, verdict.unsealed) == (2605, 2605, 0)


async def test_the_database_hashes_events_as_the_verifier_does(log: SealedLog) -> None:
    odd = ["vm/b\u00fcro", "vm/\u65e5\u672c", "vm/" + "x" * 200]
    bodies = [b'{"a":"\xc3\xa9\\u00e9"}', b' {"a" : 1.0e3}', b"[]", b'"' + b"y" * 5000 + b'"', b'{"a":{}}']
    for number, stream in enumerate(odd):
        events = tuple(
            NewEvent(kind=f"odd-\u00fc{number}", schema=number + 1, data=body, meta=b'{"actor":"\xc3\xa4"}')
            for body in bodies
        )
        await log.log.append(Append(streams=(StreamAppend(stream=Stream(stream), expected=0, events=events),)))
    records = await log.log.read(Position(0))
    hashed = await log.seals.leaf_hashes(Position(0), Position(len(records)))
    assert hashed == (tuple(sealed_hash(each) for each in records), True)


async def test_nothing_new_makes_no_seal(log: SealedLog) -> None:
    await log.grow(3, 0, 0)
    assert await sizes(log) == [1, 4]


async def test_a_server_that_starts_goes_on_where_another_stopped(log: SealedLog, database: Database) -> None:
    await log.grow(300)
    with tempfile.TemporaryDirectory() as directory:
        async with server_of(database, Path(directory)) as other:
            other.streams = log.streams
            await other.append(300)
            with pytest.raises(Rejected, match="does not have") as refused:
                await other.sealer.seal()
            assert refused.value.code == "other-log-key"
            log.give_keys_to(Path(directory))
            await other.sealer.seal()
    assert await sizes(log) == [1, 301, 601]
    assert (await log.verdict()).sound


async def test_two_servers_that_seal_at_once_make_one_tree(log: SealedLog, database: Database) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(server_of(database, log.directory)) for _ in range(3)]
        for _ in range(5):
            await log.append(700)
            await asyncio.gather(*(each.sealer.seal() for each in servers))
        await log.sealer.seal()
    verdict = await log.verdict()
    assert verdict.sound, verdict.findings
    assert verdict.until == 3501


async def test_any_part_of_the_log_is_proven(log: SealedLog) -> None:
    await log.grow(700, 900, 10)
    for after, until_ in ((0, 1), (255, 257), (1, 1611), (1000, 1400), (1611, 1611), (5, 5)):
        verdict = await log.verdict(after=after, until=until_)
        assert verdict.sound, verdict.findings
        assert verdict.events == until_ - after


async def test_proofs_of_events_and_of_growth_hold(log: SealedLog) -> None:
    await log.grow(255, 1, 1, 600, 300)
    roots = {seal.size: read_checkpoint(read_note(seal.note)).root for seal in
             await log.seals.between(Position(0), Position(2000))}  # fmt: skip
    leaves = [leaf for seal in await log.seals.between(Position(0), Position(2000)) for leaf in seal.leaves]
    for size, root in roots.items():
        for index in {0, size // 2, size - 1}:
            path = unshown(await proof(log.seals, inclusion(index, size)))
            assert includes(index, size, leaves[index], path, root)
        for later in roots:
            if size <= later:
                path = unshown(await proof(log.seals, consistency(size, later)))
                assert extends(size, root, later, roots[later], path)


async def test_a_part_that_is_not_sealed_yet_is_not_exported(log: SealedLog) -> None:
    with pytest.raises(Rejected, match="sealed up to event 0"):
        await log.export()
    await log.grow(3)
    await log.append(2)
    with pytest.raises(Rejected, match="sealed up to event 4"):
        await log.export(until=5)
    assert (await log.verdict()).unsealed == 2


async def test_keys_change_and_the_first_one_still_vouches_for_everything(log: SealedLog) -> None:
    await log.grow(4)
    second = await log.announce()
    await log.append(3)
    third = await log.announce()
    await log.grow(3)
    assert await sizes(log) == [1, 5, 6, 10, 13]
    verdict = await log.verdict()
    assert verdict.sound, verdict.findings
    assert verdict.signed_by == third.text()
    for after, until_ in ((10, None), (10, 10), (9, 10), (6, 6), (6, 8)):
        part = await log.verdict(after=after, until=until_)
        assert part.sound, part.findings
    assert (await log.verdict(second, after=4)).sound
    assert not (await log.verdict(second, until=5)).sound


async def test_a_lost_key_is_replaced_and_the_verifier_must_be_told(log: SealedLog) -> None:
    await log.grow(4)
    first = await log.key()
    log.lose_keys()
    await log.append(2)
    with pytest.raises(Rejected, match="does not have"):
        await log.sealer.seal()
    second = await log.announce(orphaned=True)
    await log.grow(1)
    assert [what for what, _, _ in found(await log.verdict(first))] == ["unsigned"] * 2
    assert (await log.verdict(first, second)).sound


async def test_a_log_that_is_not_what_was_sealed_is_not_sealed_on(log: SealedLog, database: Database) -> None:
    await log.grow(20)
    log.attack("UPDATE vmorch.events SET data = '{}' WHERE position = 21")
    await log.append(1)
    with pytest.raises(Rejected, match="event 21 is not what was sealed") as refused:
        await log.sealer.seal()
    assert refused.value.code == "log-tampered"
    # neither does a server that was not there
    async with server_of(database, log.directory) as other:
        with pytest.raises(Rejected, match="event 21 is not what was sealed"):
            await other.sealer.seal()
    assert await sizes(log) == [1, 21]


async def test_a_log_that_was_cut_is_not_sealed_on(log: SealedLog) -> None:
    await log.grow(20)
    log.attack("DELETE FROM vmorch.events WHERE position > 15", "UPDATE vmorch.log_head SET position = 15")
    with pytest.raises(Rejected, match="event 21 is not in the log"):
        await log.sealer.seal()
    log.streams = 100
    await log.append(9)
    with pytest.raises(Rejected, match="event 16 is not what was sealed"):
        await log.sealer.seal()
    assert await sizes(log) == [1, 21]


async def test_a_refusal_is_recorded_once_and_so_is_its_end(log: SealedLog) -> None:
    await log.grow(3)
    world = log.handler.recorder.world
    following = asyncio.create_task(world.follow())
    running = asyncio.create_task(log.sealer.run())
    original = "(SELECT data FROM kept)"
    log.attack(
        "CREATE TABLE kept AS SELECT data FROM vmorch.events WHERE position = 4",
        "UPDATE vmorch.events SET data = '{}' WHERE position = 4",
    )
    await log.append(1)
    try:
        await until(lambda: world.fleet.cluster.unsealed is not None)
        told = world.fleet.cluster.unsealed
        assert told is not None
        assert (told.code, told.detail) == ("log-tampered", "event 4 is not what was sealed")
        stopped = await log.log.head()
        log.attack(f"UPDATE vmorch.events SET data = {original} WHERE position = 4")
        await until(lambda: world.fleet.cluster.unsealed is None)
        assert await log.log.head() == stopped + 1, "said once, and taken back once"
    finally:
        for task in (running, following):
            task.cancel()
        await asyncio.gather(running, following, return_exceptions=True)
    await log.sealer.seal()
    assert (await log.verdict()).sound


async def test_an_export_is_made_of_cloud_events_in_the_order_of_the_log(log: SealedLog) -> None:
    await log.grow(2)
    assert kinds(await log.export()) == [
        "vmorch.audit.header",
        "cluster.log-key-announced",
        "vmorch.audit.checkpoint",
        "vm-noted",
        "vm-noted",
        "vmorch.audit.checkpoint",
        "vmorch.audit.end",
    ]
