"""No image makes anybody read anything but the image itself: every file here was built by hand to try."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmorch.core.errors import Rejected
from vmorch.core.image_header import ImageHeader, read_image_header
from vmorch.core.spec import ImageFormat

CLUSTER = 65536
GIB = 1024**3
MAX = 16 * GIB

Build = Callable[[], bytes]


def qcow2(
    *,
    version: int = 3,
    backing: bytes = b"",
    cluster_bits: int = 16,
    size: int = GIB,
    crypt: int = 0,
    l1_size: int = 2,
    l1_offset: int = 3 * CLUSTER,
    refcount_offset: int = CLUSTER,
    refcount_clusters: int = 1,
    snapshots: int = 0,
    incompatible: int = 0,
    compatible: int = 0,
    autoclear: int = 0,
    refcount_order: int = 4,
    header_length: int = 112,
    compression: int = 0,
    extensions: bytes = b"\0" * 8,
    length: int = 4 * CLUSTER,
) -> bytes:
    """A qcow2 file as `qemu-img create` would lay it out, with the fields that a test wants otherwise."""
    body = header_length + len(extensions) if version == 3 else 72 + len(extensions)
    head = b"QFI\xfb" + struct.pack(
        ">IQIIQIIQQIIQ",
        version,
        body if backing else 0,
        len(backing),
        cluster_bits,
        size,
        crypt,
        l1_size,
        l1_offset,
        refcount_offset,
        refcount_clusters,
        snapshots,
        0,
    )
    if version >= 3:
        head += struct.pack(">QQQII", incompatible, compatible, autoclear, refcount_order, header_length)
        head += bytes([compression]) + b"\0" * 7
    return (head + extensions + backing).ljust(length, b"\0")


def extension(kind: int, data: bytes) -> bytes:
    """One header extension, then the end of them."""
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0") + b"\0" * 8


def raw(start: bytes = b"", *, at: int = 0, length: int = 1 << 20, tail: bytes = b"") -> bytes:
    """A raw disk with a boot sector, something at a place, and something in its last sector."""
    disk = bytearray(length)
    disk[510:512] = b"\x55\xaa"
    disk[at : at + len(start)] = start
    if tail:
        disk[-512 : -512 + len(tail)] = tail
    return bytes(disk)


def read(image: bytes, *, declared: ImageFormat | None = None, most: int = MAX) -> ImageHeader:
    """Read an image's header as the control plane and the agent do."""
    asked = 0

    def read_at(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        assert offset >= 0
        assert asked <= 8 << 20, "a header is never a reason to read much"
        return image[offset : offset + length]

    return read_image_header(read_at, len(image), max_virtual_size=most, declared=declared)


def test_an_honest_qcow2_tells_its_virtual_size() -> None:
    assert read(qcow2()) == ImageHeader("qcow2", GIB)
    assert read(qcow2(version=2), declared="qcow2") == ImageHeader("qcow2", GIB)


def test_a_header_of_the_shortest_length_is_understood() -> None:
    image = bytearray(qcow2(header_length=104))
    image[104:120] = bytes(16)
    assert read(bytes(image)).virtual_size == GIB


def test_names_of_features_and_lazy_refcounts_are_harmless() -> None:
    names = struct.pack(">BB46s", 0, 0, b"dirty bit")
    assert read(qcow2(compatible=1, extensions=extension(0x6803F857, names))).virtual_size == GIB


def test_zstd_clusters_and_extended_l2_entries_are_understood() -> None:
    assert read(qcow2(incompatible=1 << 3, compression=1)).format == "qcow2"
    assert read(qcow2(incompatible=1 << 4, l1_size=4)).format == "qcow2"


@pytest.mark.parametrize(
    "disk",
    [raw(), raw(b"EFI PART", at=512), raw(b"CD001", at=0x8001), raw(b"\x53\xef", at=1024 + 56)],
    ids=["mbr", "gpt", "hybrid iso", "file system"],
)
def test_a_raw_disk_is_as_large_as_its_file(disk: bytes) -> None:
    assert read(disk, declared="raw") == ImageHeader("raw", len(disk))
    assert read(disk) == ImageHeader("raw", len(disk))


BACKING_NAMES = [
    b"/etc/shadow",
    b"../../../etc/passwd",
    b'json:{"driver":"file","filename":"/etc/shadow"}',
    b'json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sda"}}',
    b"nbd://10.64.0.1/secret",
    b"http://169.254.169.254/latest/meta-data",
    b"fat:rw:/etc",
    b"/dev/vda",
    b"\0",
]

HOSTILE: dict[str, Build] = {
    **{f"backing {name.decode()}": (lambda name=name: qcow2(backing=name)) for name in BACKING_NAMES},  # type: ignore[misc]
    "backing, version 2": lambda: qcow2(version=2, backing=b"/etc/shadow"),
    "backing offset without a name": lambda: qcow2()[:8] + struct.pack(">Q", 120) + qcow2()[16:],
    "backing length without an offset": lambda: qcow2()[:16] + struct.pack(">I", 11) + qcow2()[20:],
    "backing format": lambda: qcow2(extensions=extension(0xE2792ACA, b"raw")),
    "external data file, bit": lambda: qcow2(incompatible=1 << 2),
    "external data file, name": lambda: qcow2(extensions=extension(0x44415441, b"/etc/shadow")),
    "external data file, bit and name": lambda: qcow2(
        incompatible=1 << 2, extensions=extension(0x44415441, b'json:{"filename":"/dev/sda"}')
    ),
    "external data file after a harmless extension": lambda: qcow2(
        extensions=extension(0x6803F857, b"")[:-8] + extension(0x44415441, b"/etc/shadow")
    ),
    "raw external, autoclear": lambda: qcow2(autoclear=1 << 1),
    "dirty": lambda: qcow2(incompatible=1 << 0),
    "corrupt": lambda: qcow2(incompatible=1 << 1),
    "unknown incompatible bit": lambda: qcow2(incompatible=1 << 5),
    "highest incompatible bit": lambda: qcow2(incompatible=1 << 63),
    "every incompatible bit": lambda: qcow2(incompatible=(1 << 64) - 1),
    "AES": lambda: qcow2(crypt=1),
    "LUKS": lambda: qcow2(crypt=2),
    "LUKS header extension": lambda: qcow2(extensions=extension(0x0537BE77, bytes(16))),
    "unknown encryption": lambda: qcow2(crypt=0xFFFFFFFF),
    "unknown extension": lambda: qcow2(extensions=extension(0xDEADBEEF, b"x")),
    "bitmaps": lambda: qcow2(extensions=extension(0x23852875, bytes(24))),
    "extension beyond the cluster": lambda: qcow2(extensions=struct.pack(">II", 0x6803F857, 0xFFFFFFF8)),
    "extensions without an end": lambda: qcow2(extensions=struct.pack(">II", 0x6803F857, 0) * 8000),
    "snapshots": lambda: qcow2(snapshots=1),
    "65,536 snapshots": lambda: qcow2(snapshots=65536),
    "version 0": lambda: qcow2(version=0),
    "version 1": lambda: qcow2(version=1),
    "version 4": lambda: qcow2(version=4),
    "tiny clusters": lambda: qcow2(cluster_bits=8),
    "huge clusters": lambda: qcow2(cluster_bits=22),
    "absurd clusters": lambda: qcow2(cluster_bits=0xFFFFFFFF),
    "no clusters": lambda: qcow2(cluster_bits=0),
    "small clusters with extended L2": lambda: qcow2(cluster_bits=9, incompatible=1 << 4),
    "no disk": lambda: qcow2(size=0),
    "half a sector": lambda: qcow2(size=GIB + 1),
    "L1 too short": lambda: qcow2(size=8 * GIB, l1_size=1),
    "L1 of 32 GiB": lambda: qcow2(l1_size=0xFFFFFFFF),
    "L1 over the header": lambda: qcow2(l1_offset=0),
    "L1 not aligned": lambda: qcow2(l1_offset=3 * CLUSTER + 8),
    "L1 beyond the end": lambda: qcow2(l1_offset=1 << 40),
    "L1 at the last byte of the address space": lambda: qcow2(l1_offset=(1 << 64) - CLUSTER),
    "no refcounts": lambda: qcow2(refcount_clusters=0),
    "refcounts of 256 TiB": lambda: qcow2(refcount_clusters=0xFFFFFFFF),
    "refcounts over the header": lambda: qcow2(refcount_offset=0),
    "refcounts beyond the end": lambda: qcow2(refcount_offset=1 << 50),
    "absurd refcounts": lambda: qcow2(refcount_order=7),
    "short header": lambda: qcow2(header_length=96),
    "odd header": lambda: qcow2(header_length=109),
    "endless header": lambda: qcow2(header_length=0xFFFFFFF8),
    "unknown compression": lambda: qcow2(incompatible=1 << 3, compression=2),
    "compression that is not announced": lambda: qcow2(compression=1),
    "cut off in the first bytes": lambda: qcow2()[:5],
    "cut off in the header": lambda: qcow2()[:80],
    "cut off before its tables": lambda: qcow2()[:1024],
    "qcow2 and VHD at once": lambda: qcow2()[:-512] + b"conectix".ljust(512, b"\0"),
    "qcow2 and DMG at once": lambda: qcow2()[:-512] + b"koly".ljust(512, b"\0"),
    "qcow2 and ISO at once": lambda: qcow2()[:0x8001] + b"CD001" + qcow2()[0x8006:],
    "empty": lambda: b"",
    "odd raw": lambda: raw()[:-1],
    "QED": lambda: raw(b"QED\0"),
    "VMDK": lambda: raw(b"KDMV"),
    "VMDK, ESX": lambda: raw(b"COWD"),
    "VMDK description": lambda: raw(b'# Disk DescriptorFile\nversion=1\nRW 1 FLAT "/etc/shadow" 0\n'),
    "VMDK description in other letters": lambda: raw(b'\n \t# DISK descriptorfile\nRW 1 FLAT "/etc/shadow"\n'),
    "VMDK description with other comments": lambda: raw(b'# hello\n\nversion = 1\nRW 1 FLAT "/etc/shadow"\n'),
    "VDI": lambda: raw(b"<<< Oracle VM VirtualBox Disk Image >>>\n"),
    "VDI magic alone": lambda: raw(b"\x7f\x10\xda\xbe", at=64),
    "VHD, dynamic": lambda: raw(b"conectix"),
    "VHD, fixed": lambda: raw(tail=b"conectix"),
    "VHD, old footer": lambda: raw(tail=b"\0conectix"),
    "VHDX": lambda: raw(b"vhdxfile"),
    "LUKS container": lambda: raw(b"LUKS\xba\xbe\0\1"),
    "LUKS2, second header": lambda: raw(b"SKUL\xba\xbe\0\2"),
    "Parallels": lambda: raw(b"WithouFreSpacExt"),
    "Bochs": lambda: raw(b"Bochs Virtual HD Image"),
    "cloop": lambda: raw(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    "DMG": lambda: raw(tail=b"koly"),
    "a file name": lambda: raw(b'json:{"driver":"qcow2","file.filename":"/etc/shadow"}'),
    "gzip": lambda: raw(b"\x1f\x8b\x08"),
    "xz": lambda: raw(b"\xfd7zXZ\0"),
    "zstd": lambda: raw(b"\x28\xb5\x2f\xfd"),
    "tar": lambda: raw(b"ustar", at=257),
}


def test_there_are_many_hostile_images() -> None:
    assert len({build() for build in HOSTILE.values()}) >= 80


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("declared", [None, "qcow2", "raw"])
def test_a_hostile_image_is_refused(name: str, declared: ImageFormat | None) -> None:
    with pytest.raises(Rejected) as refused:
        read(HOSTILE[name](), declared=declared)
    assert refused.value.code == "hostile-image"
    assert refused.value.reason


def test_a_raw_disk_that_is_qcow2_is_refused_even_without_backing() -> None:
    with pytest.raises(Rejected, match="declared raw"):
        read(qcow2(), declared="raw")


def test_a_qcow2_that_is_raw_is_refused() -> None:
    with pytest.raises(Rejected, match="declared qcow2"):
        read(raw(), declared="qcow2")


@pytest.mark.parametrize("size", [MAX + 512, 1 << 50])
def test_a_disk_above_the_limit_is_too_large(size: int) -> None:
    with pytest.raises(Rejected) as refused:
        read(qcow2(size=size, l1_size=4 << 20, length=(32 << 20) + 4 * CLUSTER))
    assert refused.value.code == "image-too-large"
    with pytest.raises(Rejected) as refused:
        read(raw(), most=1 << 19)
    assert refused.value.code == "image-too-large"


def accepts(image: bytes) -> bool:
    """Whether the image is accepted; it is refused in words, or the test fails."""
    refusal: Rejected | None = None
    try:
        read(image)
    except Rejected as refused:
        refusal = refused
    assert refusal is None or refusal.code in ("hostile-image", "image-too-large")
    return refusal is None


@given(st.binary(max_size=4096))
def test_no_bytes_at_all_crash_the_reader(image: bytes) -> None:
    accepts(image)
    accepts(b"QFI\xfb" + image)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=12),
    st.binary(min_size=1, max_size=64),
    st.sampled_from([2, 3]),
)
def test_no_change_to_a_header_makes_a_backing_file_acceptable(
    changes: list[tuple[int, int]], name: bytes, version: int
) -> None:
    image = bytearray(qcow2(version=version, backing=name))
    for at, value in changes:
        image[at] = value
    # unless the change itself took the backing file or the format away
    still = image[:4] == b"QFI\xfb" and (any(image[8:16]) or any(image[16:20]))
    assert not (accepts(bytes(image)) and still)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=8))
def test_what_is_accepted_never_needs_another_file(changes: list[tuple[int, int]]) -> None:
    image = bytearray(qcow2())
    for at, value in changes:
        image[at] = value
    if not accepts(bytes(image)) or image[:4] != b"QFI\xfb":
        return
    assert not any(image[8:20])
    assert not any(image[32:36])
    if image[7] == 3:
        assert int.from_bytes(image[72:80], "big") & ~0b11000 == 0
    assert b"DATA" not in bytes(image[72:2048])
