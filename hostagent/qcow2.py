"""Read what a layer of ours says of itself, without asking any program that would follow its words.

Only the header is read: what it stands on, its size, whether anything was written to it. What it says is compared with
what it must say, and nothing is opened because of it. Must not read images that come from outside: `core.image_header`
does.
"""

import os
from pathlib import Path

from msgspec import Struct

from vmorch.core.errors import Rejected

_MAGIC = b"QFI\xfb"
_V2_HEADER = 72
_HEAD = 64 * 1024
_CORRUPT = 1 << 1
_BACKING_FORMAT = 0xE2792ACA
_MAX_NAME = 1023
_MAX_L1_BYTES = 32 * 1024 * 1024


class LayerHeader(Struct, frozen=True):
    """`backing` is the file that it stands on with its format, empty if there is none; `virtual_size` is in bytes;
    `empty`: nothing was ever written to it."""

    backing: str
    backing_format: str
    virtual_size: int
    internal_snapshots: int
    corrupt: bool
    empty: bool


def read_layer(path: Path) -> LayerHeader | None:
    """What the file says of itself; None if it is not there. Raises Rejected `not-ours` if it is no qcow2 file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Rejected("not-ours", f"{path}: {error.strerror}") from error
    try:
        return _read(descriptor, path)
    finally:
        os.close(descriptor)


def is_qcow2(path: Path) -> bool:
    """Whether the file begins like a qcow2 image."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _read(descriptor: int, path: Path) -> LayerHeader:
    head = os.pread(descriptor, _HEAD, 0)
    if len(head) < _V2_HEADER or head[:4] != _MAGIC:
        raise Rejected("not-ours", f"{path} is no qcow2 file")

    def u32(at: int) -> int:
        return int.from_bytes(head[at : at + 4], "big")

    def u64(at: int) -> int:
        return int.from_bytes(head[at : at + 8], "big")

    version, offset, length = u32(4), u64(8), u32(16)
    if length > _MAX_NAME or offset + length > len(head):
        raise Rejected("not-ours", f"{path}: its header is damaged")
    header_length = u32(100) if version >= 3 else _V2_HEADER
    return LayerHeader(
        backing=head[offset : offset + length].decode(errors="replace"),
        backing_format=_backing_format(head, header_length),
        virtual_size=u64(24),
        internal_snapshots=u32(60),
        corrupt=version >= 3 and bool(u64(72) & _CORRUPT),
        empty=_is_empty(descriptor, u64(40), u32(36) * 8),
    )


def _backing_format(head: bytes, at: int) -> str:
    while at + 8 <= len(head):
        kind, length = (int.from_bytes(head[at + part : at + part + 4], "big") for part in (0, 4))
        if kind == _BACKING_FORMAT:
            return head[at + 8 : at + 8 + length].decode(errors="replace")
        if kind == 0:
            break
        at += 8 + -(-length // 8) * 8
    return ""


def _is_empty(descriptor: int, offset: int, length: int) -> bool:
    """Whether no part of the disk is mapped: the table that everything is found by holds only zeros."""
    table = os.pread(descriptor, min(length, _MAX_L1_BYTES), offset)
    return not any(table)
