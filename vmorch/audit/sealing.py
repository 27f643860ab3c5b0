"""Which events a seal holds, and whose key it is signed with. Must not read, sign or keep anything.

The log itself says whose: each key announces the next one, and signs the checkpoint that ends with that announcement.
So whoever trusts the first key can follow the chain.
"""

from collections.abc import Sequence

from msgspec import Struct

SPAN = 1000
"""Events that a seal holds at most."""
ANNOUNCED = "cluster.log-key-announced"
"""The kind of event that announces a key."""


class Announcement(Struct, frozen=True, kw_only=True):
    """An event that announces a key; `orphaned`: the key before it is lost and signs no more."""

    position: int
    key: str
    orphaned: bool = False


def key_in_force(announced: Sequence[Announcement], after: int) -> str | None:
    """The key that signs the seal of the events after `after`; None if none was ever announced.

    `announced` is in the order of the log.
    """
    lost = [each for each in announced if each.orphaned and each.position > after]
    before = [each for each in announced if each.position <= after]
    found = lost[-1:] or before[-1:] or announced[:1]
    return found[0].key if found else None


def seal_end(announced: Sequence[Announcement], after: int, head: int) -> int:
    """The size of the tree at the end of the seal that begins after `after`, in a log of `head` events."""
    turns = [each.position for each in announced if each.position > after]
    return min(head, after + SPAN, *turns[:1])
