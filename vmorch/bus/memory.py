"""The bus inside one process: for simulations, whose outcome must depend on nothing but their seed.

No sockets, threads, clocks or randomness of its own: messages go in the order in which the event loop runs.
Must not be kinder than a real broker: what it cannot deliver at once is refused or lost.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from vmorch.bus.bus import (
    BusUnavailable,
    Handler,
    NoResponders,
    ReplyAllowed,
    RequestTimeout,
    check_size,
)
from vmorch.bus.serving import Serving

_CLOSE_WITHIN = 5.0


class MemoryBus:
    """Carries messages between its links, each of which can be cut off and healed."""

    def __init__(self) -> None:
        self._links: dict[str, MemoryLink] = {}
        self._awaited: dict[str, asyncio.Future[bytes]] = {}
        self._requests = 0

    def link(
        self, name: str, inbox_prefix: str, on_state: Callable[[bool], None] | None = None
    ) -> "MemoryLink":
        """A new, connected link. Names are unique among the links that are open."""
        if name in self._links:
            raise ValueError(f"there is a link {name!r} already")
        link = MemoryLink(self, name, inbox_prefix, on_state)
        self._links[name] = link
        link._connect()
        return link

    def cut(self, name: str) -> None:
        """Break a link, as a lost cable does once it is noticed."""
        self._links[name]._disconnect()

    def heal(self, name: str) -> None:
        """Let a broken link come back."""
        self._links[name]._connect()

    def _deliver(self, subject: str, reply: str, data: bytes) -> bool:
        takers = [link for link in self._links.values() if link._take(subject, reply, data)]
        return bool(takers)

    def _answer(self, reply: str, data: bytes) -> None:
        awaited = self._awaited.get(reply)
        if awaited is None:
            self._deliver(reply, "", data)
        elif not awaited.done():
            awaited.set_result(data)

    def _expect(self, inbox_prefix: str) -> tuple[str, asyncio.Future[bytes]]:
        self._requests += 1
        reply = f"{inbox_prefix}.{self._requests}"
        self._awaited[reply] = asyncio.get_running_loop().create_future()
        return reply, self._awaited[reply]

    def _forget(self, reply: str) -> None:
        del self._awaited[reply]

    def _remove(self, name: str) -> None:
        del self._links[name]


class _Connection:
    """One period of a link between two cuts."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting: set[asyncio.Task[None]] = set()

    def forget_waiting(self) -> None:
        for task in self.waiting:
            task.cancel()


class MemoryLink:
    """A `Bus` on a MemoryBus; made by `MemoryBus.link`."""

    def __init__(
        self, bus: MemoryBus, name: str, inbox_prefix: str, on_state: Callable[[bool], None] | None
    ) -> None:
        self._bus = bus
        self._name = name
        self._inbox_prefix = inbox_prefix
        self._on_state = on_state
        self._servings: list[Serving] = []
        self._connection: _Connection | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether the link is whole."""
        return self._connection is not None

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """See `Bus.request`."""
        check_size(data)
        connection = self._usable()
        reply, awaited = self._bus._expect(self._inbox_prefix)
        try:
            if not self._bus._deliver(subject, reply, data):
                raise NoResponders(f"nobody serves {subject}")
            ends: tuple[asyncio.Future[Any], ...] = (awaited, connection.lost)
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not awaited.done():
                why = "the connection broke" if connection.lost.done() else f"no answer within {timeout} s"
                raise RequestTimeout(f"{subject}: {why}")
            return awaited.result()
        finally:
            self._bus._forget(reply)

    async def serve(self, subject: str, handler: Handler, *, reply_allowed: ReplyAllowed) -> None:
        """See `Bus.serve`."""
        self._servings.append(Serving(subject, handler, reply_allowed))

    async def publish(self, subject: str, data: bytes) -> None:
        """See `Bus.publish`."""
        check_size(data)
        self._usable()
        self._bus._deliver(subject, "", data)

    async def close(self) -> None:
        """See `Bus.close`."""
        if self._closed:
            return
        self._closed = True
        if self._connection is not None:
            self._connection.forget_waiting()
        await asyncio.gather(*(serving.finish(_CLOSE_WITHIN) for serving in self._servings))
        self._disconnect()
        self._bus._remove(self._name)

    def _usable(self) -> _Connection:
        if self._connection is None:
            raise BusUnavailable(f"{self._name} has no connection to the bus")
        return self._connection

    def _connect(self) -> None:
        if self._connection is None:
            self._connection = _Connection()
            if self._on_state is not None:
                self._on_state(True)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.lost.set_result(None)
            connection.forget_waiting()
            if self._on_state is not None:
                self._on_state(False)

    def _take(self, subject: str, reply: str, data: bytes) -> bool:
        """Begin to handle a message if this link hears the subject; whether it does."""
        connection = self._connection
        if connection is None or self._closed:
            return False

        async def answer(reply: str, data: bytes) -> None:
            check_size(data)
            if connection.lost.done():
                raise BusUnavailable("the connection broke")
            self._bus._answer(reply, data)

        heard = [serving for serving in self._servings if _matches(serving.subject, subject)]
        for serving in heard:
            task = asyncio.create_task(serving.take(subject, reply, data, answer))
            connection.waiting.add(task)
            task.add_done_callback(connection.waiting.discard)
        return bool(heard)


def _matches(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and _same(wanted[:-1], given)
    return len(given) == len(wanted) and _same(wanted, given)


def _same(wanted: list[str], given: list[str]) -> bool:
    return all(word in ("*", found) for word, found in zip(wanted, given, strict=False))
