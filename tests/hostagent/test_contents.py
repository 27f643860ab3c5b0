"""The figure of what a disk holds: the same however it came about, another one for anything else."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from contract import scope

from hostagent import qemu_img
from hostagent.contents import BLOCK, Disk
from hostagent.hypervisor import Withdrawn
from hostagent.increment import PART, Increment
from hostagent.qemu_img import File

pytestmark = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")

SIZE = 4 * 2**20


def made(path: Path, *writes: tuple[str, int, int, int]) -> File:
    """A qcow2 file after these writes: how, from where, how many bytes, which byte."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    for how, start, length, byte in writes:
        order = f"write {'-P ' + str(byte) if how == 'data' else '-z'} {start} {length}"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", order, path], check=True, stdout=subprocess.DEVNULL)
    return path, "qcow2"


def figure(*chain: File) -> str:
    with Disk(chain, SIZE, scope()) as disk:
        return disk.content()


def test_it_depends_on_what_is_held_and_where_and_on_nothing_else(tmp_path: Path) -> None:
    one = made(tmp_path / "one", ("data", 0, BLOCK, 7), ("data", 3 * BLOCK, 512, 8))
    # written in another order, over something else, with zeros that are written down
    other = made(
        tmp_path / "other",
        ("data", 3 * BLOCK, BLOCK, 1), ("zeros", 3 * BLOCK, BLOCK, 0), ("data", 3 * BLOCK, 512, 8),
        ("data", 0, BLOCK, 7), ("data", 9 * BLOCK, BLOCK, 0),
    )  # fmt: skip
    moved = made(tmp_path / "moved", ("data", BLOCK, BLOCK, 7), ("data", 3 * BLOCK, 512, 8))
    assert figure(one) == figure(other) != figure(moved)
    assert figure(made(tmp_path / "nothing")) == "0" * 64


def test_a_chain_has_the_figure_of_the_disk_that_it_gives(tmp_path: Path) -> None:
    below = made(tmp_path / "below", ("data", 0, 2 * BLOCK, 1))
    above = made(tmp_path / "above", ("data", BLOCK, BLOCK, 2))
    flat = made(tmp_path / "flat", ("data", 0, BLOCK, 1), ("data", BLOCK, BLOCK, 2))
    assert figure(above, below) == figure(flat)


@pytest.mark.parametrize("seed", range(8))
def test_from_the_one_before_and_what_changed_follows_the_one_after(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    chain = [made(tmp_path / "0")]
    now = figure(*chain)
    for number in range(1, 4):
        writes = [
            (chance.choice(("data", "zeros")), chance.randrange(0, SIZE - BLOCK, 512), chance.randrange(1, 129) * 512,
             chance.randrange(256))
            for _ in range(chance.randrange(1, 6))
        ]  # fmt: skip
        # whole blocks, as QEMU copies them
        aligned = [(how, at // BLOCK * BLOCK, -(-length // BLOCK) * BLOCK, byte) for how, at, length, byte in writes]
        above = made(tmp_path / str(number), *aligned)
        with Disk([above, *chain], SIZE, scope()) as after, Disk(chain, SIZE, scope()) as before:
            now = after.changed(before, now)  # type: ignore[arg-type]
        chain.insert(0, above)
        assert now == figure(*chain)


@pytest.mark.parametrize("seed", range(8))
def test_what_changed_may_be_parts_of_blocks(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    chain = [made(tmp_path / "0", ("data", 0, SIZE // 2, 5))]
    now = figure(*chain)
    for number in range(1, 4):
        path = tmp_path / str(number)
        with path.open("xb") as file:
            increment = Increment(file, SIZE)
            for part in sorted(chance.sample(range(SIZE // PART), chance.randrange(60))):
                increment.add(part * PART, bytes([chance.choice((0, 1, number))]) * PART)
            increment.finish()
        above: File = (path, "qcow2")
        with Disk([above, *chain], SIZE, scope()) as after, Disk(chain, SIZE, scope()) as before:
            now = after.changed(before, now)  # type: ignore[arg-type]
        chain.insert(0, above)
        assert now == figure(*chain)


def test_a_disk_in_many_pieces_is_asked_about_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made(tmp_path / "one", *(("data", 2 * each * BLOCK, BLOCK, 1 + each) for each in range(SIZE // BLOCK // 2)))
    whole = list(qemu_img.extents([file], SIZE, scope()))
    monkeypatch.setattr(qemu_img, "_MOST_SAID", 4096)
    parts = list(qemu_img.extents([file], SIZE, scope()))
    assert parts == whole


def test_a_file_is_never_led_elsewhere_by_its_header(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * SIZE)
    path = tmp_path / "hostile"
    order = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, path, str(SIZE)]
    subprocess.run(order, check=True)
    assert figure((path, "qcow2")) == "0" * 64
    assert json.loads(subprocess.run(
        ["qemu-img", "info", "--output=json", path], check=True, capture_output=True
    ).stdout)["backing-filename"] == str(secret)  # fmt: skip


def test_it_ends_when_its_order_is_withdrawn(tmp_path: Path) -> None:
    ended = scope()
    file = made(tmp_path / "one", ("data", 0, BLOCK, 7))
    with Disk([file], SIZE, ended) as disk:
        ended.withdraw()
        with pytest.raises(Withdrawn):
            disk.content()
