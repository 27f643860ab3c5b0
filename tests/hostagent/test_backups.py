"""The directory of backups: what is in it is whole or not there, and nothing in it is believed."""

import os
from pathlib import Path

import pytest

from hostagent.backups import MANIFEST, Place, Targets, is_of_draft
from vmorch.core.backup import Manifest, Saved, SavedDisk, Target
from vmorch.core.errors import Rejected
from vmorch.core.ids import BackupId, Digest, GiB, MiB
from vmorch.core.spec import DiskSpec, VmSpec

ID = BackupId("01a21dc6-55a8-70e3-a03b-5d6332644826")
ZEROS = Digest("0" * 64)


def manifest() -> Manifest:
    disk = SavedDisk(name="vda", size=1 << 30, bytes=0, sha256=ZEROS, content=ZEROS)
    spec = VmSpec(
        vcpus=1, max_vcpus=1, memory=MiB(64), max_memory=MiB(64), disks=(DiskSpec(name="vda", size=GiB(1)),)
    )
    saved = Saved(backup=ID, kind="full", disks=(disk,))
    return Manifest(
        cluster="c", vm="v", name="n", vm_name="w", taken_at="2026-01-01T00:00:00Z", parent=None, quality="off",
        spec=spec, saved=saved,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "target").mkdir()
    targets = Targets({"main": tmp_path / "target"})
    return targets.place(Target(name="main", id=targets.ids()["main"]))


def test_a_file_of_a_draft_is_known_by_its_path_and_no_other_is(place: Place) -> None:
    draft = place.draft(ID)
    assert is_of_draft(draft / "vda.qcow2")
    assert is_of_draft(draft / "vdb.aside")
    for other in (
        draft, draft / "vda.qcow2.old", draft / "deeper" / "vda.qcow2", place.directory(ID) / "vda.qcow2",
        draft.with_name(f"x{draft.name}") / "vda.qcow2", draft.with_name(".backup.new") / "vda.qcow2", Path(""),
    ):  # fmt: skip
        assert not is_of_draft(other), other


def test_a_backup_is_there_only_once_it_is_whole(place: Place) -> None:
    (place.begin(ID) / "vda.qcow2").write_bytes(b"data")
    assert place.saved(ID) is None
    assert not place.directory(ID).exists()
    place.finish(ID, manifest())
    assert place.saved(ID) == manifest().saved
    assert not place.draft(ID).exists()
    assert place.drop(ID)
    assert not place.drop(ID)
    assert [each.name for each in place.root.iterdir()] == ["storage-id"]


def test_what_an_attempt_left_is_gone_when_the_next_begins(place: Place) -> None:
    for _ in range(2):
        draft = place.begin(ID)
        assert list(draft.iterdir()) == []
        (draft / "vda.qcow2").write_bytes(b"data")


def test_a_directory_that_is_not_there_is_no_target_and_is_not_made(tmp_path: Path) -> None:
    targets = Targets({"main": tmp_path / "unmounted"})
    assert targets.ids() == {}
    with pytest.raises(Rejected, match="not mounted"):
        targets.place(Target(name="main", id="1" * 32))
    assert not (tmp_path / "unmounted").exists()


@pytest.mark.parametrize("id", ["../../etc", "", "a" * 36, f"{ID}/..", f"{ID}\n"])
def test_only_ids_become_names_of_directories(place: Place, id: str) -> None:
    for touch in (place.saved, place.begin, place.drop):
        with pytest.raises(Rejected) as caught:
            touch(BackupId(id))
        assert caught.value.code == "bad-request"


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"\xff", b'{"version":2}', b"[" * 100_000, b'{"saved":{"disks":[{"name":"../../x"}]}}']
)
def test_a_manifest_that_says_anything_else_is_damage(place: Place, text: bytes) -> None:
    place.begin(ID).rename(place.directory(ID))
    (place.directory(ID) / MANIFEST).write_bytes(text)
    with pytest.raises(Rejected) as caught:
        place.saved(ID)
    assert caught.value.code == "backup-damaged"


def test_links_are_not_followed_and_what_is_no_part_of_a_backup_stays(place: Place, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("keep")
    draft = place.begin(ID)
    os.symlink(secret, draft / "vda.qcow2")
    with pytest.raises(Rejected) as caught:
        place.drop(ID)
    assert caught.value.code == "not-ours"
    (draft / "vda.qcow2").unlink()
    (draft / "notes.txt").write_text("by hand")
    with pytest.raises(Rejected):
        place.begin(ID)
    assert (draft / "notes.txt").exists()
    (draft / "notes.txt").unlink()
    draft.rename(place.directory(ID))
    os.symlink(secret, place.directory(ID) / MANIFEST)
    with pytest.raises(Rejected):
        place.saved(ID)
    assert secret.read_text() == "keep"
