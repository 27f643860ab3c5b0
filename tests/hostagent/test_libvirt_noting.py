"""In which blocks it is noted where a guest writes."""

import pytest

from hostagent.commands._noting import granularity

KIB, GIB, TIB = 2**10, 2**30, 2**40


@pytest.mark.parametrize(
    ("size", "block"), [(512, 4 * KIB), (GIB, 4 * KIB), (TIB, 4 * KIB), (TIB + 512, 8 * KIB), (16 * TIB, 64 * KIB)]
)
def test_a_bitmap_takes_32_mib_at_the_most_and_no_block_less_than_a_part_of_a_backup(size: int, block: int) -> None:
    assert granularity(size) == block
    assert size / block / 8 <= 32 * 2**20
