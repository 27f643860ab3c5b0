"""One JetStream stream over a link: what it holds, making it, and adding to its end and nowhere else.

Must not decide what the stream ought to hold.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from vmorch.bus.bus import BusError
from vmorch.bus.link import Link

ANSWERS_WITHIN = 5.0
"""Seconds that the broker may take for a request about the stream."""
DUPLICATES_WITHIN = 120
"""Seconds for which the broker remembers message ids."""

_NO_STREAM, _NO_MESSAGE = 10059, 10037
_OUT_OF_TURN = (10070, 10071)
_NANO = 1_000_000_000


class StreamRefused(BusError):
    """The broker understood what was asked of the stream and refused it; the message says why."""

    code = "stream-refused"


class OutOfTurn(BusError):
    """The stream does not end where the message was to follow: somebody else wrote to it, or it was emptied."""

    code = "out-of-turn"


class Limits(Struct, frozen=True, kw_only=True):
    """What a stream keeps at most: seconds (0: for ever) and bytes."""

    seconds: int
    bytes: int


class StreamState(Struct, frozen=True, kw_only=True):
    """A stream as it is. `begun` is the sequence that it was to begin with; an empty one has `first` = `last` + 1."""

    begun: int
    first: int
    last: int
    bytes: int
    limits: Limits
    labels: Mapping[str, str]


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message that is to lie at `sequence`; `id` lets the broker drop a repeat."""

    sequence: int
    id: str
    subject: str
    data: bytes


class _Error(Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _State(Struct, frozen=True):
    first_seq: int = 0
    last_seq: int = 0
    bytes: int = 0


class _Message(Struct, frozen=True):
    data: str = ""


class _Answer(Struct, frozen=True):
    error: _Error | None = None
    config: dict[str, Any] = {}
    state: _State = _State()
    message: _Message = _Message()


class _Ack(Struct, frozen=True):
    error: _Error | None = None
    seq: int = 0


_read = msgspec.json.Decoder(_Answer).decode
_read_ack = msgspec.json.Decoder(_Ack).decode


class Stream:
    """The stream called `name`, which holds every message on `subjects`."""

    def __init__(self, link: Link, name: str, subjects: str) -> None:
        self._link = link
        self.name = name
        self._subjects = subjects

    async def state(self) -> StreamState | None:
        """What the stream is now; None if there is none. Raises BusError."""
        answer = await self._ask("INFO", missing=_NO_STREAM)
        if answer is None:
            return None
        config, state = answer.config, answer.state
        return StreamState(
            begun=max(int(config.get("first_seq") or 0), 1),
            first=state.first_seq,
            last=state.last_seq,
            bytes=state.bytes,
            limits=Limits(seconds=int(config.get("max_age") or 0) // _NANO, bytes=int(config.get("max_bytes") or -1)),
            labels=config.get("metadata") or {},
        )

    async def create(self, begin: int, limits: Limits, labels: Mapping[str, str]) -> None:
        """Make the stream, empty; its first message will lie at sequence `begin`. Raises BusError."""
        config = {
            "name": self.name,
            "subjects": [self._subjects],
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "num_replicas": 1,
            "first_seq": begin,
            "duplicate_window": DUPLICATES_WITHIN * _NANO,
            # what is published is only ever added to; the oldest goes by the limits
            "deny_delete": True,
            "metadata": dict(labels),
            **_limited(limits),
        }
        await self._ask("CREATE", config)

    async def limit(self, limits: Limits) -> None:
        """Have the stream keep more or less than before. Raises BusError."""
        answer = await self._ask("INFO")
        assert answer is not None
        await self._ask("UPDATE", answer.config | _limited(limits))

    async def delete(self) -> None:
        """Let go of the stream and all that it holds; harmless if there is none. Raises BusError."""
        await self._ask("DELETE", missing=_NO_STREAM)

    async def message(self, sequence: int) -> bytes | None:
        """The message at a sequence, if it is kept. Raises BusError."""
        answer = await self._ask("MSG.GET", {"seq": sequence}, missing=_NO_MESSAGE)
        return None if answer is None else b64decode(answer.message.data)

    async def extend(self, messages: Sequence[Outgoing], follows: str = "") -> None:
        """Add messages of consecutive sequences to the end, and return when all of them are kept.

        Any of them that would not lie at its own sequence, after the message before it, is refused by the broker
        together with all that follow. `follows` is the id that the first one must find at the end, if there is any.
        Raises OutOfTurn, StreamRefused, or another BusError when it is unknown how many were kept.
        """
        *before, last = messages
        for each in before:
            # each names the one that it follows, so that the acknowledgement of the last speaks for all
            await self._link.publish(each.subject, each.data, _headers(each, follows))
            follows = each.id
        answer = await self._link.request(last.subject, last.data, ANSWERS_WITHIN, _headers(last, follows))
        try:
            ack = _read_ack(answer)
        except msgspec.MsgspecError as error:
            raise StreamRefused(f"the broker's answer cannot be read: {error}") from error
        if ack.error is not None and ack.error.err_code not in _OUT_OF_TURN:
            raise StreamRefused(ack.error.description)
        if ack.error is not None or ack.seq != last.sequence:
            raise OutOfTurn(f"{self.name} does not go on at {last.sequence}")

    async def _ask(self, verb: str, body: Mapping[str, Any] | None = None, missing: int = 0) -> _Answer | None:
        data = b"" if body is None else msgspec.json.encode(body)
        raw = await self._link.request(f"$JS.API.STREAM.{verb}.{self.name}", data, ANSWERS_WITHIN)
        try:
            answer = _read(raw)
        except msgspec.MsgspecError as error:
            raise StreamRefused(f"the broker's answer cannot be read: {error}") from error
        if answer.error is None:
            return answer
        if missing and answer.error.err_code == missing:
            return None
        raise StreamRefused(answer.error.description)


def _limited(limits: Limits) -> dict[str, int]:
    return {"max_age": limits.seconds * _NANO, "max_bytes": limits.bytes}


def _headers(message: Outgoing, follows: str) -> dict[str, str]:
    headers = {"Nats-Msg-Id": message.id, "Nats-Expected-Last-Sequence": str(message.sequence - 1)}
    if follows:
        # somebody else's message moves the sequence as well as ours does, but it does not have our id
        headers["Nats-Expected-Last-Msg-Id"] = follows
    return headers
