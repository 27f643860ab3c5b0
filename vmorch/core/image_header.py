"""Read what a disk image says it is, before any other program does, and refuse what could reach beyond it.

An image comes from anywhere, and programs that believe its header open whatever file it names. So this reader
knows two formats, qcow2 and raw, and refuses everything that it does not know. It must not open, seek or
allocate by the image's own figures: the caller hands in how to read, and few bytes are ever asked for.

Refuses with `hostile-image` (reaches beyond itself, contradicts itself, or is something else than these two) or with
`image-too-large`.
"""

from collections.abc import Callable

from vmorch.core.errors import Rejected
from vmorch.core.spec import ImageFormat
from vmorch.core.value import Value

ReadAt = Callable[[int, int], bytes]
"""The image's bytes from an offset on: that many, or fewer where the image ends."""

_QCOW2 = b"QFI\xfb"
_V2_HEADER, _V3_HEADER = 72, 104
_MAX_L1_BYTES = 32 * 1024 * 1024
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024
_MAX_EXTENSIONS = 64

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_RAW_EXTERNAL = 1 << 1  # among the autoclear bits

_END_OF_EXTENSIONS = 0
_FEATURE_NAMES = 0x6803F857
_REFUSED_EXTENSIONS = {
    0xE2792ACA: "names the format of a backing file",
    0x44415441: "names an external data file",
    0x0537BE77: "is encrypted (LUKS header)",
    0x23852875: "carries persistent bitmaps",
}

