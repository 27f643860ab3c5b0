"""Blocks of an archive: the events come back as they were, or not at all."""

import gzip
from dataclasses import dataclass
from hashlib import sha256

import pytest

from tests.audit.logs import FIRST, events, export
from vmorch.audit.blocks import BadBlock, Block, file_name, pack, records_in
from vmorch.audit.verification import verify
from vmorch.core.ids import Position
from vmorch.core.records import Recorded


@dataclass
class Packed:
    """A block and its bytes."""

    block: Block
    bytes: bytes


def packed(lines: list[bytes], first: int = 1, last: int = 5) -> Packed:
    found = pack(b"".join(lines))
    block = Block(
        file="f", first=Position(first), last=Position(last), place=0, size=len(found), sha256=sha256(found).digest()
    )
    return Packed(block, found)


LOG = events(5)
LINES = export(LOG, [(3, FIRST), (5, FIRST)])


def test_events_come_back_as_they_were() -> None:
    each = packed(LINES)
    assert records_in(each.block, each.bytes) == LOG


@pytest.mark.parametrize("data", [b'{"a" : 1.0e3}', b' {"a":1} ', b'{"a":\n1}', b'"\\u00e9"', '"é"'.encode(), b"[]"])
def test_data_comes_back_byte_for_byte(data: bytes) -> None:
    [first, *rest] = LOG
    log = [Recorded(**{**{name: getattr(first, name) for name in first.__struct_fields__}, "data": data}), *rest]
    each = packed(export(log, [(5, FIRST)]))
    assert records_in(each.block, each.bytes) == log


def test_all_blocks_of_a_file_are_one_export() -> None:
    file = b"".join(pack(line) for line in LINES)
    assert verify(gzip.decompress(file).splitlines(keepends=True), [FIRST.key]).sound


def test_the_same_lines_are_the_same_bytes() -> None:
    assert pack(b"one\n") == pack(b"one\n")


@pytest.mark.parametrize("at", [0, 9, 40, -1])
def test_a_changed_byte_is_found(at: int) -> None:
    each = packed(LINES)
    changed = bytearray(each.bytes)
    changed[at] ^= 1
    with pytest.raises(BadBlock):
        records_in(each.block, bytes(changed))


def test_a_file_that_was_cut_is_found() -> None:
    each = packed(LINES)
    with pytest.raises(BadBlock):
        records_in(each.block, each.bytes[:-1])


def test_a_block_that_lacks_an_event_is_none() -> None:
    each = packed([line for line in LINES if b'"id":"3"' not in line])
    with pytest.raises(BadBlock, match="does not hold the events from 1 to 5"):
        records_in(each.block, each.bytes)


def test_files_are_named_by_their_positions_and_sort_by_them() -> None:
    names = [file_name(1, 9_999_999), file_name(10_000_000, 19_999_999), file_name(110_000_000, 119_999_999)]
    assert names == sorted(names)
    assert names[0] == "events-000000000000001-000000009999999.jsonl.gz"
