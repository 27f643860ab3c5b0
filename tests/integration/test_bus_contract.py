"""What every bus promises: over a real NATS server and inside one process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from bus_fixtures import CLUSTER, a_broker, until
from structlog.testing import capture_logs

from vmorch.bus import (
    Bus,
    BusUnavailable,
    MessageTooLarge,
    NoResponders,
    RequestTimeout,
    to_control_plane,
    to_nobody,
    to_sending_host,
)
from vmorch.bus.memory import MemoryBus
from vmorch.bus.serving import CONCURRENT
from vmorch.core.ids import HostId
from vmorch.wire import subjects
from vmorch.wire.envelopes import MAX_BODY

pytestmark = pytest.mark.anyio

H1 = HostId("h1")
COMMAND = subjects.command(CLUSTER, H1)
REPORT = subjects.report(CLUSTER, H1)
HEARTBEAT = subjects.heartbeat(CLUSTER, H1)
OnState = Callable[[bool], None]


class Network(Protocol):
    """A control plane and hosts on one bus, which can break down as a whole."""

    async def control_plane(self, on_state: OnState | None = None) -> Bus: ...
    async def host(self) -> Bus: ...
    def break_down(self) -> None: ...
    def recover(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._bus = MemoryBus()

    async def control_plane(self, on_state: OnState | None = None) -> Bus:
        return self._bus.link("server", subjects.server_inbox(CLUSTER), on_state)

    async def host(self) -> Bus:
        return self._bus.link("h1", subjects.inbox(H1))

    def break_down(self) -> None:
        self._bus.cut("server")
        self._bus.cut("h1")

    def recover(self) -> None:
        self._bus.heal("server")
        self._bus.heal("h1")


class OverNats:
    def __init__(self, directory: Path) -> None:
        self._running = ExitStack()
        self._broker = self._running.enter_context(contextmanager(a_broker)(directory))
        self._links = AsyncExitStack()

    async def control_plane(self, on_state: OnState | None = None) -> Bus:
        link = await self._broker.control_plane(on_state)
        self._links.push_async_callback(link.close)
        return link

    async def host(self) -> Bus:
        link = await self._broker.host("h1")
        self._links.push_async_callback(link.close)
        return link

    def break_down(self) -> None:
        self._broker.kill()

    def recover(self) -> None:
        self._broker.restart()

    async def close(self) -> None:
        await self._links.aclose()
        self._running.close()


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Network]:
    if request.param == "memory":
        yield InMemory()
        return
    network = OverNats(tmp_path)
    yield network
    await network.close()


async def echo(subject: str, reply: str, data: bytes) -> bytes:
    return b"echo " + data


def into(heard: list[bytes]) -> Callable[[str, str, bytes], Awaitable[None]]:
    async def handler(subject: str, reply: str, data: bytes) -> None:
        heard.append(data)

    return handler


async def test_a_request_gets_its_answer_in_both_directions(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    await host.serve(COMMAND, echo, reply_allowed=to_control_plane(CLUSTER))
    await server.serve(subjects.reports(CLUSTER), echo, reply_allowed=to_sending_host)
    assert await server.request(COMMAND, b"order", 5) == b"echo order"
    assert await host.request(REPORT, b"fact", 5) == b"echo fact"


async def test_concurrent_requests_get_their_own_answers(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    await host.serve(COMMAND, echo, reply_allowed=to_control_plane(CLUSTER))
    answers = await asyncio.gather(*(server.request(COMMAND, b"%d" % n, 20) for n in range(500)))
    assert answers == [b"echo %d" % n for n in range(500)]


async def test_a_request_that_nobody_serves_says_so_at_once(network: Network) -> None:
    server = await network.control_plane()
    async with asyncio.timeout(5):
        with pytest.raises(NoResponders):
            await server.request(COMMAND, b"order", 60)


async def test_a_request_without_an_answer_in_time_is_of_unknown_outcome(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    heard: list[bytes] = []
    await host.serve(COMMAND, into(heard), reply_allowed=to_control_plane(CLUSTER))
    with pytest.raises(RequestTimeout):
        await server.request(COMMAND, b"order", 0.2)
    assert heard == [b"order"]


async def test_a_published_message_reaches_everybody_who_hears_its_subject(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    exact: list[bytes] = []
    wild: list[bytes] = []
    await server.serve(HEARTBEAT, into(exact), reply_allowed=to_nobody)
    await server.serve(subjects.heartbeats(CLUSTER), into(wild), reply_allowed=to_nobody)
    await host.publish(HEARTBEAT, b"1")
    await host.publish(HEARTBEAT, b"2")
    await until(lambda: exact == wild == [b"1", b"2"])


async def test_a_failing_handler_is_logged_and_the_next_message_is_handled(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()

    async def fragile(subject: str, reply: str, data: bytes) -> bytes:
        return {b"good": b"fine"}[data]

    await host.serve(COMMAND, fragile, reply_allowed=to_control_plane(CLUSTER))
    with capture_logs() as logs, pytest.raises(RequestTimeout):
        await server.request(COMMAND, b"bad", 0.5)
    assert [entry["subject"] for entry in logs if entry["event"] == "handler failed"] == [COMMAND]
    assert await server.request(COMMAND, b"good", 5) == b"fine"


async def test_messages_are_handled_concurrently_but_not_without_bound(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    running, most = 0, 0
    full = asyncio.Event()

    async def slow(subject: str, reply: str, data: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == CONCURRENT:
            full.set()
        await full.wait()
        running -= 1
        return b""

    await host.serve(COMMAND, slow, reply_allowed=to_control_plane(CLUSTER))
    await asyncio.gather(*(server.request(COMMAND, b"", 20) for _ in range(3 * CONCURRENT)))
    assert most == CONCURRENT


async def test_a_message_that_wants_its_answer_elsewhere_is_dropped_unread(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    heard: list[bytes] = []
    await server.serve(subjects.reports(CLUSTER), into(heard), reply_allowed=to_nobody)
    with capture_logs() as logs, pytest.raises(RequestTimeout):
        await host.request(REPORT, b"fact", 0.5)
    assert heard == []
    assert [entry["subject"] for entry in logs if "foreign reply" in entry["event"]] == [REPORT]


async def test_a_message_too_large_for_the_wire_is_refused_before_it_is_sent(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    heard: list[bytes] = []
    await server.serve(subjects.heartbeats(CLUSTER), into(heard), reply_allowed=to_nobody)
    with pytest.raises(MessageTooLarge):
        await host.publish(HEARTBEAT, b"x" * (MAX_BODY + 1))
    with pytest.raises(MessageTooLarge):
        await host.request(REPORT, b"x" * (MAX_BODY + 1), 1)
    await host.publish(HEARTBEAT, b"x" * MAX_BODY)
    await until(lambda: [len(data) for data in heard] == [MAX_BODY])


async def test_what_cannot_be_sent_now_is_refused_and_never_delivered_later(network: Network) -> None:
    states: list[bool] = []
    server, host = await network.control_plane(states.append), await network.host()
    heard: list[bytes] = []
    await host.serve(COMMAND, into(heard), reply_allowed=to_control_plane(CLUSTER))
    network.break_down()
    await until(lambda: not server.connected and not host.connected)
    with pytest.raises(BusUnavailable):
        await server.publish(COMMAND, b"late")
    with pytest.raises(BusUnavailable):
        await server.request(COMMAND, b"late", 60)
    network.recover()
    await until(lambda: server.connected and host.connected)
    await server.publish(COMMAND, b"new")
    await until(lambda: b"new" in heard)
    assert heard == [b"new"]
    assert states == [True, False, True]


async def test_a_request_whose_connection_breaks_ends_at_once(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    arrived, never = asyncio.Event(), asyncio.Event()

    async def hang(subject: str, reply: str, data: bytes) -> None:
        arrived.set()
        await never.wait()

    await host.serve(COMMAND, hang, reply_allowed=to_control_plane(CLUSTER))
    asked = asyncio.create_task(server.request(COMMAND, b"order", 600))
    await arrived.wait()
    network.break_down()
    async with asyncio.timeout(10):
        with pytest.raises(RequestTimeout):
            await asked
    never.set()


async def test_an_answer_from_before_the_break_is_not_given_after_it(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    arrived, go = asyncio.Event(), asyncio.Event()

    async def wait(subject: str, reply: str, data: bytes) -> bytes:
        arrived.set()
        await go.wait()
        return b"too late"

    await host.serve(COMMAND, wait, reply_allowed=to_control_plane(CLUSTER))
    asked = asyncio.create_task(server.request(COMMAND, b"order", 600))
    await arrived.wait()
    network.break_down()
    await until(lambda: not server.connected and not host.connected)
    network.recover()
    await until(lambda: server.connected and host.connected)
    with capture_logs() as logs:
        go.set()
        await until(lambda: any(entry["event"] == "answer not sent" for entry in logs))
    with pytest.raises(RequestTimeout):
        await asked


async def test_a_subject_served_while_disconnected_is_heard_after_the_recovery(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    network.break_down()
    await until(lambda: not server.connected and not host.connected)
    await host.serve(COMMAND, echo, reply_allowed=to_control_plane(CLUSTER))
    network.recover()
    await until(lambda: server.connected and host.connected)
    assert await server.request(COMMAND, b"order", 5) == b"echo order"


async def test_closing_finishes_what_was_begun_and_takes_nothing_new(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    arrived, go = asyncio.Event(), asyncio.Event()

    async def wait(subject: str, reply: str, data: bytes) -> bytes:
        arrived.set()
        await go.wait()
        return b"done"

    await host.serve(COMMAND, wait, reply_allowed=to_control_plane(CLUSTER))
    asked = asyncio.create_task(server.request(COMMAND, b"order", 20))
    await arrived.wait()
    closing = asyncio.create_task(host.close())

    async def nobody_serves() -> bool:
        try:
            await server.request(COMMAND, b"another", 0.2)
        except NoResponders:
            return True
        except RequestTimeout:
            return False
        raise AssertionError("a closing link answered")

    async with asyncio.timeout(5):
        while not await nobody_serves():
            pass
    go.set()
    assert await asked == b"done"
    await closing
    assert not host.connected
    with pytest.raises(BusUnavailable):
        await host.publish(HEARTBEAT, b"")
    await host.close()


async def test_closing_does_not_wait_for_ever(network: Network) -> None:
    server, host = await network.control_plane(), await network.host()
    arrived = asyncio.Event()
    given_up: list[bool] = []

    async def hang(subject: str, reply: str, data: bytes) -> None:
        arrived.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append(True)
            raise

    await host.serve(COMMAND, hang, reply_allowed=to_control_plane(CLUSTER))
    await server.publish(COMMAND, b"")
    await arrived.wait()
    async with asyncio.timeout(10):
        await host.close()
    assert given_up == [True]
