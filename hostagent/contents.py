"""Tell what a disk holds by one figure, however its files are laid out, so that two disks can be compared from afar.

It is put together from the SHA-256 of each block that is not all zeros, with its place: after a few blocks have changed
it follows from the one before and those blocks alone. It shows mistakes and decay; against whoever writes to the files
on purpose, the digests of the files themselves stand. Must not be pointed at files whose headers nobody has looked at.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from msgspec.structs import replace

from hostagent import qemu_img
from hostagent.hypervisor import Scope
from hostagent.qemu_img import Extent, File
from vmorch.core.errors import Rejected
from vmorch.core.ids import Digest

BLOCK = 64 * 1024
"""Bytes."""
_ZEROS = bytes(BLOCK)
_CHUNK = 1024 * 1024


class Disk(AbstractContextManager["Disk"]):
    """A disk of `size` bytes, read through a chain of files, topmost first."""

    def __init__(self, chain: Sequence[File], size: int, scope: Scope) -> None:
        self._chain, self._size, self._scope = chain, size, scope
        self._files: list[int] = []

    def __enter__(self) -> Self:
        try:
            for path, _ in self._chain:
                self._files.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()

    def content(self) -> Digest:
        """The figure of everything that it holds. Raises Rejected, Withdrawn, Expired."""
        return _digest(self._sum(self._extents()))

    def changed(self, below: "Disk", was: Digest) -> Digest:
        """The same, when the topmost file stands on the disk `below` and that one's figure is known."""
        touched = _touched(self._extents())
        before, after = (each._sum(_within(each._extents(), touched)) for each in (below, self))
        return _digest(int(was, 16) ^ before ^ after)

    def _sum(self, extents: Iterator[Extent]) -> int:
        found = 0
        for index, data in self._blocks(extents):
            found ^= _of(index, data)
        return found

    def _extents(self) -> Iterator[Extent]:
        return qemu_img.extents(self._chain, self._size, self._scope)

    def _blocks(self, extents: Iterator[Extent]) -> Iterator[tuple[int, bytes]]:
        """Every block that holds something, in order. Extents of one block are put together."""
        partial: dict[int, bytearray] = {}
        for extent in extents:
            if not extent.data:
                continue
            if extent.offset is None or extent.depth >= len(self._files):
                raise Rejected("qemu-img-failed", f"{self._chain[0][0].name} is laid out in a way that is not known")
            done = 0
            while done < extent.length:
                self._scope.check()
                at = extent.start + done
                index, within = divmod(at, BLOCK)
                length = min(BLOCK - within, extent.length - done)
                data = os.pread(self._files[extent.depth], length, extent.offset + done)
                for before in [each for each in partial if each < index]:
                    yield before, bytes(partial.pop(before))
                if length == BLOCK:
                    yield index, data + bytes(BLOCK - len(data))
                else:
                    partial.setdefault(index, bytearray(BLOCK))[within : within + len(data)] = data
                done += length
        for index in sorted(partial):
            yield index, bytes(partial[index])


def file_digest(path: Path, scope: Scope) -> Digest:
    """The SHA-256 of a file. Raises Withdrawn, Expired, OSError."""
    found = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        while chunk := file.read(_CHUNK):
            scope.check()
            found.update(chunk)
    return Digest(found.hexdigest())


def _touched(extents: Iterator[Extent]) -> list[tuple[int, int]]:
    """The ranges of bytes, in whole blocks, of which the topmost file says anything."""
    found: list[tuple[int, int]] = []
    for extent in extents:
        if extent.depth == 0 and extent.present:
            begin, end = extent.start // BLOCK * BLOCK, -(-(extent.start + extent.length) // BLOCK) * BLOCK
            if found and found[-1][1] >= begin:
                found[-1] = (found[-1][0], end)
            else:
                found.append((begin, end))
    return found


def _within(extents: Iterator[Extent], ranges: Sequence[tuple[int, int]]) -> Iterator[Extent]:
    """What of the extents lies in these ranges; both are in order."""
    at = 0
    for extent in extents:
        ends = extent.start + extent.length
        while at < len(ranges) and ranges[at][1] <= extent.start:
            at += 1
        for begin, end in (ranges[each] for each in range(at, len(ranges))):
            if begin >= ends:
                break
            start, stop = max(begin, extent.start), min(end, ends)
            offset = None if extent.offset is None else extent.offset + start - extent.start
            yield replace(extent, start=start, length=stop - start, offset=offset)


def _of(index: int, data: bytes) -> int:
    if data == _ZEROS:
        return 0
    return int.from_bytes(hashlib.sha256(index.to_bytes(8, "big") + data).digest(), "big")


def _digest(value: int) -> Digest:
    return Digest(f"{value:064x}")
