"""An archive: an export as gzip members of at most 1,000 events, each readable by itself.

All of them together are one gzip file of the export's lines. Must not read files, and must not believe a block whose
bytes do not hash to what is known of them.
"""

import gzip
import zlib
from collections.abc import Iterator
from hashlib import sha256

from msgspec import Struct

from vmorch.audit.export import OURS, BadExport, Line, read_line, record_of
from vmorch.core.ids import Position
from vmorch.core.records import Recorded

EVENTS = 1000
"""Positions that a block holds, but for the last one of a file."""
_LEVEL = 6


class BadBlock(Exception):
    """The bytes are not those of the block."""


class Block(Struct, frozen=True, kw_only=True):
    """The events from `first` to `last`: `size` bytes at `place` of a file, which hash to `sha256`."""

    file: str
    first: Position
    last: Position
    place: int
    size: int
    sha256: bytes


def file_name(first: int, last: int) -> str:
    """What the archive of these positions is called."""
    return f"events-{first:015d}-{last:015d}.jsonl.gz"


def pack(lines: bytes) -> bytes:
    """Lines as one gzip member. The same lines are the same bytes, whenever they are packed."""
    return gzip.compress(lines, _LEVEL, mtime=0)


def unpack(block: Block, packed: bytes) -> bytes:
    """The lines in a block. Raises BadBlock."""
    if len(packed) != block.size or sha256(packed).digest() != block.sha256:
        raise BadBlock(f"the bytes of the events from {block.first} to {block.last} are not these")
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise BadBlock(str(error)) from error


def event_lines(lines: bytes) -> Iterator[Line]:
    """The lines that are events. Raises BadExport."""
    for text in lines.splitlines():
        line = read_line(text)
        if not line.type.startswith(OURS):
            yield line


def records_in(block: Block, packed: bytes) -> list[Recorded]:
    """The events of a block, each of its positions once. Raises BadBlock."""
    try:
        found = [record_of(line) for line in event_lines(unpack(block, packed))]
    except BadExport as error:
        raise BadBlock(str(error)) from error
    if [each.position for each in found] != list(range(block.first, block.last + 1)):
        raise BadBlock(f"the block does not hold the events from {block.first} to {block.last}")
    return found
