"""Lay out a BIOS-bootable disk: partition table, boot code, filesystems.

Must not need root, loop devices or mounts: every part is made as a file and written at its offset.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec

from deploy.lab.images.errors import ImageBuildError, run_tool

SECTOR = 512
MIB = 1024 * 1024
FAT16, LINUX = 0x0E, 0x83
_BOOT_CODE_ROOM = 440


class Partition(msgspec.Struct, frozen=True):
    """One primary partition; start and size in bytes, both multiples of a sector."""

    start: int
    size: int
    kind: int = LINUX


def boot_record(boot_code: bytes, partitions: list[Partition], signature: int) -> bytes:
    """The disk's first sector: boot code, disk signature, up to four partitions of which the first is active."""
    if len(partitions) > 4 or len(boot_code) > _BOOT_CODE_ROOM:
        raise ImageBuildError("boot-record-full", "an MBR holds four partitions and 440 bytes of code")
    table = b""
    for number, part in enumerate(partitions):
        active = 0x80 if number == 0 else 0
        # the cylinder fields say "use the sector numbers", which is what every BIOS since 1996 does
        table += struct.pack(
            "<B3sB3sII",
            active, b"\xfe\xff\xff", part.kind, b"\xfe\xff\xff", part.start // SECTOR, part.size // SECTOR,
        )  # fmt: skip
    head = boot_code.ljust(_BOOT_CODE_ROOM, b"\0") + struct.pack("<IH", signature, 0)
    return head + table.ljust(64, b"\0") + b"\x55\xaa"


def blank(path: Path, size: int) -> Path:
    """An empty sparse file of `size` bytes."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
    return path


def ext4(path: Path, size: int, label: str, uuid: str, options: list[str], content: Path | None = None) -> Path:
    """An ext4 filesystem image of `size` bytes, filled from the directory `content`."""
    blank(path, size)
    source: list[str | Path] = ["-d", content] if content is not None else []
    run_tool(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", label, "-U", uuid, "-m", "0",
        "-E", f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=0", *options, *source, path,
    )  # fmt: skip
    return path


def write_at(disk: Path, offset: int, image: Path) -> None:
    """Copy an image into the disk at `offset`, leaving its empty megabytes as holes."""
    with image.open("rb") as source, disk.open("r+b") as target:
        while block := source.read(MIB):
            if block.count(0) != len(block):
                target.seek(offset)
                target.write(block)
            offset += len(block)


def to_qcow2(raw: Path, out: Path, *, compress: bool) -> None:
    """Convert a raw disk into a qcow2 that appears under its final name only when it is whole."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        run_tool("qemu-img", "convert", *(["-c"] if compress else []), "-f", "raw", "-O", "qcow2", raw, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
