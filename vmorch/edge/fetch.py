"""Fetching what a caller names by URL, without becoming the caller's way into the server's own networks.

The name is resolved here, once for each hop; every address it has must be allowed, and the connection goes to
an address that was judged, never to the name again. Redirects are hops and are judged the same way. No proxy and
no credentials come from the environment.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urljoin, urlsplit

import httpx2
from msgspec import Struct

from vmorch.core.errors import Rejected
from vmorch.edge.addresses import Address, Network, may_reach, parse

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name."""

MAX_REDIRECTS = 5
MAX_URL = 2048
CONNECT_WITHIN = 10.0
SILENT_WITHIN = 30.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_PRINTABLE = re.compile(r"^[!-~]+$")
_HOST = re.compile(r"^(?=.{1,253}\.?$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*"
                   r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$")
_NUMBER = re.compile(r"^(0[xX][0-9a-fA-F]*|[0-9]+)$")


class Target(Struct, frozen=True, kw_only=True):
    """A URL taken apart by us, so that no second parser can read another host in it."""

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Download(Struct, frozen=True, kw_only=True):
    """A response that has begun: its size in bytes if told, and its body."""

    total: int | None
    chunks: AsyncGenerator[bytes, None]


def target_of(url: str) -> Target:
    """The parts of a URL. Raises Rejected `bad-url` for everything but plain http and https."""
    if not url or len(url) > MAX_URL or not _PRINTABLE.match(url) or "\\" in url:
        raise _bad(f"a URL has at most {MAX_URL} printable ASCII characters and no backslash")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad(str(error)) from error
    if parts.scheme not in _PORTS:
        raise _bad(f"{parts.scheme or 'no scheme'}: only http and https are fetched")
    if "@" in parts.netloc:
        raise _bad("a URL here carries no user or password")
    if port == 0:
        raise _bad("port 0")
    host = parts.hostname or ""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(
        scheme=parts.scheme,
        host=host,
        port=port or _PORTS[parts.scheme],
        path=path,
        address=_literal(host, bracketed=parts.netloc.startswith("[")),
    )


def _literal(host: str, *, bracketed: bool) -> Address | None:
    """The host's address if it is one in its usual spelling, None for a name. Raises Rejected `bad-url`."""
    try:
        address = parse(host)
    except ValueError as error:
        # what ends in a number is an address to somebody: 0x7f.1, 2130706433, 0177.0.0.1
        last = host.rstrip(".").rpartition(".")[2]
        if bracketed or not _HOST.match(host) or _NUMBER.match(last):
            raise _bad(f"{host!r} is neither a host name nor an address in its usual spelling") from error
        return None
    if (address.version == 6) != bracketed:
        raise _bad(f"{host!r} is not how an address is written in a URL")
    return address


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses that the system's resolver knows. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class Fetcher:
    """Fetches by GET. `allowed` are networks that may be reached although they are not public."""

    def __init__(
        self,
        allowed: Sequence[Network],
        *,
        max_bytes: int,
        seconds: float,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = tuple(allowed)
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._resolver = resolver
        self._tls = tls or ssl.create_default_context()

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Download]:
        """The body behind a URL, as it comes.

        Raises Rejected: `bad-url` (refused before anything is sent there), `fetch-failed`, `image-too-large`.
        """
        timeout = httpx2.Timeout(SILENT_WITHIN, connect=CONNECT_WITHIN)
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpx2.AsyncClient(
                    verify=self._tls, timeout=timeout, trust_env=False, follow_redirects=False
                ) as client,
            ):
                response, target = await self._follow(client, target_of(url))
                try:
                    yield Download(total=self._total(response), chunks=self._chunks(response, target))
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise _failed(f"not done within {self._seconds:g} s") from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise _failed(f"{type(error).__name__}: {error}") from error

    async def _follow(self, client: httpx2.AsyncClient, target: Target) -> tuple[httpx2.Response, Target]:
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._get(client, target)
            if response.status_code not in _REDIRECTS:
                if response.status_code == 200:
                    return response, target
                await response.aclose()
                raise _failed(f"{target.host} answered {response.status_code}")
            location = response.headers.get("Location", "")
            await response.aclose()
            if not location:
                raise _failed(f"{target.host} redirects to nowhere")
            if not _PRINTABLE.match(location):
                raise _bad(f"{target.host} redirects to an unprintable URL")
            after = target_of(urljoin(f"{target.scheme}://{target.authority}{target.path}", location))
            if target.scheme == "https" and after.scheme != "https":
                raise _bad(f"{target.host} redirects from https to {after.scheme}")
            target = after
        raise _failed(f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, client: httpx2.AsyncClient, target: Target) -> httpx2.Response:
        addresses = await self._judged(target)
        for index, address in enumerate(addresses):
            url = httpx2.URL(
                scheme=target.scheme, host=str(address), port=target.port, raw_path=target.path.encode("ascii")
            )
            request = client.build_request(
                "GET",
                url,
                headers={"Host": target.authority, "Accept-Encoding": "identity", "User-Agent": "vmorch"},
                # certificate and SNI are the name's, the connection is the address's
                extensions={"sni_hostname": target.host},
            )
            try:
                return await client.send(request, stream=True)
            except httpx2.ConnectError:
                if index == len(addresses) - 1:
                    raise
        raise _failed(f"{target.host} has no address")

    async def _judged(self, target: Target) -> list[Address]:
        if target.address is not None:
            addresses = [target.address]
        else:
            try:
                async with asyncio.timeout(CONNECT_WITHIN):
                    addresses = [parse(each) for each in await self._resolver(target.host, target.port)]
            except OSError as error:
                raise _failed(f"{target.host} is not known: {error}") from error
            except ValueError as error:
                raise _bad(f"{target.host} has an address that is not one: {error}") from error
        refused = [each for each in addresses if not may_reach(each, self._allowed)]
        if refused:
            # one bad address is enough: which of several would be used is not ours alone to say
            raise _bad(
                f"{target.host} is at {refused[0]}, which is not public", facts={"address": str(refused[0])}
            )
        return addresses

    def _total(self, response: httpx2.Response) -> int | None:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _failed("the server compresses what was asked for as it is")
        told = response.headers.get("Content-Length", "")
        total = int(told) if told.isascii() and told.isdecimal() else None
        if total is not None and total > self._max_bytes:
            raise Rejected("image-too-large", f"{total} bytes; {self._max_bytes} are allowed")
        return total

    async def _chunks(self, response: httpx2.Response, target: Target) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > self._max_bytes:
                raise Rejected("image-too-large", f"{target.host} sent more than {self._max_bytes} bytes")
            yield chunk


def _bad(why: str, *, facts: dict[str, str] | None = None) -> Rejected:
    return Rejected("bad-url", why, facts=facts)


def _failed(why: str) -> Rejected:
    return Rejected("fetch-failed", why)
