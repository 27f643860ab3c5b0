"""RFC 6962 Merkle trees over hashes of leaves: grown at the right edge, proven, verified.

A tree of any size is known by the hashes of its perfect subtrees (its edge), so that it grows, and tells its root, in
O(log n). Must not know what the leaves are, nor where hashes are kept.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from msgspec import Struct

HASH = 32
"""Bytes of a hash."""
STRIDE = 8
"""Levels between those whose nodes are worth keeping: each stands for 256 of the kept level below."""


class Node(Struct, frozen=True, order=True):
    """A perfect subtree: the `index`-th group of `2**level` leaves."""

    level: int
    index: int


class Span(Struct, frozen=True):
    """The leaves from `low` (counted from 0) up to, and without, `high`."""

    low: int
    high: int


Lookup = Callable[[Node], bytes]
"""The hash of a perfect subtree."""


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf's bytes."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbours' parent."""
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that only grows. `edge` holds the hashes of its perfect subtrees, the largest first."""

    __slots__ = ("edge", "size")

    def __init__(self, size: int = 0, edge: Iterable[bytes] = ()) -> None:
        """Raises ValueError unless `edge` has a hash for each perfect subtree of a tree of `size` leaves."""
        self.size = size
        self.edge = list(edge)
        if size < 0 or len(self.edge) != size.bit_count() or any(len(each) != HASH for each in self.edge):
            raise ValueError(f"a tree of {size} leaves has another edge")

    def copy(self) -> "Tree":
        """The tree at this moment."""
        return Tree(self.size, self.edge)

    def push(self, hash: bytes, level: int = 0) -> None:
        """Add a perfect subtree of `2**level` leaves. Raises ValueError unless it begins where one may."""
        size, edge = self.size, self.edge
        if size & ((1 << level) - 1):
            raise ValueError(f"no subtree of level {level} begins at leaf {size}")
        rest = size >> level
        while rest & 1:
            hash = sha256(b"\x01" + edge.pop() + hash).digest()
            rest >>= 1
        edge.append(hash)
        self.size = size + (1 << level)

    def extend(self, leaves: Iterable[bytes]) -> list[tuple[Node, bytes]]:
        """Add leaves; the nodes completed by that whose level is a multiple of STRIDE, leaves excepted."""
        size, edge = self.size, self.edge
        completed: list[tuple[Node, bytes]] = []
        for leaf in leaves:
            hash, rest, level = leaf, size, 0
            while rest & 1:
                hash = sha256(b"\x01" + edge.pop() + hash).digest()
                rest >>= 1
                level += 1
                if not level % STRIDE:
                    completed.append((Node(level, size >> level), hash))
            edge.append(hash)
            size += 1
        self.size = size
        return completed

    def root(self) -> bytes:
        """The hash of the whole tree."""
        if not self.edge:
            return sha256(b"").digest()
        *left, root = self.edge
        for hash in reversed(left):
            root = sha256(b"\x01" + hash + root).digest()
        return root


def cover(low: int, high: int) -> list[Node]:
    """The fewest perfect subtrees that hold exactly the leaves from `low` to `high`, from left to right."""
    found: list[Node] = []
    while low < high:
        level = (high - low).bit_length() - 1
        if low:
            level = min(level, (low & -low).bit_length() - 1)
        found.append(Node(level, low >> level))
        low += 1 << level
    return found


def span_hash(span: Span, lookup: Lookup) -> bytes:
    """The hash of the subtree over a span that a proof asks for."""
    *left, root = [lookup(node) for node in cover(span.low, span.high)]
    for hash in reversed(left):
        root = node_hash(hash, root)
    return root


def inclusion(index: int, size: int) -> list[Span]:
    """What proves that the leaf `index` is in the tree of `size` leaves (RFC 6962 section 2.1.1), in its order."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path: list[Span] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(Span(middle, high))
            high = middle
        else:
            path.append(Span(low, middle))
            low = middle
    return path[::-1]


def consistency(old: int, size: int) -> list[Span]:
    """What proves that the tree of `old` leaves begins that of `size` (RFC 6962 section 2.1.2), in its order."""
    if not 0 <= old <= size:
        raise ValueError(f"a tree of {size} leaves does not grow from one of {old}")
    if old in (0, size):
        return []
    path: list[Span] = []
    low, high, whole = 0, size, True
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            path.append(Span(middle, high))
            high = middle
        else:
            path.append(Span(low, middle))
            low, whole = middle, False
    if not whole:
        path.append(Span(low, high))
    return path[::-1]


def includes(index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` proves that the leaf with this hash is at `index` of the tree (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, hash = index, size - 1, leaf
    for each in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            hash = node_hash(each, hash)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            hash = node_hash(hash, each)
        at, last = at >> 1, last >> 1
    return last == 0 and hash == root


def extends(old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether `path` proves that the one tree begins the other (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old <= size:
        return False
    if old == 0:
        return not path and old_root == Tree().root()
    if old == size:
        return not path and old_root == root
    if not path:
        return False
    rest = list(path) if old & (old - 1) else [old_root, *path]
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    one = two = rest[0]
    for each in rest[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            one, two = node_hash(each, one), node_hash(each, two)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            two = node_hash(two, each)
        at, last = at >> 1, last >> 1
    return last == 0 and one == old_root and two == root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)
