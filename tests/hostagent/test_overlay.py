"""New layers: what qemu-img would have made, whatever the size of the disk."""

import errno
import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent.layers import make_layer
from hostagent.layout import draft_of
from hostagent.overlay import empty_layer
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected

SECTOR, MIB, TIB = 512, 1 << 20, 1 << 40
LARGEST = 64 * TIB
"""Bytes; qemu-img itself needs seconds for larger ones."""
SHAPE = slice(4, 8), slice(20, 48), slice(48, 60), slice(60, 104)
"""Of a header: all but where the name of the file below is."""


def qemu_img(*arguments: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True).stdout


def below(directory: Path, size: int) -> Path:
    path = directory / "vda.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, str(size))
    return path


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 64 * MIB // SECTOR) | st.integers(1, LARGEST // SECTOR))
def test_a_layer_is_what_qemu_img_would_have_made(sectors: int) -> None:
    with TemporaryDirectory() as place:
        base = below(Path(place), sectors * SECTOR)
        ours, theirs = base.with_name("vda.1.qcow2"), base.with_name("theirs.qcow2")
        make_layer(ours, base)
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, theirs)
        header, wanted = ours.read_bytes()[:104], theirs.read_bytes()[:104]
        assert [header[part] for part in SHAPE] == [wanted[part] for part in SHAPE]
        told, wished = (json.loads(qemu_img("info", "--output=json", each)) for each in (ours, theirs))
        assert told["format-specific"] == wished["format-specific"]
        assert told["full-backing-filename"] == str(base)
        assert json.loads(qemu_img("check", "--output=json", ours))["check-errors"] == 0
        read = read_layer(ours)
        assert read is not None
        assert (read.backing, read.backing_format, read.virtual_size, read.empty) == (
            str(base), "qcow2", sectors * SECTOR, True,
        )  # fmt: skip


def test_what_is_written_to_a_layer_is_in_it_alone_and_can_be_merged(tmp_path: Path) -> None:
    base = below(tmp_path, 3 * (1 << 30))
    subprocess.run(["qemu-io", "-c", "write -P 1 0 1M", base], check=True, capture_output=True)
    before = qemu_img("map", "--output=json", base)
    layer = tmp_path / "vda.1.qcow2"
    make_layer(layer, base)
    assert layer.stat().st_mode & 0o777 == 0o600
    written = ["-c", "write -P 2 64k 64k", "-c", "write -P 3 2G 1M", "-c", "read -P 1 0 64k", "-c", "read -P 2 64k 64k"]
    subprocess.run(["qemu-io", *written, layer], check=True, capture_output=True)
    qemu_img("check", layer)
    assert qemu_img("map", "--output=json", base) == before
    read = read_layer(layer)
    assert read is not None
    assert not read.empty
    qemu_img("commit", "-q", "-d", layer)
    subprocess.run(
        ["qemu-io", "-c", "read -P 2 64k 64k", "-c", "read -P 3 2G 1M", base], check=True, capture_output=True
    )


def test_a_long_name_of_the_file_below_is_kept_whole() -> None:
    name = "/" + "x" * 1000
    assert empty_layer(SECTOR, name).count(name.encode()) == 1


def test_a_layer_that_holds_data_is_neither_made_again_nor_taken_away(tmp_path: Path) -> None:
    base, layer = below(tmp_path, MIB), tmp_path / "vda.1.qcow2"
    make_layer(layer, base)
    make_layer(layer, base)
    subprocess.run(["qemu-io", "-c", "write -P 2 0 64k", layer], check=True, capture_output=True)
    before = layer.read_bytes()
    with pytest.raises(Rejected) as refused:
        make_layer(layer, base)
    assert refused.value.code == "chain-drift"
    assert layer.read_bytes() == before


def test_a_full_file_system_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = below(tmp_path, MIB)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    layer = tmp_path / "vda.1.qcow2"
    with pytest.raises(Rejected, match="No space left") as refused:
        make_layer(layer, base)
    assert refused.value.code == "disk-full"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["vda.qcow2"]
    assert not (tmp_path / draft_of(layer.name)).exists()
