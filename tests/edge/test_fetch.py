"""Fetching by URL: what must never be reached, and what must arrive whole."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from vmorch.core.errors import Rejected
from vmorch.edge.addresses import Network, may_reach, network, parse
from vmorch.edge.fetch import Fetcher, Resolver

pytestmark = pytest.mark.anyio

LOOPBACK = (network("127.0.0.0/8"),)
BODY = b"image bytes " * 1000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Site:
    """A web server on loopback that answers each path as told and remembers who asked."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.port = 0
        self.silent = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1]
            host = next(line[6:] for line in head.split("\r\n") if line.lower().startswith("host: "))
            self.asked.append((path, host))
            writer.write(self.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
            await writer.drain()
            if path == "/hangs":
                await self.silent.wait()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def redirect(self, path: str, to: str, status: int = 302) -> None:
        self.answers[path] = f"HTTP/1.1 {status} Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")

    def serve(self, path: str, body: bytes = BODY, *headers: str) -> None:
        head = [f"Content-Length: {len(body)}", *headers]
        self.answers[path] = ("HTTP/1.1 200 OK\r\n" + "\r\n".join(head) + "\r\n\r\n").encode() + body


@asynccontextmanager
async def a_site(tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.handle, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        site.silent.set()
        server.close()
        await server.wait_closed()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as made:
        yield made


class Names:
    """A resolver that knows these names and remembers what it was asked."""

    def __init__(self, **known: Sequence[str] | Callable[[], Sequence[str]]) -> None:
        self.known = {name.replace("_", "."): addresses for name, addresses in known.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        found = self.known.get(host.rstrip(".").lower())
        if found is None:
            raise OSError("name or service not known")
        return found() if callable(found) else found


def fetcher(
    resolver: Resolver, *, allowed: Sequence[Network] = LOOPBACK, max_bytes: int = 10**6, seconds: float = 20
) -> Fetcher:
    return Fetcher(allowed, max_bytes=max_bytes, seconds=seconds, resolver=resolver)


async def get(by: Fetcher, url: str) -> bytes:
    async with by.fetch(url) as download:
        return b"".join([chunk async for chunk in download.chunks])


async def refusal(by: Fetcher, url: str) -> Rejected:
    with pytest.raises(Rejected) as caught:
        await get(by, url)
    return caught.value


async def test_a_body_arrives_whole_from_the_address_that_was_judged(site: Site) -> None:
    site.serve("/image?x=1")
    names = Names(images_example=["127.0.0.1"])
    assert await get(fetcher(names), f"http://images.example:{site.port}/image?x=1#part") == BODY
    assert site.asked == [("/image?x=1", f"images.example:{site.port}")]
    assert names.asked == ["images.example"]


async def test_a_redirect_is_followed_by_judging_it_anew(site: Site) -> None:
    site.redirect("/a", f"http://mirror.example:{site.port}/b")
    site.redirect("/b", "../c", 307)
    site.serve("/c")
    names = Names(images_example=["127.0.0.1"], mirror_example=["127.0.0.1"])
    assert await get(fetcher(names), f"http://images.example:{site.port}/a") == BODY
    assert names.asked == ["images.example", "mirror.example", "mirror.example"]


FORBIDDEN_ADDRESSES = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9",
    "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1",
    "2001:db8::1", "2002:7f00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "100::1", "5f00::1", "3fff::1",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN_ADDRESSES)
async def test_a_name_that_leads_to_a_private_or_reserved_address_is_refused(address: str) -> None:
    names = Names(evil_example=[address])
    assert (await refusal(fetcher(names, allowed=()), "http://evil.example/")).code == "bad-url"


@pytest.mark.parametrize("address", ["1.1.1.1", "151.101.2.132", "2a04:4e42::644", "::ffff:1.1.1.1"])
def test_public_addresses_may_be_reached(address: str) -> None:
    assert may_reach(parse(address), ())


def test_an_allowed_network_is_reached_through_its_mapped_form_too() -> None:
    assert may_reach(parse("::ffff:10.0.0.5"), (network("10.0.0.0/8"),))
    assert not may_reach(parse("10.0.0.5"), (network("10.1.0.0/16"),))


LITERALS = [
    "http://127.0.0.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://0.0.0.0/", "http://[::]/",
    # spellings that some resolver reads as an address
    "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0177.0.0.1/", "http://0x7f.0.0.1/",
    "http://127.1/", "http://127.0.1/", "http://127.0.0.1./", "http://0/", "http://127.0.0.0x1/",
    "http://00000127.0.0.1/", "http://256.0.0.1/", "http://1.2.3.4.5/",
    # other digits, other dots
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/", "http://127\u30020\u30020\u30021/", "http://\u24dbocalhost/", "http://loc%61lhost/",
    # another host for another reader
    "http://images.example@127.0.0.1/", "http://user:pass@images.example/", "http://images.example\\@127.0.0.1/",
    "http://images.example#@127.0.0.1/", "http://127.0.0.1\\.images.example/", "http://images.example:80@[::1]/",
    "http://images.example%00.evil/", "http://images.example /", "http://images.example\t/", "http://images.example\n/",
    "http://images.example/\r\nHost:%20evil", "http://[fe80::1%25eth0]/", "http://[v1.abc]/", "http://[127.0.0.1]/",
    "http:///image", "http://:80/", "http://./", "http://-a.example/", "http://a..example/",
    # other schemes and ports
    "file:///etc/passwd", "ftp://images.example/", "gopher://127.0.0.1:25/_x", "dict://127.0.0.1:11211/",
    "unix:///var/run/docker.sock", "data:,x", "images.example/x", "//images.example/", "", "http://images.example:0/",
    "http://images.example:65536/", "http://images.example:x/", "http://images.example/" + "a" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("url", LITERALS)
async def test_a_trick_in_the_url_is_refused_before_anything_is_sent(url: str) -> None:
    names = Names(images_example=["1.1.1.1"], localhost=["127.0.0.1"])
    if "#@" in url:
        # everything from # on is never part of the address
        names = Names(images_example=["127.0.0.1"])
    assert (await refusal(fetcher(names, allowed=()), url)).code == "bad-url"


REDIRECTS = [
    "http://127.0.0.1:{port}/secret", "http://evil.example:{port}/secret", "http://[::1]:{port}/secret",
    "http://2130706433:{port}/secret", "//evil.example:{port}/secret", "file:///etc/passwd", "ftp://images.example/x",
    "http://user@images.example:{port}/secret", "http:\\\\evil.example/", "http://0177.0.0.1:{port}/secret",
    "http://[::ffff:10.0.0.1]:{port}/secret", "http://images.example:{port}/\x7fx", "gopher://images.example:{port}/x",
]  # fmt: skip


@pytest.mark.parametrize("to", REDIRECTS)
@pytest.mark.parametrize("status", [301, 308])
async def test_a_redirect_cannot_go_where_a_url_could_not(site: Site, to: str, status: int) -> None:
    names = Names(images_example=["127.0.0.77"], evil_example=["127.0.0.1"])
    server = await asyncio.start_server(site.handle, "127.0.0.77", site.port)
    site.redirect("/start", to.format(port=site.port), status)
    site.serve("/secret")
    try:
        by = fetcher(names, allowed=(network("127.0.0.77/32"),))
        assert (await refusal(by, f"http://images.example:{site.port}/start")).code == "bad-url"
        assert [path for path, _ in site.asked] == ["/start"]
    finally:
        server.close()
        await server.wait_closed()


async def test_a_name_is_resolved_once_for_a_hop_so_it_cannot_change_under_way(site: Site) -> None:
    site.serve("/image")
    turns = iter([["127.0.0.1"], ["10.0.0.1"], ["10.0.0.1"]])
    names = Names(rebinds_example=lambda: next(turns))
    by = fetcher(names)
    assert await get(by, f"http://rebinds.example:{site.port}/image") == BODY
    assert len(names.asked) == 1
    assert (await refusal(by, f"http://rebinds.example:{site.port}/image")).code == "bad-url"


async def test_a_name_that_changes_between_redirects_is_refused(site: Site) -> None:
    site.redirect("/again", "/image")
    site.serve("/image")
    turns = iter([["127.0.0.1"], ["169.254.169.254"]])
    refused = await refusal(
        fetcher(Names(rebinds_example=lambda: next(turns))), f"http://rebinds.example:{site.port}/again"
    )
    assert refused.code == "bad-url"
    assert refused.facts == {"address": "169.254.169.254"}


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    names = Names(mixed_example=["1.1.1.1", "10.0.0.1"])
    assert (await refusal(fetcher(names, allowed=()), "http://mixed.example/")).code == "bad-url"


async def test_the_next_address_is_tried_when_the_first_does_not_answer(site: Site) -> None:
    site.serve("/image")
    names = Names(images_example=["127.0.0.9", "127.0.0.1"])
    assert await get(fetcher(names), f"http://images.example:{site.port}/image") == BODY


async def test_redirects_that_never_end_are_given_up(site: Site) -> None:
    site.redirect("/round", "/round")
    refused = await refusal(fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{site.port}/round")
    assert refused.code == "fetch-failed"
    assert len(site.asked) == 6


async def test_a_proxy_from_the_environment_is_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.serve("/image")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert await get(fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{site.port}/image") == BODY


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "fetch-failed"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "fetch-failed"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx", "fetch-failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly a part", "fetch-failed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "fetch-failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "fetch-failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\nx", "image-too-large"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2_000_000, "image-too-large"),
        (b"not http at all\r\n\r\n", "fetch-failed"),
        (b"", "fetch-failed"),
    ],
)
async def test_what_is_not_a_whole_image_is_not_taken_for_one(site: Site, answer: bytes, code: str) -> None:
    site.answers["/x"] = answer
    refused = await refusal(fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{site.port}/x")
    assert refused.code == code


async def test_a_server_that_falls_silent_is_given_up_in_time(site: Site) -> None:
    site.answers["/hangs"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"
    by = fetcher(Names(a_example=["127.0.0.1"]), seconds=0.3)
    assert (await refusal(by, f"http://a.example:{site.port}/hangs")).code == "fetch-failed"


async def test_unknown_names_and_closed_ports_are_failures_of_the_fetch(site: Site) -> None:
    by = fetcher(Names(a_example=["127.0.0.1"]))
    assert (await refusal(by, "http://nowhere.example/")).code == "fetch-failed"
    assert (await refusal(by, "http://a.example:1/")).code == "fetch-failed"


def a_certificate(name: str, directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for a host name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = directory / "certificate.pem", directory / "key.pem"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private


async def test_a_certificate_must_be_the_name_s_although_the_address_is_connected_to(tmp_path: Path) -> None:
    certificate, private = a_certificate("images.example", tmp_path)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, private)
    names = Names(images_example=["127.0.0.1"], other_example=["127.0.0.1"])
    async with a_site(server_side) as site:
        site.serve("/image")
        site.redirect("/down", f"http://images.example:{site.port}/image")
        trusting = Fetcher(
            LOOPBACK,
            max_bytes=10**6,
            seconds=20,
            resolver=names,
            tls=ssl.create_default_context(cafile=str(certificate)),
        )
        assert await get(trusting, f"https://images.example:{site.port}/image") == BODY
        assert (await refusal(trusting, f"https://other.example:{site.port}/image")).code == "fetch-failed"
        assert (await refusal(trusting, f"https://images.example:{site.port}/down")).code == "bad-url"
        untrusting = fetcher(names)
        assert (await refusal(untrusting, f"https://images.example:{site.port}/image")).code == "fetch-failed"
