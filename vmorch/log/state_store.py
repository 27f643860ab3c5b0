"""Where checkpoints of the state are kept, and the few questions that the past asks of the log beside its own.

A checkpoint is disposable: whoever finds none folds from the beginning. States are bytes here; nothing is interpreted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import LiteralString

import msgspec
import psycopg
from msgspec import Struct

from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded
from vmorch.core.states import FINGERPRINT, StateRow
from vmorch.log.archives import Archives
from vmorch.log.connections import Readers, connect, in_time
from vmorch.log.errors import LogUnavailable
from vmorch.log.store import marked

_WINDOW: LiteralString = (
    "SELECT position, stream, version, kind, schema, data, meta, recorded_at FROM vmorch.events"
    " WHERE position > %s AND position <= %s AND (kind = ANY(%s) OR kind = ANY(%s)"
    "  AND (data->>'name' = %s OR starts_with(split_part(stream, '/', 2), %s))) ORDER BY position"
)
_LAST = "\U0010ffff"
"""Sorts after every name."""


class Mark(Struct, frozen=True):
    """A checkpoint: where it stands, what the fleet knew besides its things, and how many of them there were."""

    position: Position
    frame: bytes
    things: int


class StateStore:
    """The checkpoints of one database that this version of the code can read. Every method raises LogUnavailable."""

    def __init__(self, url: str, fingerprint: str = FINGERPRINT, archives: Path | None = None) -> None:
        self._url = url
        self._fingerprint = fingerprint
        self._readers = Readers(url)
        self._archives = Archives(url, archives)

    async def close(self) -> None:
        await self._archives.close()
        await self._readers.close()

    async def newest(self, until: Position) -> Mark | None:
        """The last checkpoint at or before a position."""
        rows = await self._readers.fetch(
            "SELECT position, frame, things FROM vmorch.state_checkpoints"
            " WHERE fingerprint = %s AND position <= %s ORDER BY position DESC LIMIT 1",
            (self._fingerprint, until),
        )
        return Mark(*rows[0]) if rows else None

    async def marks(self, until: Position) -> list[Position]:
        """Where checkpoints stand up to a position, in order."""
        rows = await self._readers.fetch(
            "SELECT position FROM vmorch.state_checkpoints WHERE fingerprint = %s AND position <= %s ORDER BY position",
            (self._fingerprint, until),
        )
        return [Position(position) for (position,) in rows]

    async def states(self, at: Position, streams: Sequence[Stream] | None = None) -> list[StateRow]:
        """The states in the checkpoint at a position, all or those of some streams, in the order they were written."""
        query = (
            "SELECT stream, name, state, over FROM vmorch.checkpointed_states"
            " WHERE position = %s AND fingerprint = %s AND (%s::text[] IS NULL OR stream = ANY(%s::text[]))"
            " ORDER BY place"
        )
        wanted = None if streams is None else list(streams)
        rows = await self._readers.fetch(query, (at, self._fingerprint, wanted, wanted))
        return [StateRow(*row) for row in rows]

    async def standing(self, at: Position) -> list[StateRow]:
        """All states in the checkpoint at a position without what is over, in the order they were written."""
        rows = await self._readers.fetch(
            "SELECT stream, name, state FROM vmorch.checkpointed_states"
            " WHERE position = %s AND fingerprint = %s ORDER BY place",
            (at, self._fingerprint),
        )
        return [StateRow(*row) for row in rows]

    async def of_kind(self, at: Position, kind: str) -> list[StateRow]:
        """The states of one kind of thing in a checkpoint."""
        return await self._between(at, f"{kind}/", f"{kind}/{_LAST}")

    async def called(self, at: Position, kind: str, ref: str) -> list[StateRow]:
        """The states in a checkpoint whose thing has this name, or an id that begins so."""
        rows = await self._readers.fetch(
            "SELECT stream, name, state, over FROM vmorch.checkpointed_states"
            " WHERE position = %s AND fingerprint = %s AND name = %s AND name <> '' AND stream >= %s AND stream < %s",
            (at, self._fingerprint, ref, f"{kind}/", f"{kind}/{_LAST}"),
        )
        named = [StateRow(*row) for row in rows]
        known = {row.stream for row in named}
        begins = await self._between(at, f"{kind}/{ref}", f"{kind}/{ref}{_LAST}")
        return [*named, *(row for row in begins if row.stream not in known)]

    async def _between(self, at: Position, low: str, high: str) -> list[StateRow]:
        rows = await self._readers.fetch(
            "SELECT stream, name, state, over FROM vmorch.checkpointed_states"
            " WHERE position = %s AND fingerprint = %s AND stream >= %s AND stream < %s ORDER BY place",
            (at, self._fingerprint, low, high),
        )
        return [StateRow(*row) for row in rows]

    async def window(
        self, after: Position, until: Position, kinds: Sequence[str], naming: Sequence[str], ref: str
    ) -> list[Recorded]:
        """The events between two positions of these kinds, and of the `naming` kinds those that give the name `ref`
        or whose stream's id begins with it."""
        params = (after, until, list(kinds), list(naming), ref, ref)
        while True:
            changes, events = await marked(self._readers, _WINDOW, params, "position")
            if not changes:
                return events
            then, old = await self._archives.between(after, until)
            if then == changes:
                found = [each for each in old if each.kind in kinds or (each.kind in naming and _names(each, ref))]
                return sorted([*found, *events], key=lambda each: each.position)

    async def write(self, at: Position, frame: bytes, rows: Sequence[StateRow]) -> bool:
        """Keep a checkpoint, whole or not at all; False if there was one already."""
        return await in_time(self._write(at, frame, rows))

    async def _write(self, at: Position, frame: bytes, rows: Sequence[StateRow]) -> bool:
        connection = await connect(self._url)
        try:
            async with connection.transaction():
                written = await connection.execute(
                    "INSERT INTO vmorch.state_checkpoints (fingerprint, position, frame, things)"
                    " VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (self._fingerprint, at, frame, len(rows)),
                )
                if written.rowcount == 0:
                    return False
                copy = (
                    "COPY vmorch.checkpointed_states (fingerprint, position, place, stream, name, state, over)"
                    " FROM STDIN (FORMAT BINARY)"
                )
                async with connection.cursor() as cursor, cursor.copy(copy) as sink:
                    sink.set_types(["text", "int8", "int4", "text", "text", "bytea", "bytea"])
                    for place, row in enumerate(rows):
                        values = (self._fingerprint, at, place, row.stream, row.name, row.state, row.over)
                        await sink.write_row(values)
            return True
        except psycopg.OperationalError as error:
            raise LogUnavailable(str(error).strip()) from error
        finally:
            await connection.close()

    async def drop(self, at: Position) -> None:
        """Forget a checkpoint. There may be none."""
        await self._readers.fetch(
            "DELETE FROM vmorch.state_checkpoints WHERE fingerprint = %s AND position = %s RETURNING position",
            (self._fingerprint, at),
        )


def _names(record: Recorded, ref: str) -> bool:
    """What the condition on naming events is in SQL."""
    return _read_name(record.data).name == ref or "".join(record.stream.split("/")[1:2]).startswith(ref)


class _Naming(Struct, frozen=True):
    name: object = None


_read_name = msgspec.json.Decoder(_Naming).decode
