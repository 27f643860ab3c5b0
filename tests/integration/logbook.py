"""The vocabulary of the log's tests: short ways to say which append is meant."""

import asyncio
from collections.abc import Callable, Sized
from datetime import UTC, datetime

from vmorch.core.ids import Position, RequestId, Stream
from vmorch.core.records import Append, NameClaim, NewEvent, Recorded, StreamAppend
from vmorch.log.interface import Log


def event(note: str = "", kind: str = "vm-noted") -> NewEvent:
    return NewEvent(kind=kind, schema=1, data=b'{"note":"%s"}' % note.encode(), meta=b'{"actor":"test"}')


def on(stream: str, expected: int, events: int = 1, note: str = "") -> StreamAppend:
    return StreamAppend(stream=Stream(stream), expected=expected, events=(event(note),) * events)


def an_append(
    *streams: StreamAppend,
    claims: tuple[NameClaim, ...] = (),
    releases: tuple[NameClaim, ...] = (),
    request: str | None = None,
) -> Append:
    return Append(streams=streams, claims=claims, releases=releases, request=RequestId(request) if request else None)


def name(text: str, stream: str) -> NameClaim:
    return NameClaim(scope="vm", name=text, stream=Stream(stream))


async def everything(log: Log) -> list[Recorded]:
    events: list[Recorded] = []
    while page := await log.read(Position(len(events))):
        events += page
    return events


def more_than(things: Sized, count: int) -> Callable[[], bool]:
    return lambda: len(things) > count


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  the condition lies in another process or task
            await asyncio.sleep(0.01)


def a_clock() -> Callable[[], datetime]:
    return lambda: datetime.now(UTC)


def assert_well_formed(events: list[Recorded]) -> None:
    """Positions and each stream's versions count from 1; times never go back."""
    assert [one.position for one in events] == list(range(1, len(events) + 1))
    versions: dict[Stream, int] = {}
    for one in events:
        versions[one.stream] = versions.get(one.stream, 0) + 1
        assert one.version == versions[one.stream], one
    times = [one.recorded_at for one in events]
    assert times == sorted(times)
