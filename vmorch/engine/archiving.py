"""Old partitions become files, and files partitions again.

A partition leaves the log only after its file was read back, proven by the log's own keys, and flushed; whoever is
killed before leaves at most a file that nobody refers to, and the next run writes it anew. Must not keep anything in
memory but a block, and must not believe a file.
"""

import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from vmorch.audit.blocks import EVENTS, BadBlock, Block, event_lines, file_name, pack, unpack
from vmorch.audit.export import BadExport, event_hash, position_of
from vmorch.audit.leaves import sealed_hash
from vmorch.audit.notes import read_key
from vmorch.audit.verification import Verifier
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position
from vmorch.engine.exports import prepare_export
from vmorch.engine.sealer import announcements
from vmorch.log.archives import read_block
from vmorch.log.interface import Log
from vmorch.log.partitions import Archive, Partition, Partitions
from vmorch.log.seals import Seals

Progress = Callable[[str, int], None]
"""Told what is being done, and up to which position."""


class Written(Struct, frozen=True):
    """What was written to a file. `parts` are header, blocks and end."""

    size: int
    sha256: bytes
    parts: tuple[Block, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The parts that hold events."""
        return self.parts[1:-1]


class Archiving:
    """Archives one log to one directory."""

    def __init__(
        self, log: Log, seals: Seals, partitions: Partitions, origin: str, directory: Path, progress: Progress
    ) -> None:
        self._log = log
        self._seals = seals
        self._partitions = partitions
        self._origin = origin
        self._directory = directory
        self._progress = progress

    async def candidates(self, until: Position) -> list[Partition]:
        """The partitions that end at a position or before, if all of them can be archived.

        Raises Rejected `partition-in-use`, `not-sealed`, LogUnavailable.
        """
        found = await self._partitions.present(until)
        head, seal = await self._log.head(), await self._seals.last()
        for each in found:
            which = f"the events from {each.first} to {each.last}"
            if each.last >= head:
                raise Rejected("partition-in-use", f"{which} are the newest", hint=f"--before @{each.first}")
            if seal is None or each.last > seal.size:
                raise Rejected("not-sealed", f"{which} are not all sealed", hint="vmorch audit status")
        return found

    async def archive(self, partition: Partition) -> Path:
        """Write a partition's file, prove it, and take the partition out of the log.

        Raises Rejected `log-tampered`, `partition-in-use`, `not-sealed`; OSError, LogUnavailable.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = file_name(partition.first, partition.last)
        draft, path = self._directory / f"{name}.part", self._directory / name
        try:
            written = await self._write(partition, draft)
            await self._prove(partition, draft, written)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _flush(self._directory)
        self._progress("recording", partition.last)
        await self._partitions.archive(partition, name, written.size, written.sha256, written.blocks)
        self._progress("archived", partition.last)
        return path

    async def restore(self, archive: Archive, directory: Path) -> None:
        """Put the events of an archive that lies in a directory back into the log. Its file stays.

        Raises Rejected `log-tampered`; ArchiveMissing, ArchiveDamaged, LogUnavailable.
        """
        blocks = await self._partitions.blocks(archive)
        async with self._partitions.restoring(archive) as copy:
            for block in blocks:
                records = read_block(directory, block)
                hashes = [sealed_hash(each) for each in records]
                if hashes != await self._sealed(Position(block.first - 1), block.last):
                    raise _changed(block.first, block.last)
                await copy.write(records)
                self._progress("restoring", block.last)
        self._progress("restored", archive.last)

    async def _write(self, partition: Partition, draft: Path) -> Written:
        export = await prepare_export(
            self._log,
            self._seals,
            self._origin,
            Position(partition.first - 1),
            partition.last,
            archive=True,
        )
        whole, place = sha256(), 0
        parts: list[Block] = []
        last: int = partition.first - 1
        with _private(draft) as file:
            async for lines in export.lines():
                packed = pack(lines)
                file.write(packed)
                whole.update(packed)
                first, last = (last + 1, min(last + EVENTS, partition.last)) if parts else (last + 1, last)
                parts.append(
                    Block(
                        file=draft.name,
                        first=Position(first),
                        last=Position(last),
                        place=place,
                        size=len(packed),
                        sha256=sha256(packed).digest(),
                    )
                )
                place += len(packed)
                self._progress("writing", last)
            file.flush()
            os.fsync(file.fileno())
        return Written(place, whole.digest(), tuple(parts))

    async def _prove(self, partition: Partition, draft: Path, written: Written) -> None:
        """Read a file back, as an auditor would, and hold each event against the hash that was sealed for it."""
        announced = await announcements(self._log)
        # the first key vouches for all later ones but those whose predecessor was lost
        keys = [read_key(each.key) for number, each in enumerate(announced) if each.orphaned or not number]
        verifier = Verifier(keys, part=True)
        try:
            for part, packed in _parts(draft, written):
                lines = unpack(part, packed)
                for line in lines.splitlines(keepends=True):
                    verifier.feed(line)
                hashes = {position_of(line): event_hash(line) for line in event_lines(lines)}
                sealed = await self._sealed(Position(part.first - 1), part.last)
                if hashes != dict(enumerate(sealed, start=part.first)):
                    raise _changed(part.first, part.last)
                self._progress("proving", part.last)
            verdict = verifier.verdict()
        except (BadBlock, BadExport) as error:
            raise Rejected("archive-damaged", f"{draft} does not hold what was written: {error}") from error
        if not verdict.sound:
            raise Rejected("log-tampered", verdict.findings[0].detail, hint="vmorch audit verify")

    async def _sealed(self, after: Position, until: Position) -> list[bytes]:
        found: list[bytes] = []
        for seal in await self._seals.between(after, until):
            found += seal.leaves[max(after - seal.after, 0) : until - seal.after]
        return found


def _private(path: Path) -> BinaryIO:
    # as closed to others as the database is
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _parts(path: Path, written: Written) -> Iterator[tuple[Block, bytes]]:
    with path.open("rb") as file:
        for part in written.parts:
            yield part, file.read(part.size)


def _changed(first: int, last: int) -> Rejected:
    return Rejected(
        "log-tampered", f"the events from {first} to {last} are not what was sealed", hint="vmorch audit verify"
    )


def _flush(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
