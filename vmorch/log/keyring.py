"""Where the keys of subjects are kept: beside the log, because the log forgets nothing.

Keys are wrapped before they come here and cannot be used here. A key that was erased leaves its place taken.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

from msgspec import Struct

from vmorch.core.ids import Stream
from vmorch.log.connections import Readers


class Kept(Struct, frozen=True):
    """A subject's key, wrapped by the master key of this name; None once it is erased."""

    wrapped: bytes | None
    master: str


class Keyring(Protocol):
    """The keys of all subjects of one log. Every method raises `LogUnavailable` while they are out of reach."""

    async def add(self, subject: Stream, wrapped: bytes, master: str) -> Kept:
        """Keep a key, unless the subject has or had one. Returns what is kept for it now."""

    async def find(self, subjects: Collection[Stream]) -> Mapping[Stream, Kept]:
        """What is kept for these subjects; those that never had a key are missing."""

    async def erase(self, subject: Stream) -> bool:
        """Destroy a subject's key for ever; False if there is none to destroy."""

    async def masters(self) -> Collection[str]:
        """The names of the master keys that wrap any key."""


class MemoryKeyring:
    """Keys that last as long as the object."""

    def __init__(self) -> None:
        self._kept: dict[Stream, Kept] = {}

    async def add(self, subject: Stream, wrapped: bytes, master: str) -> Kept:
        return self._kept.setdefault(subject, Kept(wrapped, master))

    async def find(self, subjects: Collection[Stream]) -> Mapping[Stream, Kept]:
        return {subject: self._kept[subject] for subject in subjects if subject in self._kept}

    async def erase(self, subject: Stream) -> bool:
        kept = self._kept.get(subject)
        if kept is None or kept.wrapped is None:
            return False
        self._kept[subject] = Kept(None, kept.master)
        return True

    async def masters(self) -> Collection[str]:
        return {kept.master for kept in self._kept.values() if kept.wrapped is not None}


class PostgresKeyring:
    """Keys in the log's database, in a table of their own."""

    def __init__(self, url: str) -> None:
        self._readers = Readers(url)

    async def close(self) -> None:
        """Disconnect."""
        await self._readers.close()

    async def add(self, subject: Stream, wrapped: bytes, master: str) -> Kept:
        await self._readers.fetch(
            "INSERT INTO vmorch.subject_keys (subject, wrapped_key, master) VALUES (%s, %s, %s)"
            " ON CONFLICT DO NOTHING RETURNING subject",
            (subject, wrapped, master),
        )
        return (await self.find([subject]))[subject]

    async def find(self, subjects: Collection[Stream]) -> Mapping[Stream, Kept]:
        rows = await self._readers.fetch(
            "SELECT subject, wrapped_key, master FROM vmorch.subject_keys WHERE subject = ANY(%s::text[])",
            (list(subjects),),
        )
        return {Stream(subject): Kept(None if key is None else bytes(key), master) for subject, key, master in rows}

    async def erase(self, subject: Stream) -> bool:
        [(done,)] = await self._readers.fetch("SELECT vmorch.erase_subject(%s)", (subject,))
        return bool(done)

    async def masters(self) -> Collection[str]:
        rows = await self._readers.fetch(
            "SELECT DISTINCT master FROM vmorch.subject_keys WHERE wrapped_key IS NOT NULL", ()
        )
        return {str(master) for (master,) in rows}
