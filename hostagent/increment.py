"""Write a qcow2 file that holds some stretches of a disk and says nothing of the rest.

Its clusters are of 128 KiB, of which each part of 4 KiB is there or not (extended L2 entries, QEMU 5.2 and later), so
that a small stretch takes little more than its own bytes, and its tables take 16 bytes for each cluster. QEMU itself
copies 64 KiB and more at a time, whatever its target. What is zeros, tables included, is left out of the file.
"""

from collections.abc import Iterator
from typing import BinaryIO

from hostagent.qcow2_header import EXTENDED_ENTRIES, header

PART = 4096
"""Bytes; stretches begin and end at multiples of it, or at the end of the disk."""
_CLUSTER_BITS = 17
_CLUSTER = 1 << _CLUSTER_BITS
_ENTRY, _COUNT = 16, 2
_BY_TABLE = _CLUSTER // _ENTRY
"""Clusters of the disk that a second table stands for."""
_OURS = 1 << 63
"""That nobody else uses what an entry points to."""
_ZEROS = bytes(PART)


class Increment:
    """An empty `file` into which stretches of a disk of `size` bytes are written one after another, as they lie on it;
    it is a qcow2 file once it was finished. Raises what writing raises."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        # the first one is the header's
        self._used = 1
        self._first: dict[int, int] = {}
        self._table: bytearray | None = None
        self._number = -1
        self._cluster = -1
        self._place = self._there = self._zeros = 0

    def add(self, start: int, data: bytes | bytearray) -> None:
        """The disk holds `data` from `start` on."""
        if len(data) % PART:
            data = data + bytes(PART - len(data) % PART)
        for at, length, zeros in _runs(start, data):
            cluster, within = divmod(at, _CLUSTER)
            self._enter(cluster)
            bits = ((1 << length // PART) - 1) << within // PART
            if zeros:
                self._zeros |= bits
            else:
                self._place = self._place or self._take(1)
                self._there |= bits
                self._write(self._place + within, data[at - start : at - start + length])

    def finish(self) -> None:
        """Everything is in the file that a reader needs."""
        self._enter(-1)
        self._keep_table()
        entries = -(-self._size // (_BY_TABLE * _CLUSTER))
        first = bytearray(entries * 8)
        for number, place in self._first.items():
            first[number * 8 : number * 8 + 8] = (place | _OURS).to_bytes(8, "big")
        first_table = self._take(-(-len(first) // _CLUSTER))
        self._write(first_table, first)
        count_table, clusters = self._count()
        start = header(
            virtual_size=self._size,
            cluster_bits=_CLUSTER_BITS,
            first_table=first_table,
            first_entries=entries,
            count_table=count_table,
            count_clusters=clusters,
            features=EXTENDED_ENTRIES,
        )
        self._write(0, start)
        self._file.truncate(self._used * _CLUSTER)
        self._file.flush()

    def _enter(self, cluster: int) -> None:
        """What comes next belongs to this cluster of the disk; what is known of the one before is in its table."""
        if cluster == self._cluster:
            return
        if self._cluster >= 0:
            number, index = divmod(self._cluster, _BY_TABLE)
            if number != self._number:
                self._keep_table()
                self._number, self._table = number, bytearray(_CLUSTER)
            assert self._table is not None
            pointer = self._place | _OURS if self._place else 0
            entry = pointer.to_bytes(8, "big") + (self._zeros << 32 | self._there).to_bytes(8, "big")
            self._table[index * _ENTRY : (index + 1) * _ENTRY] = entry
        self._cluster, self._place, self._there, self._zeros = cluster, 0, 0, 0

    def _keep_table(self) -> None:
        if self._table is not None:
            self._first[self._number] = self._take(1)
            self._write(self._first[self._number], self._table)
            self._table = None

    def _count(self) -> tuple[int, int]:
        """Each cluster is used once, those that say so included. Where the table of that is, and its clusters."""
        per_block, per_table = _CLUSTER // _COUNT, _CLUSTER // 8
        blocks, clusters = 1, 1
        while blocks * per_block < self._used + blocks + clusters:
            blocks += 1
            clusters = -(-blocks // per_table)
        counts, table = self._take(blocks), self._take(clusters)
        self._write(counts, (1).to_bytes(_COUNT, "big") * self._used)
        self._write(table, b"".join((counts + each * _CLUSTER).to_bytes(8, "big") for each in range(blocks)))
        return table, clusters

    def _take(self, clusters: int) -> int:
        place = self._used * _CLUSTER
        self._used += clusters
        return place

    def _write(self, place: int, data: bytes | bytearray) -> None:
        for at, length, zeros in _runs(place, data):
            if not zeros:
                self._file.seek(at)
                self._file.write(data[at - place : at - place + length])


def _runs(start: int, data: bytes | bytearray) -> Iterator[tuple[int, int, bool]]:
    """The stretches of `data` within one cluster each that are all zeros or have none in whole parts: where, how many
    bytes, and which of both."""
    begin, kind = 0, False
    for at in range(0, len(data), PART):
        zeros = data[at : at + PART] == _ZEROS[: len(data) - at]
        if at > begin and (zeros != kind or (start + at) % _CLUSTER == 0):
            yield start + begin, at - begin, kind
            begin = at
        if at == begin:
            kind = zeros
    if data:
        yield start + begin, len(data) - begin, kind
