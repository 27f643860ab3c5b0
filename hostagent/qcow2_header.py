"""The first bytes of a qcow2 file of version 3, as its specification has them (QEMU, docs/interop/qcow2.txt)."""

import struct

EXTENDED_ENTRIES = 1 << 4
"""The feature by which an entry of a second table tells of each of a cluster's 32 parts whether it is there."""

_HEADER = struct.Struct(">4sI QI I Q I IQ QI IQ QQQ II 8x")
_COUNT_ORDER = 4
"""A count takes 2 to the power of this many bits."""


def header(
    *,
    virtual_size: int,
    cluster_bits: int,
    first_table: int,
    first_entries: int,
    count_table: int,
    count_clusters: int = 1,
    features: int = 0,
    extensions: bytes = b"",
    below: bytes = b"",
) -> bytes:
    """The header with its extensions and the name of the file below, if there is one. Sizes and places are in bytes;
    every count in the file takes two."""
    no_encryption, no_snapshots = (0,), (0, 0)
    fixed = _HEADER.pack(
        *(b"QFI\xfb", 3),
        *(_HEADER.size + len(extensions), len(below)) if below else (0, 0),
        cluster_bits,
        virtual_size,
        *no_encryption,
        *(first_entries, first_table),
        *(count_table, count_clusters),
        *no_snapshots,
        *(features, 0, 0),
        *(_COUNT_ORDER, _HEADER.size),
    )
    return fixed + extensions + below
