"""The image store: whole, verified and private, or nothing."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmorch.core.errors import Rejected
from vmorch.edge.images import ImageStore

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
RAW = b"\x55" * MIB
DIGEST = hashlib.sha256(RAW).hexdigest()
LIMITS = {"max_bytes": 64 * MIB, "max_virtual_size": 1024**4}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


async def chunks(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def qcow2(path: Path, *options: str) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "10M"], check=True)
    return path.read_bytes()


def files(store: ImageStore) -> list[str]:
    return sorted(os.listdir(store.directory))


async def test_an_image_is_kept_under_its_digest_readable_by_nobody_else(store: ImageStore) -> None:
    told: list[int] = []
    stored = await store.receive(chunks(RAW), expected=DIGEST, progress=told.append, **LIMITS)
    assert (stored.digest, stored.format, stored.size, stored.virtual_size) == (DIGEST, "raw", MIB, MIB)
    assert files(store) == [DIGEST]
    assert told[-1] == MIB
    path = store.path(DIGEST)
    assert path is not None
    assert path.read_bytes() == RAW
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.directory.stat().st_mode & 0o777 == 0o700


async def test_a_qcow2_image_tells_its_virtual_size(store: ImageStore, tmp_path: Path) -> None:
    data = qcow2(tmp_path / "disk.qcow2")
    stored = await store.receive(chunks(data), declared="qcow2", **LIMITS)
    assert (stored.format, stored.virtual_size) == ("qcow2", 10 * MIB)


async def test_other_bytes_than_asked_for_are_thrown_away(store: ImageStore) -> None:
    with pytest.raises(Rejected) as refused:
        await store.receive(chunks(RAW), expected="0" * 64, **LIMITS)
    assert refused.value.code == "wrong-checksum"
    assert refused.value.facts["received"] == DIGEST
    assert files(store) == []


async def test_a_header_that_reaches_for_host_files_is_refused_and_nothing_stays(
    store: ImageStore, tmp_path: Path
) -> None:
    backing = tmp_path / "backing.raw"
    backing.write_bytes(RAW)
    data = qcow2(tmp_path / "evil.qcow2", "-F", "raw", "-b", str(backing))
    with pytest.raises(Rejected) as refused:
        await store.receive(chunks(data), **LIMITS)
    assert refused.value.code == "hostile-image"
    plain = qcow2(tmp_path / "plain.qcow2")
    with pytest.raises(Rejected) as refused:
        await store.receive(chunks(plain), declared="raw", **LIMITS)
    assert refused.value.code == "hostile-image"
    assert files(store) == []


async def test_an_image_over_the_limits_is_refused(store: ImageStore, tmp_path: Path) -> None:
    small = {**LIMITS, "max_bytes": MIB - 1}
    for total in (None, MIB):
        with pytest.raises(Rejected) as refused:
            await store.receive(chunks(RAW), total=total, **small)
        assert refused.value.code == "image-too-large"
    with pytest.raises(Rejected) as refused:
        await store.receive(chunks(qcow2(tmp_path / "d")), max_bytes=64 * MIB, max_virtual_size=MIB)
    assert refused.value.code == "image-too-large"
    assert files(store) == []


async def test_a_disk_without_room_refuses_before_and_while_writing(tmp_path: Path) -> None:
    full = ImageStore(tmp_path / "full", keep_free=2**62)
    with pytest.raises(Rejected) as refused:
        await full.receive(chunks(RAW), **LIMITS)
    assert refused.value.code == "server-disk-full"
    narrow = ImageStore(tmp_path / "narrow")
    with pytest.raises(Rejected) as refused:
        await narrow.receive(chunks(RAW), total=2**61, max_bytes=2**62, max_virtual_size=2**62)
    assert refused.value.code == "server-disk-full"


async def test_a_sender_that_breaks_off_leaves_nothing(store: ImageStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield RAW
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await store.receive(broken(), **LIMITS)
    assert files(store) == []


async def test_a_cancelled_transfer_leaves_nothing(store: ImageStore) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield RAW
            begun.set()
            await asyncio.sleep(0)

    task = asyncio.create_task(store.receive(endless(), max_bytes=2**40, max_virtual_size=2**40))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(store) == []


async def test_what_a_killed_server_left_half_done_is_gone_at_the_next_start(store: ImageStore) -> None:
    await store.receive(chunks(RAW), **LIMITS)
    (store.directory / "incoming-leftover").write_bytes(b"half")
    (store.directory / "notes").write_bytes(b"somebody else's")
    again = ImageStore(store.directory)
    assert files(again) == sorted([DIGEST, "notes"])
    assert again.digests() == {DIGEST}


async def test_the_same_bytes_twice_are_one_file(store: ImageStore) -> None:
    first, second = await asyncio.gather(*(store.receive(chunks(RAW), **LIMITS) for _ in range(2)))
    assert first == second
    assert files(store) == [DIGEST]


async def test_a_held_image_is_not_discarded(store: ImageStore) -> None:
    stored = await store.receive(chunks(RAW), **LIMITS)
    with store.holding(stored.digest):
        store.discard(stored.digest)
        assert store.path(DIGEST) is not None
    store.discard(stored.digest)
    assert store.path(DIGEST) is None


@pytest.mark.parametrize("digest", ["", ".", "..", "../keys", "a" * 63, "A" * 64, "a" * 64 + "/", "incoming-x"])
async def test_nothing_but_a_digest_names_a_file(store: ImageStore, digest: str) -> None:
    assert store.path(digest) is None
