"""What every event log promises, whether it lies in Postgres or in memory.

Callers depend on this page alone. Must not import a database.
"""

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import Append, Recorded


class Appended(Struct, frozen=True, kw_only=True):
    """Where an append's events lie; `repeated`: they were written by an earlier append of the same request."""

    first: Position
    last: Position
    recorded_at: datetime
    repeated: bool


class Log(Protocol):
    """An append-only sequence of events at positions 1, 2, 3 ... in commit order, without gaps."""

    @property
    def incarnation(self) -> str:
        """Differs between any two logs that were not the same from their first event."""

    async def append(self, append: Append) -> Appended:
        """Write all of `append`, durably, or nothing.

        Raises `VersionConflict`, `NameTaken`, `InvalidAppend` or `LogFull` when nothing was written, and
        `LogUnavailable` when that is not known.
        """

    async def head(self) -> Position:
        """The last position; 0 for an empty log."""

    async def read(self, after: Position, limit: int = 1000, until: Position | None = None) -> list[Recorded]:
        """At most `limit` events after `after`, up to and including `until`, by position."""

    async def read_stream(
        self, stream: Stream, after_version: int = 0, until: Position | None = None
    ) -> list[Recorded]:
        """The events of one stream after `after_version`, as they stood at position `until`, by version."""

    def follow(
        self, after: Position, urgent: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[list[Recorded]]:
        """Every event after `after`, in order, each once, for ever, in non-empty batches.

        An event arrives soon after its commit and at the latest a second later. While the log is away
        the follower waits. While very much is appended here, it is let fall behind unless it is `urgent`.
        """

    async def request(self, request: RequestId) -> tuple[Position, Position] | None:
        """First and last position written for a request id, if any."""

    async def position_at(self, moment: datetime) -> Position:
        """The last position recorded at or before `moment`; 0 if none was."""

    async def missing(self) -> list[str]:
        """What is wrong with the files that hold some of the events; nothing, if each is where it is looked for."""
