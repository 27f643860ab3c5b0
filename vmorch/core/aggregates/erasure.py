"""Erasures: whose key was destroyed on purpose, so that nobody can read any more what the log holds sealed for them."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Final

from msgspec.structs import replace

from vmorch.core.ids import Stream, stream
from vmorch.core.messages import Event, message
from vmorch.core.value import Value

STREAM: Final = stream("audit", "erasures")
"""There is one such stream: what is erased must be found in one place."""


class Erasures(Value, frozen=True, kw_only=True):
    """Since when the key of each subject is destroyed, folded from the stream."""

    version: int = 0
    subjects: Mapping[Stream, datetime] = {}


class ErasureEvent(Event, frozen=True, kw_only=True):
    """A fact about what can be read of the log."""

    subject: ClassVar[str] = "audit"

    def apply(self, erasures: Erasures, at: datetime) -> Erasures:
        """The erasures after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("audit.subject-erased")
class SubjectErased(ErasureEvent, frozen=True, kw_only=True):
    """The key of this subject (`vm/ID`, `token/ID`) is to be destroyed, and nothing is sealed for it ever again. It is
    recorded before the key goes."""

    key_of: Stream

    def apply(self, erasures: Erasures, at: datetime) -> Erasures:
        return replace(erasures, subjects={**erasures.subjects, self.key_of: at})


def erase(erasures: Erasures, subject: Stream) -> list[ErasureEvent]:
    """Record that a subject's key goes; nothing if that is recorded already."""
    return [] if subject in erasures.subjects else [SubjectErased(key_of=subject)]
