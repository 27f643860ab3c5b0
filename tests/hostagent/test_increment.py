"""Files that hold some stretches of a disk: what QEMU reads in them, above whatever they stand on."""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from contract import scope
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent import qemu_img
from hostagent.backups import check_header
from hostagent.increment import PART, Increment

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SECTOR = 512

Stretches = dict[int, bytes]


def run(*arguments: str | Path) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def written(path: Path, size: int, stretches: Stretches) -> Path:
    with path.open("xb") as file:
        increment = Increment(file, size)
        for start, data in stretches.items():
            increment.add(start, data)
        increment.finish()
    return path


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, Stretches]:
    """A disk's size, and stretches of it in their order, some of them zeros."""
    size = draw(st.integers(1, 2 * MIB // SECTOR)) * SECTOR
    parts = draw(st.sets(st.integers(0, -(-size // PART) - 1), max_size=40))
    found: Stretches = {}
    for part in sorted(parts):
        start = part * PART
        length = min(draw(st.integers(1, 40)) * PART, size - start)
        if found and (last := max(found)) + len(found[last]) > start:
            continue
        pattern = draw(st.sampled_from((b"\0", b"\1", b"\0" * PART + b"\2" * PART)))
        found[start] = (pattern * length)[:length]
    return size, found


def hold(base: bytes, stretches: Stretches) -> bytes:
    found = bytearray(base)
    for start, data in stretches.items():
        found[start : start + len(data)] = data
    return bytes(found)


@settings(max_examples=60, deadline=None)
@given(disks())
def test_qemu_reads_the_stretches_and_below_them_whatever_was_there(disk: tuple[int, Stretches]) -> None:
    size, stretches = disk
    with TemporaryDirectory() as place:
        base, path = Path(place) / "base", written(Path(place) / "increment", size, stretches)
        base.write_bytes(b"\7" * size)
        check_header(path, size)
        assert msgspec.json.decode(run("check", "--output=json", path))["check-errors"] == 0
        qemu_img.flatten([(path, "qcow2"), (base, "raw")], flat := Path(place) / "flat", scope())
        run("convert", "-f", "qcow2", "-O", "raw", flat, raw := Path(place) / "raw")
        assert raw.read_bytes() == hold(base.read_bytes(), stretches)


def test_two_of_them_stand_on_one_another(tmp_path: Path) -> None:
    first = written(tmp_path / "1", MIB, {0: b"\1" * 3 * PART, 64 * PART: b"\1" * PART})
    second = written(tmp_path / "2", MIB, {PART: bytes(PART), 65 * PART: b"\2" * PART})
    qemu_img.flatten([(second, "qcow2"), (first, "qcow2")], flat := tmp_path / "flat", scope())
    run("convert", "-f", "qcow2", "-O", "raw", flat, raw := tmp_path / "raw")
    held = raw.read_bytes()
    assert [held[each * PART] for each in (0, 1, 2, 3, 64, 65)] == [1, 0, 1, 0, 1, 2]


@pytest.mark.parametrize("size", [GIB - SECTOR, 3 * GIB + SECTOR, TIB])
def test_the_ends_of_large_disks_are_in_it(tmp_path: Path, size: int) -> None:
    ends = (size - 1) // PART * PART
    stretches = {0: b"\1" * PART, size // 2 // PART * PART: b"\2" * PART, ends: b"\3" * (size - ends)}
    path = written(tmp_path / "increment", size, stretches)
    check_header(path, size)
    assert msgspec.json.decode(run("check", "--output=json", path))["check-errors"] == 0
    found = [each for each in qemu_img.extents([(path, "qcow2")], size, scope()) if each.data]
    assert [each.start for each in found] == list(stretches)
    with path.open("rb") as file:
        for each, data in zip(found, stretches.values(), strict=True):
            assert each.offset is not None
            assert os.pread(file.fileno(), len(data), each.offset) == data


def test_small_stretches_take_little_more_than_their_own_bytes(tmp_path: Path) -> None:
    parts = {each * 517 * PART: os.urandom(PART) for each in range(500)}
    path = written(tmp_path / "increment", GIB, parts)
    assert path.stat().st_blocks * 512 <= 1.1 * 500 * PART


def test_zeros_take_no_space_at_all(tmp_path: Path) -> None:
    much, little = (written(tmp_path / str(each), GIB, {0: bytes(each)}) for each in (16 * MIB, PART))
    assert much.stat().st_blocks == little.stat().st_blocks


def test_one_that_holds_much_counts_every_cluster_of_its_own(tmp_path: Path) -> None:
    """More clusters than one block of counts tells of."""
    size = 9 * GIB
    with (path := tmp_path / "increment").open("xb") as file:
        increment = Increment(file, size)
        for start in range(0, size, MIB // 8):
            increment.add(start, b"\1" * PART)
        increment.finish()
    told = msgspec.json.decode(run("check", "--output=json", path))
    assert told["check-errors"] == 0
    assert told["allocated-clusters"] == size // (MIB // 8)
