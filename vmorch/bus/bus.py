"""What control plane and agents may ask of the bus, whatever carries it.

A message is delivered at once or not at all; nothing is kept for later. Must not know any carrier.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from vmorch.wire.envelopes import MAX_BODY
from vmorch.wire.subjects import host_of, is_own_inbox, server_inbox

Handler = Callable[[str, str, bytes], Awaitable[bytes | None]]
"""Called with subject, reply subject ("" if no answer is awaited) and data; returns the answer, if any."""

ReplyAllowed = Callable[[str, str], bool]
"""Whether a message on a subject may ask for its answer on a reply subject."""


class BusError(Exception):
    """Something did not go over the bus."""

    code = "bus"


class BusUnavailable(BusError):
    """There is no connection: nothing was sent, and nothing will be."""

    code = "bus-unavailable"


class NoResponders(BusError):
    """Nobody serves the subject: the request reached no one."""

    code = "no-responders"


class RequestTimeout(BusError):
    """No answer came, in time or before the connection broke. The request may have been carried out or not."""

    code = "request-timeout"


class MessageTooLarge(BusError):
    """More bytes than one message may have: nothing was sent."""

    code = "message-too-large"


class Bus(Protocol):
    """One party's access to the bus."""

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now, as far as is known."""
        ...

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """The answer of whoever serves the subject; `timeout` in seconds.

        Raises NoResponders, BusUnavailable and MessageTooLarge if the request reached nobody, RequestTimeout
        if that is unknown.
        """
        ...

    async def serve(self, subject: str, handler: Handler, *, reply_allowed: ReplyAllowed) -> None:
        """Have every message on the subject (wildcards allowed) handled from now on, after reconnects too.

        Messages are handled concurrently, a bounded number at once. One that asks for an answer where
        `reply_allowed` forbids it is dropped unread. A handler that raises is logged and gives no answer.
        """
        ...

    async def publish(self, subject: str, data: bytes) -> None:
        """Send without an answer. Raises BusUnavailable or MessageTooLarge if it was not sent."""
        ...

    async def close(self) -> None:
        """Take no more messages, finish those begun (for a bounded time), leave."""
        ...


def to_sending_host(subject: str, reply: str) -> bool:
    """For the control plane: the host that the subject names is answered in its own inbox only."""
    return is_own_inbox(host_of(subject), reply)


def to_control_plane(cluster: str) -> ReplyAllowed:
    """For an agent: only the control plane is answered."""
    prefix = server_inbox(cluster) + "."
    return lambda _subject, reply: reply.startswith(prefix) and "*" not in reply and ">" not in reply


def to_nobody(_subject: str, _reply: str) -> bool:
    """For subjects on which nothing is ever answered."""
    return False


def check_size(data: bytes) -> None:
    """Raises MessageTooLarge for more than the broker would carry."""
    if len(data) > MAX_BODY:
        raise MessageTooLarge(f"{len(data)} bytes; a message has at most {MAX_BODY}")
