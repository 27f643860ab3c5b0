"""Files on a host: where one is deleted, nothing else is touched."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hostagent import network_fs
from hostagent.layout import delete_file, discard_file, free_bytes
from vmorch.core.errors import Rejected

Delete = Callable[[Path, str], object]

DEADLINE = 10.0
DELETIONS = pytest.mark.parametrize("delete", [delete_file, discard_file])


@DELETIONS
def test_a_deleted_file_is_gone_at_once_and_the_rest_stays(tmp_path: Path, delete: Delete) -> None:
    for name in ("memory.1", "memory.2"):
        (tmp_path / name).write_bytes(b"data")
    for _ in range(2):
        delete(tmp_path, "memory.1")
        assert [each.name for each in tmp_path.iterdir()] == ["memory.2"]
    delete(tmp_path, "memory.2")
    assert list(tmp_path.iterdir()) == []
    delete(tmp_path / "nowhere", "memory.2")


@DELETIONS
def test_what_is_no_plain_file_stays(tmp_path: Path, delete: Delete) -> None:
    (tmp_path / "elsewhere").write_bytes(b"data")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory"):
        with pytest.raises(Rejected) as refused:
            delete(tmp_path, name)
        assert refused.value.code == "not-ours"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["directory", "elsewhere", "link"]


def test_a_discarded_file_is_not_kept_open_for_long(tmp_path: Path) -> None:
    for name in ("memory.1", "vda.qcow2"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    discard_file(tmp_path, "memory.1")
    ends = time.monotonic() + DEADLINE
    while any(_target(each).startswith(str(tmp_path / "memory.1")) for each in Path("/proc/self/fd").iterdir()):
        assert time.monotonic() < ends, "its space is not given back"
        time.sleep(0.01)


def test_whoever_asks_what_is_free_counts_what_was_discarded(tmp_path: Path) -> None:
    for name in ("memory.1", "memory.2", "vda.qcow2"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    for name in ("memory.1", "memory.2"):
        discard_file(tmp_path, name)
    free_bytes(tmp_path)
    assert not [each for each in Path("/proc/self/fd").iterdir() if _target(each).startswith(str(tmp_path / "memory"))]


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs"])
def test_where_an_open_file_would_keep_a_name_it_is_not_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    device, mounts, there = tmp_path.stat().st_dev, tmp_path / "mountinfo", tmp_path / "there"
    mounts.write_text(f"36 35 {os.major(device)}:{os.minor(device)} / /srv rw - {kind} server:/ rw\n")
    monkeypatch.setattr(network_fs, "_MOUNTS", mounts)
    there.mkdir()
    (there / "memory.1").write_bytes(b"data")
    discard_file(there, "memory.1")
    assert not [each for each in Path("/proc/self/fd").iterdir() if _target(each).startswith(str(there))]


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""
