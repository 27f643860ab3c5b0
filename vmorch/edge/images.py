"""Images on the server's disk, each file under the SHA-256 of its bytes, complete and verified or not there.

A header is read once, when the bytes arrive; afterwards a file is known by its digest and never looked into
again, because whoever could change it could change what it seems to be. Must not know names or events.
"""

import asyncio
import errno
import os
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from vmorch.core.errors import Rejected
from vmorch.core.ids import Digest
from vmorch.core.image_header import read_image_header
from vmorch.core.spec import ImageFormat

_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_INCOMING = "incoming-"
_WRITE_AT_ONCE = 4 * 1024 * 1024
_KEEP_FREE = 512 * 1024 * 1024

T = TypeVar("T")

Progress = Callable[[int], None]
"""Called with the number of bytes written so far; must return at once."""


class Stored(Struct, frozen=True, kw_only=True):
    """An image that is in the store. Sizes in bytes."""

    digest: Digest
    format: ImageFormat
    size: int
    virtual_size: int


class ImageStore:
    """The files of one directory, which belongs to it alone. One process at a time may have it open."""

    def __init__(self, directory: Path, *, keep_free: int = _KEEP_FREE) -> None:
        """Opens the directory, makes it if need be, and removes what an earlier process left half done.

        `keep_free`: bytes of the filesystem that images never fill.
        """
        self.directory = directory
        self._keep_free = keep_free
        self._held: Counter[str] = Counter()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in directory.glob(_INCOMING + "*"):
            leftover.unlink()

    def path(self, digest: str) -> Path | None:
        """Where an image's bytes are; None if they are not here."""
        if not _DIGEST.match(digest):
            return None
        path = self.directory / digest
        return path if path.is_file() else None

    def digests(self) -> set[Digest]:
        """Every image in the store."""
        return {Digest(each.name) for each in self.directory.iterdir() if _DIGEST.match(each.name)}

    def free(self) -> int:
        """Bytes that images may still fill."""
        found = os.statvfs(self.directory)
        return max(0, found.f_bavail * found.f_frsize - self._keep_free)

    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        *,
        max_bytes: int,
        max_virtual_size: int,
        total: int | None = None,
        expected: str | None = None,
        declared: ImageFormat | None = None,
        progress: Progress | None = None,
    ) -> Stored:
        """Take the bytes of one image, verify and keep them; nothing stays of those that are refused.

        Raises Rejected: `image-too-large`, `server-disk-full`, `wrong-checksum`, or what its header's reader says.
        """
        if total is not None and total > max_bytes:
            raise _too_large(total, max_bytes)
        self._room_for(total or 0)
        # mkstemp gives 0600
        handle, incoming = tempfile.mkstemp(dir=self.directory, prefix=_INCOMING)
        try:
            with os.fdopen(handle, "r+b", buffering=0) as file:
                digest, size = await self._write(file.fileno(), chunks, max_bytes, progress)
                if expected is not None and digest != expected:
                    raise Rejected(
                        "wrong-checksum",
                        "the bytes that came have another SHA-256",
                        facts={"expected": expected, "received": digest, "bytes": size},
                    )
                header = await _in_thread(
                    lambda: read_image_header(
                        lambda at, length: os.pread(file.fileno(), length, at),
                        size,
                        max_virtual_size=max_virtual_size,
                        declared=declared,
                    )
                )
                await _in_thread(lambda: os.fsync(file.fileno()))
            os.replace(incoming, self.directory / digest)
            await _in_thread(lambda: _sync_directory(self.directory))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Rejected("server-disk-full", f"no room for the image: {error.strerror}") from error
            raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(incoming)
        return Stored(digest=Digest(digest), format=header.format, size=size, virtual_size=header.virtual_size)

    @contextmanager
    def holding(self, digest: Digest) -> Iterator[None]:
        """Keep a file from being discarded by others meanwhile."""
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1

    def discard(self, digest: Digest) -> None:
        """Remove an image's bytes unless somebody holds them."""
        path = self.path(digest)
        if path is not None and not self._held[digest]:
            path.unlink(missing_ok=True)

    def _room_for(self, more: int) -> None:
        free = self.free()
        if more > free or free == 0:
            raise Rejected(
                "server-disk-full", "no room for the image", facts={"free": free, "needed": more}
            )

    async def _write(
        self, handle: int, chunks: AsyncIterator[bytes], max_bytes: int, progress: Progress | None
    ) -> tuple[str, int]:
        hash, size = sha256(), 0
        waiting: list[bytes] = []
        length = 0

        def flush() -> None:
            for chunk in waiting:
                hash.update(chunk)
                _write_all(handle, chunk)

        async for chunk in chunks:
            waiting.append(chunk)
            length += len(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(size, max_bytes)
            if length >= _WRITE_AT_ONCE:
                self._room_for(length)
                await _in_thread(flush)
                waiting.clear()
                length = 0
                if progress is not None:
                    progress(size)
        await _in_thread(flush)
        if progress is not None:
            progress(size)
        return hash.hexdigest(), size


async def _in_thread(work: Callable[[], T]) -> T:
    """Do blocking work. A cancelled caller waits too: it must not close the file under the thread's hands."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _too_large(size: int, allowed: int) -> Rejected:
    return Rejected("image-too-large", f"at least {size} bytes came; {allowed} are allowed")


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
