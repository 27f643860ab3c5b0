"""Listening: a Unix socket for this machine's operators, TCP for everybody else, both at once.

Must not handle signals; whoever composes the server says when it stops.
"""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog
import uvicorn
from starlette.applications import Starlette

logger = structlog.get_logger(__name__)

GRACE = 4
"""Seconds that requests under way have when the server stops."""
BACKLOG = 512

# sun_path holds 108 bytes with the closing NUL
_LONGEST_PATH = 107


class CannotListen(OSError):
    """An address cannot be listened on; the message says which and why."""

    code = "cannot-listen"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: Starlette, unix: Path | None, tcp: str | None, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then end within 5 seconds. `tcp` is HOST:PORT. Raises CannotListen."""
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        if unix is not None:
            sockets.append(stack.enter_context(listen_unix(unix)))
            stack.callback(_remove_own, unix, _identity(unix))
        if tcp is not None:
            sockets.append(stack.enter_context(listen_tcp(tcp)))
        await _serve(app, sockets, stop)


async def _serve(app: Starlette, sockets: list[socket.socket], stop: asyncio.Event) -> None:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        # the other parser that it could find takes headers without end
        http="h11",
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets), name="http")
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # endless answers end by themselves, so that only real work uses up the time of grace
        app.state.stopping.set()
        server.should_exit = True
        stopped.cancel()
        await serving


def listen_unix(path: Path) -> socket.socket:
    """A socket at `path` that owner and group may use. Raises CannotListen; a dead server's socket is replaced."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise CannotListen(errno.ENAMETOOLONG, f"a Unix socket's path has at most {_LONGEST_PATH} bytes: {path}")
    _remove_dead(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        # nobody can connect before it listens, so the mode is set in time
        path.chmod(0o660)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise CannotListen(error.errno, f"cannot listen on {path}: {error.strerror}") from error
    return made


def _remove_dead(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(errno.EEXIST, f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise CannotListen(error.errno or errno.EIO, f"{path} cannot be examined: {error}") from error
    raise CannotListen(errno.EADDRINUSE, f"another server listens on {path}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove_own(path: Path, identity: tuple[int, int]) -> None:
    # the next server may already have put its own in the place
    with suppress(FileNotFoundError):
        if _identity(path) == identity:
            path.unlink()


def listen_tcp(address: str) -> socket.socket:
    """A socket at HOST:PORT; an IPv6 host stands in brackets. Raises CannotListen."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise CannotListen(errno.EINVAL, f"{address!r} is not HOST:PORT")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(error.errno or errno.EINVAL, f"cannot listen on {address}: {error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(target)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise CannotListen(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    return made
