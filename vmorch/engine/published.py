"""The published log: every committed event goes out to a JetStream stream, in order and once per position.

The sequence of a message in the stream is the event's position. Each message names the one it must follow, so that
servers that publish at once can neither leave a gap nor write a position twice; whoever finds himself out of turn looks
where the stream ends and goes on from there. The stream remembers nothing that the log does not: it can be wiped at
any moment and is then filled again. Must not decide anything, and must not write to the log.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta

import msgspec
import structlog
from msgspec import Struct

from vmorch.bus.bus import BusError
from vmorch.bus.jetstream import Limits, Outgoing, Stream, StreamState
from vmorch.core.cloudevents import event_id, rendered, schema_uri
from vmorch.core.ids import Position
from vmorch.core.records import Recorded
from vmorch.engine.effects import Clock
from vmorch.log.errors import LogUnavailable
from vmorch.log.interface import Log
from vmorch.views.projector import ProjectionStatus
from vmorch.wire import subjects
from vmorch.wire.envelopes import MAX_BODY

logger = structlog.get_logger()

NAME = "published-log"
CHUNK = 200
"""Events that one acknowledgement answers for."""
SPACING = 0.05
"""Seconds between two batches: what is committed meanwhile shares the next."""
LOOK = 5.0
"""Seconds between looks whether the stream is still what it was."""
RETRY = 1.0
"""Seconds until the next try after the broker refused or was away."""
INCARNATION = "vmorch-incarnation"

_HEADERS = 4096
"""Bytes of a message that its subject and headers may take."""


class _Identity(Struct, frozen=True):
    id: str = ""
    time: datetime | None = None
    subject: str = ""
    dataschema: str = ""


_read_identity = msgspec.json.Decoder(_Identity).decode


class Published:
    """Fills one cluster's stream from one log."""

    def __init__(
        self, log: Log, stream: Stream, cluster: str, limits: Limits, clock: Clock, *, look: float = LOOK
    ) -> None:
        self.log = log
        self.stream = stream
        self.cluster = cluster
        self.limits = limits
        self.clock = clock
        self._look = look
        self._position = Position(0)
        self._trouble = ""

    async def run(self) -> None:
        """Publish, for ever; what the broker refuses or loses is published again once it can be."""
        while True:
            try:
                await self._publish()
            except (BusError, LogUnavailable) as error:
                if str(error) != self._trouble:
                    logger.warning("the published log waits", why=str(error))
                self._trouble = str(error)
            await asyncio.sleep(RETRY)

    async def status(self) -> ProjectionStatus:
        """How far the stream is, as the broker says; it need not be this process that fills it."""
        trouble = ""
        try:
            async with asyncio.timeout(1):
                state = await self.stream.state()
            self._position = Position(state.last if state is not None else 0)
        except (BusError, TimeoutError) as error:
            trouble = str(error) or "NATS is silent"
        head = await self.log.head()
        return ProjectionStatus(name=NAME, position=self._position, head=head, poisoned={}, trouble=trouble)

    async def _publish(self) -> None:
        """Bring the stream level with the log and keep it so, until something is in the way."""
        at, follows = await self.level()
        logger.info("publishing", after=at, stream=self.stream.name)
        self._trouble = ""
        async with aclosing(_with_pauses(self.log.follow(at), self._look)) as batches:
            async for batch in batches:
                if not batch:
                    state = await self.stream.state()
                    if state is None or state.last != at or not await self._belongs(state):
                        return
                    follows = _end(state)
                for start in range(0, len(batch), CHUNK):
                    part = batch[start : start + CHUNK]
                    await self.stream.extend([self._message(record) for record in part], follows)
                    at = part[-1].position
                    follows = str(at)
                if batch:
                    await asyncio.sleep(SPACING)

    async def level(self) -> tuple[Position, str]:
        """The position that the stream stands at, after making it this log's if it was not, and the id of the message
        there, if it is kept. Raises BusError."""
        state = await self.stream.state()
        if state is not None and not await self._belongs(state):
            logger.warning("the published log is not this log's and is filled anew", stream=self.stream.name)
            await self.stream.delete()
            state = None
        if state is None:
            begin = await self._oldest() + 1
            await self.stream.create(begin, self.limits, {INCARNATION: self.log.incarnation})
            return Position(begin - 1), ""
        if state.limits != self.limits:
            await self.stream.limit(self.limits)
        return Position(state.last), _end(state)

    async def _oldest(self) -> Position:
        """The last position that is too old to be kept."""
        if not self.limits.seconds:
            return Position(0)
        return await self.log.position_at(self.clock.now() - timedelta(seconds=self.limits.seconds))

    async def _belongs(self, state: StreamState) -> bool:
        """Whether the stream holds this log up to where it ends, but for what its limits took."""
        if state.labels.get(INCARNATION) != self.log.incarnation or state.last > await self.log.head():
            return False
        if state.first > state.begun and not await self._outlived(state):
            return False
        return state.first > state.last or await self._ends_as_the_log(state)

    async def _outlived(self, state: StreamState) -> bool:
        """Whether the limits explain that what lay before the first message is gone."""
        if state.bytes + MAX_BODY >= self.limits.bytes:
            return True
        return state.first - 1 <= await self._oldest()

    async def _ends_as_the_log(self, state: StreamState) -> bool:
        # a log that was restored from a backup has the same incarnation and may have grown past the stream's end
        text = await self.stream.message(state.last)
        records = await self.log.read(Position(state.last - 1), 1)
        if text is None or not records:
            return False
        try:
            found = _read_identity(text)
        except msgspec.MsgspecError:
            return False
        (record,) = records
        return found == _Identity(
            id=event_id(self.log.incarnation, record.position),
            time=record.recorded_at,
            subject=record.stream,
            dataschema=schema_uri(record.kind, record.schema),
        )

    def _message(self, record: Recorded) -> Outgoing:
        return Outgoing(
            sequence=record.position,
            id=str(record.position),
            subject=subjects.published(self.cluster, record.stream, record.kind),
            data=rendered(record, self.cluster, self.log.incarnation, MAX_BODY - _HEADERS),
        )


def _end(state: StreamState) -> str:
    return str(state.last) if state.first <= state.last else ""


async def _with_pauses(batches: AsyncIterator[list[Recorded]], every: float) -> AsyncGenerator[list[Recorded], None]:
    """The batches as they come, and an empty one whenever none came for so many seconds."""
    following = asyncio.ensure_future(anext(batches))
    try:
        while True:
            await asyncio.wait({following}, timeout=every)
            if not following.done():
                yield []
                continue
            batch = following.result()
            following = asyncio.ensure_future(anext(batches))
            yield batch
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
