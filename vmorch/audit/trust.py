"""Whose signature counts: the keys that a verifier holds, and those that they vouch for.

A key is vouched for by the checkpoint that ends with its announcement, signed by a key that counted until then; that
key counts no more afterwards. Must not look at the tree: it is told which checkpoints are true to it.
"""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from vmorch.audit.notes import BadNote, Note, VerifierKey, read_key
from vmorch.audit.signing import signed_by


class _Announced(Struct, frozen=True):
    key: str
    orphaned: bool = False


class Trust:
    """The keys that count at one place of the log, from its beginning to its end."""

    def __init__(self, given: Iterable[VerifierKey]) -> None:
        self.active = list(given)
        self._coming: tuple[int, VerifierKey, bool] | None = None
        self._signing: VerifierKey | None = None
        self._retired: list[tuple[int, VerifierKey]] = []
        """Keys that counted up to a checkpoint of so many events, that one included."""

    def announce(self, position: int, data: bytes) -> None:
        """An event announces a key. Raises BadNote if it is none."""
        try:
            told = msgspec.json.decode(data, type=_Announced)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadNote(f"event {position} announces no key: {error}") from error
        self._coming = (position, read_key(told.key), told.orphaned)

    def signer(self, note: Note, size: int) -> VerifierKey | None:
        """The key that signed a checkpoint of `size` events, of those that count there."""
        counting = self.active
        if self._coming is not None:
            position, new, orphaned = self._coming
            if size > position or (orphaned and size == position):
                counting = [key for key in counting if key == new]
        counting = [*counting, *(key for last, key in self._retired if size <= last)]
        return next((key for key in counting if signed_by(note, key)), None)

    def accept(self, size: int, key: VerifierKey) -> None:
        """A checkpoint of `size` events that is true to the tree was signed by `key`, which counted."""
        if self._coming is not None:
            position, new, orphaned = self._coming
            if size == position and not orphaned:
                self._retired.append((position, key))
                self._retire(key, new)
            elif size >= position and key == new:
                self._retire(self._signing, new)
        self._signing = key

    def _retire(self, old: VerifierKey | None, new: VerifierKey) -> None:
        self._coming = None
        self.active = [each for each in self.active if each not in (old, new)] + [new]
