"""A log that is sealed as the server does it, its exports, and the attacker who owns the database."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from databases import Database
from logbook import an_append, on

from vmorch.audit.export import read_line
from vmorch.audit.notes import Checkpoint, VerifierKey, read_checkpoint, read_key, read_note
from vmorch.audit.verification import Verdict, verify
from vmorch.bus.private import write_private
from vmorch.core.ids import Position
from vmorch.core.records import Append
from vmorch.engine.exports import prepare_export
from vmorch.engine.handle import Handler
from vmorch.engine.logkeys import LogKeys, log_origin
from vmorch.engine.masterkey import MasterKey
from vmorch.engine.recorder import Recorder
from vmorch.engine.sealer import Sealer
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.engine.world import World
from vmorch.log.keyring import MemoryKeyring
from vmorch.log.seals import Seals
from vmorch.log.store import EventLog
from vmorch.system import SystemClock, new_id, secrets_of


@dataclass
class SealedLog:
    """One server's view of a log with its seals."""

    database: Database
    log: EventLog
    seals: Seals
    keys: LogKeys
    sealer: Sealer
    handler: Handler
    directory: Path
    streams: int = 0

    async def append(self, events: int = 1) -> None:
        """As many events, three to a stream."""
        appends: list[Append] = []
        while events:
            size = min(events, 3)
            self.streams += 1
            appends.append(an_append(on(f"vm/{self.streams}", 0, size, note=f"of {self.streams}")))
            events -= size
        for each in appends:
            await self.log.append(each)

    async def grow(self, *batches: int) -> None:
        """Append batches of events and seal each of them."""
        for events in batches:
            await self.append(events)
            await self.sealer.seal()

    async def announce(self, *, orphaned: bool = False) -> VerifierKey:
        """A new key from now on."""
        key = self.keys.create()
        await self.handler.recorder.world.load()
        await self.handler.announce_log_key(key.text(), orphaned=orphaned, actor="setup")
        return key

    async def key(self) -> VerifierKey:
        """The first key that the log announced."""
        [text] = [each.data for each in await self.log.read(Position(0), 1)]
        return read_key(text.decode().split('"')[3])

    async def export(self, after: int = 0, until: int | None = None) -> list[bytes]:
        """The lines of an export, as the log is now."""
        bounds = Position(after), None if until is None else Position(until)
        export = await prepare_export(self.log, self.seals, self.keys.origin, *bounds)
        return [line for batch in [one async for one in export.lines()] for line in batch.splitlines(keepends=True)]

    async def verdict(
        self, *keys: VerifierKey, witnessed: Iterable[Checkpoint] = (), after: int = 0, until: int | None = None
    ) -> Verdict:
        """What the offline verifier says of an export made now."""
        part = bool(after) or until is not None
        return verify(await self.export(after, until), keys or [await self.key()], witnessed, part=part)

    async def checkpoint(self) -> Checkpoint:
        """The newest checkpoint, as a witness would take it."""
        last = await self.seals.last()
        assert last is not None
        return read_checkpoint(read_note(last.note))

    def give_keys_to(self, other: Path) -> None:
        """Copy the key files to another server."""
        for path in self.directory.iterdir():
            write_private(other / path.name, path.read_bytes())

    def lose_keys(self) -> None:
        """Delete the key files."""
        for path in self.directory.iterdir():
            path.unlink()

    def attack(self, *statements: str) -> None:
        """What the owner of the database does, who can switch every guard off."""
        with psycopg.connect(self.database.owner_url) as connection:
            connection.execute("SET session_replication_role = replica")
            for statement in statements:
                connection.execute(statement)


@asynccontextmanager
async def server_of(
    database: Database, directory: Path, archives: Path | None = None
) -> AsyncIterator[SealedLog]:
    """A server's part in a log, with the keys in a directory and the archives in another."""
    log, seals = await EventLog.open(database.app_url, archives), Seals(database.app_url)
    world = World(log)
    await world.load()
    recorder = Recorder(world, SystemClock())
    keys = LogKeys(directory, log_origin("test", log.incarnation))
    sealer = Sealer(log, seals, keys, recorder, SystemClock())
    subject_keys = SubjectKeys(MemoryKeyring(), MasterKey(bytes(32)), os.urandom)
    handler = Handler(recorder, new_id, secrets_of(b"test"), subject_keys)
    yield SealedLog(database, log, seals, keys, sealer, handler, directory)
    await seals.close()
    await log.close()


@asynccontextmanager
async def sealed_log(database: Database, archives: Path | None = None) -> AsyncIterator[SealedLog]:
    """A log whose first event announces its key; nothing is sealed yet."""
    with tempfile.TemporaryDirectory(prefix="vmorch-seals-") as directory:
        async with server_of(database, Path(directory), archives) as server:
            await server.announce()
            yield server


def found(verdict: Verdict) -> list[tuple[str, int, int]]:
    return [(each.what, each.first, each.last) for each in verdict.findings]


def kinds(lines: Iterable[bytes]) -> list[str]:
    return [read_line(line).type for line in lines]
