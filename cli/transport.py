"""HTTP/1.1 to the API over TCP, TLS or a Unix socket, with the standard library only.

Every request carries a request id, so that a repeat is harmless; repeats happen here and nowhere else, a few times
within a few seconds, and only when no connection came about or it broke. Must not know any resource.
"""

import http.client
import socket
import time
import urllib.parse
from collections.abc import Callable, Generator, Mapping
from typing import IO, TYPE_CHECKING

from msgspec import Struct

from cli.problems import Problem, from_document

if TYPE_CHECKING:
    from cli.sse import ServerEvent

PATIENCE = (0.1, 0.3, 0.7, 1.4)
"""Pauses before the repeats, in seconds."""
PATIENT = 5.0
"""When to repeat no more, in seconds from the first try: who waited long for an answer has waited enough."""

ANSWER_LIMIT = 60.0
CONNECT_LIMIT = 5.0
IDLE_LIMIT = 45.0
"""A stream that is silent for longer is opened anew, in case its other end is gone without a word."""

CHUNK = 256 * 1024

Query = Mapping[str, str | int | bool | list[str] | None]
Trace = Callable[[str], None]


class Address(Struct, frozen=True):
    """Where the API answers. `path` is a Unix socket's; else host and port count."""

    text: str
    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    prefix: str = ""


def parse_address(text: str) -> Address:
    """The address in `http://host:port`, `https://host` or `unix:/path`. Raises Problem `bad-request`."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("//") else path
        return Address(text, "unix", host="localhost", path=path)
    parts = urllib.parse.urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise Problem(
            "bad-request", f"{text!r} is no API address", hint="http://HOST:PORT, https://HOST or unix:/PATH"
        )
    return Address(
        text,
        parts.scheme,
        host=parts.hostname,
        port=port or (443 if parts.scheme == "https" else 80),
        prefix=parts.path.rstrip("/"),
    )


class Answer(Struct, frozen=True):
    """A response that is no error. `position` is the log position that it reflects, if it says so."""

    status: int
    content_type: str
    position: int | None
    body: bytes


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Away(Problem):
    """No connection came about, or it broke; `why` is the system's reason."""

    def __init__(self, address: Address, why: str) -> None:
        super().__init__(
            "server-unreachable",
            f"nothing answers at {address.text} ({why})",
            hint="vmorch context list shows where requests go; --api URL or VMORCH_API changes it",
        )
        self.why = why


