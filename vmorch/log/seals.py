"""Seals in Postgres: kept once, never changed, and the hashes that proofs are made of.

Must not decide what is sealed, and must not sign.
"""

from collections.abc import Iterable, Sequence
from typing import LiteralString

from msgspec import Struct

from vmorch.audit.merkle import HASH, STRIDE, Node, Tree
from vmorch.core.ids import Position
from vmorch.log.connections import Readers, Row

_SEAL: LiteralString = "SELECT size, after, leaves, edge, note FROM vmorch.seals"


# The framing of vmorch.audit.leaves, in SQL. Where the events are, hashing costs appends a third of what it costs to
# fetch them for it; a test holds the one against the other.
_LEAVES: LiteralString = """
SELECT string_agg(leaf, ''::bytea ORDER BY position),
       coalesce(min(position) = %(after)s + 1 AND max(position) = %(after)s + count(*), true)
  FROM (SELECT position,
               sha256('\\x00'::bytea || 'vmorch.event.1'::bytea || int8send(position) || int8send(version)
                      || int4send(schema) || int8send((extract(epoch FROM recorded_at) * 1000000)::bigint)
                      || int4send(octet_length(convert_to(stream, 'UTF8'))) || convert_to(stream, 'UTF8')
                      || int4send(octet_length(convert_to(kind, 'UTF8'))) || convert_to(kind, 'UTF8')
                      || int4send(octet_length(convert_to(meta::text, 'UTF8'))) || convert_to(meta::text, 'UTF8')
                      || sha256(convert_to(data::text, 'UTF8'))) AS leaf
          FROM vmorch.events WHERE position > %(after)s AND position <= %(until)s) AS hashed
"""


class Seal(Struct, frozen=True, kw_only=True):
    """The events after `after` up to `size` as they were sealed. `edge` is that of the tree of `size` events."""

    after: Position
    size: Position
    leaves: tuple[bytes, ...]
    edge: tuple[bytes, ...]
    note: str


class Seals:
    """The seals of the log at one database. Every method raises `LogUnavailable` while Postgres is away."""

    def __init__(self, url: str) -> None:
        self._readers = Readers(url)

    async def close(self) -> None:
        """Disconnect."""
        await self._readers.close()

    async def add(self, seal: Seal, nodes: Sequence[tuple[Node, bytes]]) -> bool:
        """Keep a seal and the nodes that it completed; False if another one follows the same seal already."""
        [(done,)] = await self._readers.fetch(
            "SELECT vmorch.seal(%s, %s, %s, %s, %s, %s::int[], %s::bigint[], %s::bytea[])",
            (
                seal.after,
                seal.size,
                b"".join(seal.leaves),
                b"".join(seal.edge),
                seal.note,
                [node.level for node, _ in nodes],
                [node.index for node, _ in nodes],
                [hash for _, hash in nodes],
            ),
        )
        return bool(done)

    async def last(self) -> Seal | None:
        """The newest seal."""
        return _first(await self._readers.fetch(_SEAL + " ORDER BY size DESC LIMIT 1"))

    async def at(self, size: Position) -> Seal | None:
        """The seal of exactly so many events."""
        return _first(await self._readers.fetch(_SEAL + " WHERE size = %s", (size,)))

    async def covering(self, size: Position) -> Seal | None:
        """The oldest seal of at least so many events."""
        return _first(await self._readers.fetch(_SEAL + " WHERE size >= %s ORDER BY size LIMIT 1", (size,)))

    async def between(self, low: Position, high: Position) -> list[Seal]:
        """The seals that hold any of the events after `low` up to `high`, in order."""
        rows = await self._readers.fetch(_SEAL + " WHERE size > %s AND after < %s ORDER BY size", (low, high))
        return [_seal(row) for row in rows]

    async def leaf_hashes(self, after: Position, until: Position) -> tuple[tuple[bytes, ...], bool]:
        """The leaf hashes of the events after `after` up to `until` as Postgres holds them now, in order, and whether
        they follow `after` and each other without a gap. Archived events are not among them."""
        [(joined, whole)] = await self._readers.fetch(_LEAVES, {"after": after, "until": until})
        return _hashes(joined or b""), bool(whole)

    async def hashes(self, nodes: Iterable[Node]) -> dict[Node, bytes]:
        """The hashes of perfect subtrees of what is sealed. Raises KeyError for one that is not kept whole."""
        return {node: await self._hash(node) for node in nodes}

    async def _hash(self, node: Node) -> bytes:
        base = node.level - node.level % STRIDE
        low, count = node.index << (node.level - base), 1 << (node.level - base)
        below = await (self._kept(base, low, count) if base else self._leaves(low, count))
        if len(below) != count:
            raise KeyError(node)
        tree = Tree()
        tree.extend(below)
        return tree.root()

    async def _kept(self, level: int, low: int, count: int) -> list[bytes]:
        rows = await self._readers.fetch(
            "SELECT hash FROM vmorch.seal_nodes WHERE level = %s AND index >= %s AND index < %s ORDER BY index",
            (level, low, low + count),
        )
        return [bytes(hash) for (hash,) in rows]

    async def _leaves(self, low: int, count: int) -> list[bytes]:
        found: list[bytes] = []
        for seal in await self.between(Position(low), Position(low + count)):
            found += seal.leaves[max(low - seal.after, 0) : low + count - seal.after]
        return found


def _first(rows: Sequence[Row]) -> Seal | None:
    return _seal(rows[0]) if rows else None


def _seal(row: Row) -> Seal:
    size, after, leaves, edge, note = row
    return Seal(after=after, size=size, leaves=_hashes(leaves), edge=_hashes(edge), note=note)


def _hashes(joined: bytes) -> tuple[bytes, ...]:
    joined = bytes(joined)
    return tuple([joined[at : at + HASH] for at in range(0, len(joined), HASH)])
