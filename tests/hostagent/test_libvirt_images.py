"""Images come whole and as named, or not at all."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from libvirt_host import ImageServer, pin
from msgspec.structs import replace

from hostagent import images
from hostagent.hypervisor import Withdrawn
from hostagent.images import ImageCache
from hostagent.layout import Layout
from hostagent.scope import OrderScope
from vmorch.core.errors import Rejected
from vmorch.core.spec import ImagePin

DISK = (b"\0" * 510 + b"\x55\xaa" + os.urandom(1 << 20)).ljust(3 << 20, b"\7")
PATH = "/v1/images/x/content"


@pytest.fixture
def server() -> Iterator[ImageServer]:
    server = ImageServer(DISK)
    yield server
    server.close()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "local", tmp_path / "shared")


@pytest.fixture
def cache(layout: Layout, server: ImageServer) -> Iterator[ImageCache]:
    cache = ImageCache(layout, lambda: server.url, lambda path: {"x-host": f"signed {path}"})
    yield cache
    cache.close()


def scope(seconds: float = 30.0) -> OrderScope:
    return OrderScope(time.monotonic, time.monotonic() + seconds)


def raw_pin(image: bytes = DISK) -> ImagePin:
    return pin(image, len(image), "raw")


def refused(cache: ImageCache, image: ImagePin, code: str, layout: Layout) -> None:
    """Fetching is refused with this code and leaves nothing behind."""
    with pytest.raises(Rejected) as refusal:
        cache.fetch(image, PATH, scope())
    assert refusal.value.code == code
    assert not cache.has(image)
    assert os.listdir(layout.images("local")) == []


def test_an_image_is_fetched_with_the_hosts_signature(cache: ImageCache, layout: Layout, server: ImageServer) -> None:
    assert not cache.has(raw_pin())
    cache.fetch(raw_pin(), PATH, scope())
    assert cache.has(raw_pin())
    found = layout.image("local", raw_pin())
    assert found.read_bytes() == DISK
    assert found.stat().st_mode & 0o777 == 0o444
    assert server.headers == [f"signed {PATH}"]


def test_a_broken_transfer_goes_on_where_it_broke(cache: ImageCache, layout: Layout, server: ImageServer) -> None:
    server.break_after = 1 << 20
    cache.fetch(raw_pin(), PATH, scope())
    assert layout.image("local", raw_pin()).read_bytes() == DISK
    assert server.ranges == [None, f"bytes={1 << 20}-"]


def test_a_withdrawn_fetch_is_continued_by_the_next_agent(layout: Layout, server: ImageServer) -> None:
    part = layout.image("local", raw_pin()).with_suffix(".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(DISK[:12345])
    order = scope()
    order.withdraw()
    first = ImageCache(layout, lambda: server.url, lambda _: {})
    with pytest.raises(Withdrawn):
        first.fetch(raw_pin(), PATH, order)
    first.close()
    assert part.read_bytes() == DISK[:12345]
    second = ImageCache(layout, lambda: server.url, lambda _: {})
    second.fetch(raw_pin(), PATH, scope())
    second.close()
    assert server.ranges == ["bytes=12345-"]
    assert second.has(raw_pin())
    assert not part.exists()


def test_bytes_that_are_not_the_images_are_thrown_away(cache: ImageCache, layout: Layout, server: ImageServer) -> None:
    server.image = DISK[:-1] + b"!"
    refused(cache, raw_pin(), "image-digest-mismatch", layout)


def test_more_bytes_than_announced_are_not_taken(cache: ImageCache, layout: Layout, server: ImageServer) -> None:
    server.image = DISK * 2
    refused(cache, raw_pin(), "image-digest-mismatch", layout)


def test_a_left_over_part_that_is_wrong_does_not_stay(cache: ImageCache, layout: Layout, server: ImageServer) -> None:
    part = layout.image("local", raw_pin()).with_suffix(".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    refused(cache, raw_pin(), "image-digest-mismatch", layout)
    cache.fetch(raw_pin(), PATH, scope())
    assert cache.has(raw_pin())


def test_a_missing_image_is_unavailable(cache: ImageCache, layout: Layout, server: ImageServer) -> None:
    server.status = 404
    with pytest.raises(Rejected) as refusal:
        cache.fetch(raw_pin(), PATH, scope())
    assert refusal.value.code == "image-unavailable"
    assert "404" in refusal.value.reason


def test_a_server_that_stays_away_is_given_up(
    cache: ImageCache, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_FIRST_WAIT", 0.001)
    server.status = 503
    with pytest.raises(Rejected) as refusal:
        cache.fetch(raw_pin(), PATH, scope())
    assert refusal.value.code == "image-unavailable"
    assert len(server.ranges) == images.FRUITLESS_ATTEMPTS


def test_an_image_that_reaches_for_other_files_is_refused(
    cache: ImageCache, layout: Layout, server: ImageServer
) -> None:
    hostile = bytearray(4 << 16)
    hostile[:8] = b"QFI\xfb\0\0\0\3"
    hostile[8:20] = (512).to_bytes(8, "big") + (11).to_bytes(4, "big")
    hostile[512:523] = b"/etc/shadow"
    server.image = bytes(hostile)
    refused(cache, pin(server.image, 1 << 30), "hostile-image", layout)


def test_an_image_of_another_size_than_recorded_is_refused(cache: ImageCache, layout: Layout) -> None:
    refused(cache, replace(raw_pin(), virtual_size=len(DISK) + 512), "hostile-image", layout)
    refused(cache, replace(raw_pin(), virtual_size=len(DISK) - 512), "image-too-large", layout)


def test_a_full_disk_leaves_nothing_behind(cache: ImageCache, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "free_bytes", lambda _: 1000)
    refused(cache, raw_pin(), "disk-full", layout)


def test_a_disk_that_fills_while_writing_leaves_nothing_behind(
    cache: ImageCache, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(cache, raw_pin(), "disk-full", layout)


def test_a_base_is_copied_to_the_storage_of_its_disk(cache: ImageCache, layout: Layout, server: ImageServer) -> None:
    cache.fetch(raw_pin(), PATH, scope())
    shared = cache.base(raw_pin(), "shared", scope())
    assert shared == layout.image("shared", raw_pin())
    assert shared.read_bytes() == DISK
    assert os.listdir(layout.images("shared")) == [shared.name]
    assert cache.base(raw_pin(), "shared", scope()) == shared
    assert len(server.ranges) == 1


def test_a_base_that_is_nowhere_is_refused(cache: ImageCache) -> None:
    with pytest.raises(Rejected) as refusal:
        cache.base(raw_pin(), "local", scope())
    assert refusal.value.code == "no-image"