class Transport:
    """One API as one caller. Safe to share between threads: each request has its own connection."""

    def __init__(self, address: Address, headers: Mapping[str, str], trace: Trace | None = None) -> None:
        self.address = address
        self._headers = dict(headers)
        self._trace = trace or (lambda line: None)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: float = ANSWER_LIMIT,
        patient: bool = True,
    ) -> Answer:
        """The answer. Raises Problem: the server's, or `server-unreachable` after the repeats.

        The request must be safe to repeat: a GET, or one whose headers carry a request id.
        """
        give_up = time.monotonic() + PATIENT
        for pause in (*PATIENCE, None):
            try:
                return self._once(method, _target(path, query), body, headers or {}, limit)
            except Away as away:
                if pause is None or not patient or time.monotonic() + pause > give_up:
                    raise
                self._trace(f"{away}; trying again in {pause}s")
                time.sleep(pause)
        raise AssertionError("the loop above always returns or raises")

    def send_file(
        self,
        path: str,
        source: IO[bytes],
        size: int,
        *,
        query: Query,
        headers: Mapping[str, str],
        progress: Callable[[int], None],
    ) -> Answer:
        """PUT a file's bytes, telling `progress` how many are on their way. Never repeated: bytes are expensive."""
        connection = self._connect(ANSWER_LIMIT)
        try:
            connection.putrequest("PUT", self.address.prefix + _target(path, query))
            for name, value in {**self._headers, **headers}.items():
                connection.putheader(name, value)
            connection.putheader("Content-Type", "application/octet-stream")
            connection.putheader("Content-Length", str(size))
            connection.endheaders()
            self._pump(connection, source, progress)
            # the server hashes and inspects the file before it answers
            connection.sock.settimeout(600)
            return self._checked(connection.getresponse())
        except (http.client.HTTPException, OSError) as error:
            raise Away(self.address, _why(error)) from error
        finally:
            connection.close()

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "Generator[ServerEvent, None, None]":
        """The events of one stream until its end. Raises Away when the connection fails, Problem when refused."""
        import gc

        from cli.sse import EventParser

        # a stream may go on for days, unlike what this process began as
        gc.freeze()
        gc.enable()
        connection = self._connect(IDLE_LIMIT)
        try:
            response = self._send(
                connection,
                method,
                _target(path, query),
                body,
                {"Accept": "text/event-stream", **(headers or {})},
            )
            if response.status >= 400:
                raise from_document(self._read(response), response.status)
            parser = EventParser()
            try:
                while chunk := response.read1(CHUNK):
                    yield from parser.feed(chunk)
            except (http.client.HTTPException, OSError) as error:
                raise Away(self.address, _why(error)) from error
        finally:
            connection.close()

    def lines(self, path: str, *, query: Query | None = None) -> Generator[bytes, None, None]:
        """The lines of a long answer as they come, with their ends. Raises Away when the connection fails before the
        answer is over, Problem when refused."""
        connection = self._connect(IDLE_LIMIT)
        try:
            headers = {"Accept": "application/x-ndjson"}
            response = self._send(connection, "GET", _target(path, query), None, headers)
            if response.status >= 400:
                raise from_document(self._read(response), response.status)
            try:
                yield from response
            except (http.client.HTTPException, OSError) as error:
                raise Away(self.address, _why(error)) from error
        finally:
            connection.close()

    def _once(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], limit: float
    ) -> Answer:
        began = time.monotonic()
        connection = self._connect(limit)
        try:
            answer = self._checked(self._send(connection, method, target, body, headers))
        finally:
            connection.close()
        self._trace(f"{method} {target} -> {answer.status} in {time.monotonic() - began:.3f}s")
        return answer

    def _connect(self, limit: float) -> http.client.HTTPConnection:
        address = self.address
        connection: http.client.HTTPConnection
        if address.scheme == "unix":
            connection = _UnixConnection(address.path, min(limit, CONNECT_LIMIT))
        elif address.scheme == "https":
            connection = http.client.HTTPSConnection(
                address.host, address.port, timeout=min(limit, CONNECT_LIMIT)
            )
        else:
            connection = http.client.HTTPConnection(
                address.host, address.port, timeout=min(limit, CONNECT_LIMIT)
            )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise Away(self.address, _why(error)) from error
        connection.sock.settimeout(limit)
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        everything = {"Accept": "application/json", **self._headers, **headers}
        if body is not None:
            everything["Content-Type"] = "application/json"
        try:
            connection.request(method, self.address.prefix + target, body=body, headers=everything)
            return connection.getresponse()
        except (http.client.HTTPException, OSError) as error:
            raise Away(self.address, _why(error)) from error

    def _pump(
        self, connection: http.client.HTTPConnection, source: IO[bytes], progress: Callable[[int], None]
    ) -> None:
        done = 0
        try:
            while chunk := source.read(CHUNK):
                connection.send(chunk)
                done += len(chunk)
                progress(done)
        except (BrokenPipeError, ConnectionResetError):
            # the server has made up its mind already; its answer says why
            self._trace("the server stopped reading")

    def _checked(self, response: http.client.HTTPResponse) -> Answer:
        body = self._read(response)
        if response.status >= 400:
            raise from_document(body, response.status)
        position = response.getheader("Vmorch-Position", "")
        return Answer(
            response.status,
            response.getheader("Content-Type", "").partition(";")[0].strip(),
            int(position) if position.isdecimal() else None,
            body,
        )

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (http.client.HTTPException, OSError) as error:
            raise Away(self.address, _why(error)) from error


def _target(path: str, query: Query | None) -> str:
    parts = []
    for name, value in (query or {}).items():
        if value is None:
            continue
        for each in value if isinstance(value, list) else [value]:
            text = str(each).lower() if isinstance(each, bool) else str(each)
            parts.append(f"{urllib.parse.quote(name)}={urllib.parse.quote(text, safe='*,:/')}")
    if not parts:
        return path
    return path + ("&" if "?" in path else "?") + "&".join(parts)


def quote(ref: str) -> str:
    """A name or id as one segment of a path."""
    return urllib.parse.quote(ref, safe="")


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