_FOREIGN_STARTS = (
    (_QCOW2, "qcow2 or qcow"),
    (b"QED\0", "QED"),
    (b"KDMV", "VMDK"),
    (b"COWD", "VMDK"),
    (b"VMDK", "VMDK"),
    (b"conectix", "VHD"),
    (b"vhdxfile", "VHDX"),
    (b"LUKS\xba\xbe", "LUKS"),
    (b"SKUL\xba\xbe", "LUKS"),
    (b"<<< ", "VDI"),
    (b"WithoutFreeSpace", "Parallels"),
    (b"WithouFreSpacExt", "Parallels"),
    (b"Bochs Virtual HD Image", "Bochs"),
    (b"OOOM", "User-mode Linux COW"),
    (b"#!/bin/sh\n#V2.0 Format", "cloop"),
    (b"encrdsa", "encrypted DMG"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7-zip"),
    (b"json:", "a file name in QEMU's JSON notation"),
)
_VDI_MAGIC = b"\x7f\x10\xda\xbe"
_ISO_MAGIC_AT = 0x8001
_SECTOR = 512


class ImageHeader(Value, frozen=True):
    """What an accepted image is. `virtual_size` is in bytes, as its guest sees it."""

    format: ImageFormat
    virtual_size: int


def read_image_header(
    read_at: ReadAt, size: int, *, max_virtual_size: int, declared: ImageFormat | None = None
) -> ImageHeader:
    """The format and virtual size of an image of `size` bytes. Raises Rejected with the codes named above.

    `declared` is what its owner says it is; anything else is refused. Sizes are in bytes.
    """
    if size <= 0:
        raise _hostile("the image is empty")
    found: ImageFormat = "qcow2" if read_at(0, len(_QCOW2)) == _QCOW2 else "raw"
    if declared is not None and declared != found:
        raise _hostile(
            f"the image was declared {declared} but its first bytes are those of a {found} one",
        )
    if found == "qcow2":
        _refuse_second_format(read_at, size)
        virtual = _Qcow2(read_at, size).check()
    else:
        _refuse_foreign(read_at, size)
        virtual = size
    if virtual > max_virtual_size:
        raise Rejected("image-too-large", f"the image's disk has {virtual} bytes; {max_virtual_size} are allowed")
    if virtual == 0 or virtual % _SECTOR:
        raise _hostile(f"the image's disk has {virtual} bytes, not a number of whole sectors")
    return ImageHeader(found, virtual)


class _Qcow2:
    """The first cluster of a qcow2 file, read field by field as its specification lays it out."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self._read_at = read_at
        self._size = size
        self._head = read_at(0, _V3_HEADER + 8)
        if len(self._head) < _V2_HEADER:
            raise _hostile("the qcow2 header is cut off")

    def check(self) -> int:
        """The virtual size in bytes, or Rejected."""
        version = self._u32(4)
        if version not in (2, 3):
            raise _hostile(f"qcow2 version {version} is not known")
        if self._u64(8) or self._u32(16):
            raise _hostile("the image names a backing file")
        if self._u32(32):
            raise _hostile("the image is encrypted")
        if self._u32(60):
            raise _hostile(f"the image holds {self._u32(60)} internal snapshots")
        cluster_bits = self._u32(20)
        if not 9 <= cluster_bits <= 21:
            raise _hostile(f"clusters of 2^{cluster_bits} bytes are not allowed")
        header_length, incompatible = (_V2_HEADER, 0) if version == 2 else self._check_version_3(cluster_bits)
        self._check_tables(1 << cluster_bits, extended=bool(incompatible & _EXTENDED_L2))
        self._check_extensions(header_length, 1 << cluster_bits)
        return self._u64(24)

    def _check_version_3(self, cluster_bits: int) -> tuple[int, int]:
        if len(self._head) < _V3_HEADER:
            raise _hostile("the qcow2 header is cut off")
        incompatible, autoclear = self._u64(72), self._u64(88)
        if incompatible & _DATA_FILE or autoclear & _RAW_EXTERNAL:
            raise _hostile("the image keeps its data in an external file")
        if incompatible & (_DIRTY | _CORRUPT):
            raise _hostile("the image is marked as dirty or corrupt")
        unknown = incompatible & ~(_COMPRESSION | _EXTENDED_L2)
        if unknown:
            raise _hostile(f"the image needs unknown features (bits {unknown:#x})")
        if incompatible & _EXTENDED_L2 and cluster_bits < 14:
            raise _hostile("extended L2 entries need clusters of at least 16 KiB")
        if self._u32(96) > 6:
            raise _hostile(f"refcounts of 2^{self._u32(96)} bits are not allowed")
        length = self._u32(100)
        if length < _V3_HEADER or length % 8 or length > min(1 << cluster_bits, self._size):
            raise _hostile(f"a header of {length} bytes is not allowed")
        compression = self._head[104] if length > _V3_HEADER and len(self._head) > _V3_HEADER else 0
        if compression > 1 or bool(compression) != bool(incompatible & _COMPRESSION):
            raise _hostile(f"compression type {compression} is not known or not announced")
        return length, incompatible

    def _check_tables(self, cluster: int, *, extended: bool) -> None:
        virtual, l1_entries = self._u64(24), self._u32(36)
        covered = cluster * (cluster // (16 if extended else 8))
        if l1_entries * 8 > _MAX_L1_BYTES or l1_entries < -(-virtual // covered):
            raise _hostile(f"an L1 table of {l1_entries} entries does not fit {virtual} bytes")
        self._within("L1 table", self._u64(40), l1_entries * 8, cluster)
        refcount_bytes = self._u32(56) * cluster
        if not 0 < refcount_bytes <= _MAX_REFCOUNT_TABLE_BYTES:
            raise _hostile(f"a refcount table of {refcount_bytes} bytes is not allowed")
        self._within("refcount table", self._u64(48), refcount_bytes, cluster)

    def _within(self, what: str, offset: int, length: int, cluster: int) -> None:
        if offset % cluster or (length and offset < cluster) or offset + length > self._size:
            raise _hostile(f"the {what} at {offset} does not lie inside the image")

    def _check_extensions(self, start: int, cluster: int) -> None:
        area = self._read_at(0, min(cluster, self._size))
        at = start
        for _ in range(_MAX_EXTENSIONS):
            if at + 8 > len(area):
                break
            kind, length = (int.from_bytes(area[at + part : at + part + 4], "big") for part in (0, 4))
            if kind == _END_OF_EXTENSIONS:
                return
            if kind in _REFUSED_EXTENSIONS:
                raise _hostile(f"the image {_REFUSED_EXTENSIONS[kind]}")
            if kind != _FEATURE_NAMES:
                raise _hostile(f"header extension {kind:#010x} is not known")
            at += 8 + -(-length // 8) * 8
        raise _hostile("the header extensions have no end")

    def _u32(self, at: int) -> int:
        return int.from_bytes(self._head[at : at + 4], "big")

    def _u64(self, at: int) -> int:
        return int.from_bytes(self._head[at : at + 8], "big")


def _hostile(reason: str) -> Rejected:
    return Rejected("hostile-image", reason)


def _refuse_foreign(read_at: ReadAt, size: int) -> None:
    """A raw disk may hold anything but another format's marks: a program that guesses would follow them."""
    start = read_at(0, 1024)
    for magic, name in _FOREIGN_STARTS:
        if start.startswith(magic):
            raise _hostile(f"the image was taken for raw but it is {name}")
    if start[64:68] == _VDI_MAGIC:
        raise _hostile("the image was taken for raw but it is VDI")
    if _is_vmdk_description(start):
        raise _hostile("the image was taken for raw but it is a VMDK description")
    if start[257:262] == b"ustar":
        raise _hostile("the image was taken for raw but it is a tar archive")
    _refuse_footer(read_at, size)


def _is_vmdk_description(start: bytes) -> bool:
    text = start.lower().lstrip(b" \t\r\n\0")
    if b"# disk descriptorfile" in text:
        return True
    lines = (line.strip() for line in text.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return first.replace(b" ", b"").startswith(b"version=")


def _refuse_second_format(read_at: ReadAt, size: int) -> None:
    _refuse_footer(read_at, size)
    if read_at(_ISO_MAGIC_AT, 5) == b"CD001":
        raise _hostile("the image is qcow2 and ISO 9660 at once")


def _refuse_footer(read_at: ReadAt, size: int) -> None:
    # 511: a VHD footer that old writers made one byte short
    tail = read_at(max(0, size - _SECTOR), _SECTOR)
    if tail[:8] == b"conectix" or tail[1:9] == b"conectix":
        raise _hostile("the image ends in the footer of a VHD")
    if tail[:4] == b"koly":
        raise _hostile("the image ends in the footer of a DMG")
