"""Where the server listens, and when it must not."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from vmorch.edge.serve import CannotListen, listen_tcp, listen_unix, serve

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def an_app() -> Starlette:
    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", hello)])
    app.state.stopping = asyncio.Event()
    return app


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(unix: Path | None, tcp: str | None) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(serve(an_app(), unix, tcp, stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def ask(unix: Path | None = None, base: str = "http://vmorch") -> str:
    transport = httpx2.AsyncHTTPTransport(uds=None if unix is None else str(unix), retries=5)
    async with httpx2.AsyncClient(transport=transport, base_url=base) as client:
        return (await client.get("/")).text


async def test_it_listens_on_a_unix_socket_and_tcp_at_once(directory: Path) -> None:
    path, port = directory / "run" / "api.sock", free_port()
    async with serving(path, f"127.0.0.1:{port}"):
        await asyncio.sleep(0)
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o660
        assert await ask(path) == await ask(base=f"http://127.0.0.1:{port}") == "hello"
    assert not path.exists()


async def test_a_dead_server_s_socket_is_replaced(directory: Path) -> None:
    path = directory / "api.sock"
    listen_unix(path).close()
    assert path.is_socket()
    async with serving(path, None):
        assert await ask(path) == "hello"


async def test_a_living_server_s_socket_is_left_alone(directory: Path) -> None:
    path = directory / "api.sock"
    async with serving(path, None):
        assert await ask(path) == "hello"
        with pytest.raises(CannotListen, match="another server"):
            await serve(an_app(), path, None, asyncio.Event())
        assert await ask(path) == "hello"


async def test_a_file_in_the_place_of_the_socket_is_not_removed(directory: Path) -> None:
    path = directory / "api.sock"
    path.write_text("precious")
    with pytest.raises(CannotListen, match="not a socket"):
        listen_unix(path)
    assert path.read_text() == "precious"


async def test_the_next_server_s_socket_survives_the_end_of_this_one(directory: Path) -> None:
    path = directory / "api.sock"
    async with serving(path, None):
        assert await ask(path) == "hello"
        path.unlink()
        next_one = listen_unix(path)
    assert path.is_socket()
    next_one.close()


async def test_a_path_that_is_too_long_says_so(directory: Path) -> None:
    with pytest.raises(CannotListen, match="at most 107 bytes"):
        listen_unix(directory / ("x" * 108))


@pytest.mark.parametrize("address", ["", ":80", "localhost", "localhost:", "localhost:http", "localhost:70000"])
async def test_an_address_that_is_none_says_so(address: str) -> None:
    with pytest.raises(CannotListen, match="HOST:PORT"):
        listen_tcp(address)


async def test_a_port_in_use_says_so_and_leaves_no_socket_behind(directory: Path) -> None:
    path = directory / "api.sock"
    with listen_tcp("127.0.0.1:0") as taken, pytest.raises(CannotListen, match="cannot listen on"):
        await serve(an_app(), path, f"127.0.0.1:{taken.getsockname()[1]}", asyncio.Event())
    assert not path.exists()


async def test_ipv6_hosts_stand_in_brackets() -> None:
    with listen_tcp("[::1]:0") as made:
        assert made.family is socket.AF_INET6
