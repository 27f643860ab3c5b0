"""The bytes of a layer that holds nothing yet.

A qcow2 file of version 3 with clusters of 64 KiB, as its specification has it (QEMU, docs/interop/qcow2.txt) and as
qemu-img makes one. It is written here because a snapshot waits for it, perhaps with the guest's file systems at rest:
qemu-img, and libvirt by way of QEMU, take 10 ms for each disk.
"""

import struct

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_MAPPED_BY_ENTRY = _CLUSTER // 8 * _CLUSTER
"""Bytes of the disk that one entry of the first table stands for."""
LARGEST = 32 * 1024 * 1024 // 8 * _MAPPED_BY_ENTRY
"""Bytes of the largest disk that QEMU opens: its first table takes 32 MiB."""
_HEADER = struct.Struct(">4sI QI I Q I IQ QI IQ QQQ II 8x")
_BACKING_FORMAT = 0xE2792ACA
_COUNT_ORDER = 4
"""A count takes 2 to the power of this many bits."""


def empty_layer(virtual_size: int, below: str) -> bytes:
    """The whole file of a layer above the one in the file `below`, of `virtual_size` bytes: a multiple of 512, and at
    most LARGEST."""
    entries = -(-virtual_size // _MAPPED_BY_ENTRY)
    count_table, counts, first_table = (number * _CLUSTER for number in (1, 2, 3))
    length = first_table + -(-entries * 8 // _CLUSTER) * _CLUSTER
    name, extensions = below.encode(), struct.pack(">II8s8x", _BACKING_FORMAT, len(b"qcow2"), b"qcow2")
    no_encryption, no_snapshots, no_features = (0,), (0, 0), (0, 0, 0)
    header = _HEADER.pack(
        *(b"QFI\xfb", 3),
        *(_HEADER.size + len(extensions), len(name)),
        _CLUSTER_BITS,
        virtual_size,
        *no_encryption,
        *(entries, first_table),
        *(count_table, 1),
        *no_snapshots,
        *no_features,
        *(_COUNT_ORDER, _HEADER.size),
    )
    used = (1).to_bytes(2, "big") * (length // _CLUSTER)
    clusters = (header + extensions + name, counts.to_bytes(8, "big"), used)
    return b"".join(each.ljust(_CLUSTER, b"\0") for each in clusters).ljust(length, b"\0")
