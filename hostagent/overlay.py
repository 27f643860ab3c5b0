"""The bytes of a layer that holds nothing yet.

A qcow2 file with clusters of 64 KiB, as qemu-img makes one. It is written here because a snapshot waits for it, perhaps
with the guest's file systems at rest: qemu-img, and libvirt by way of QEMU, take 10 ms for each disk.
"""

import struct

from hostagent.qcow2_header import header

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_MAPPED_BY_ENTRY = _CLUSTER // 8 * _CLUSTER
"""Bytes of the disk that one entry of the first table stands for."""
LARGEST = 32 * 1024 * 1024 // 8 * _MAPPED_BY_ENTRY
"""Bytes of the largest disk that QEMU opens: its first table takes 32 MiB."""
_BACKING_FORMAT = 0xE2792ACA


def empty_layer(virtual_size: int, below: str) -> bytes:
    """The whole file of a layer above the one in the file `below`, of `virtual_size` bytes: a multiple of 512, and at
    most LARGEST."""
    entries = -(-virtual_size // _MAPPED_BY_ENTRY)
    count_table, counts, first_table = (number * _CLUSTER for number in (1, 2, 3))
    length = first_table + -(-entries * 8 // _CLUSTER) * _CLUSTER
    first = header(
        virtual_size=virtual_size,
        cluster_bits=_CLUSTER_BITS,
        first_table=first_table,
        first_entries=entries,
        count_table=count_table,
        extensions=struct.pack(">II8s8x", _BACKING_FORMAT, len(b"qcow2"), b"qcow2"),
        below=below.encode(),
    )
    used = (1).to_bytes(2, "big") * (length // _CLUSTER)
    clusters = (first, counts.to_bytes(8, "big"), used)
    return b"".join(each.ljust(_CLUSTER, b"\0") for each in clusters).ljust(length, b"\0")
