"""A stand-in for the control plane's HTTP side: enrols hosts and renews their bus credentials."""

import json
import socket
import socketserver
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hostagent.signed_fetch import signed_text
from vmorch.bus.credentials import ControlKeys, host_credentials
from vmorch.bus.keys import verifier
from vmorch.core.aggregates.certificate import Certificate, revoke
from vmorch.core.ids import HostId
from vmorch.engine.authority import Wish, ensure_authority, read_request
from vmorch.wire.certificates import Issued, Revoked
from vmorch.wire.envelopes import seal


class FrontDesk:
    """Enrols everybody who shows a known token, once."""

    def __init__(self, keys: ControlKeys, cluster: str, nats_url: str, tokens: set[str], place: Path) -> None:
        self.keys = keys
        self.cluster = cluster
        self.nats_url = nats_url
        self.tokens = tokens
        self.hosts: dict[str, str] = {}
        """Public key of each host."""
        self.asked: list[dict[str, Any]] = []
        self.lifetime = timedelta(hours=1)
        self.renewals = 0
        self.now = lambda: datetime.now(UTC)
        self.authority = ensure_authority(place, cluster, datetime.now(UTC))
        self.wishes: list[Wish] = []
        self.certificates: list[Certificate] = []
        self.revoked: list[Certificate] = []
        self.revocations = 0
        self.certifies = True
        self.broken: bytes | None = None

    def enroll(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(asked)
        if asked["token"] not in self.tokens:
            return 403, {"code": "bad-token", "message": "this enrolment token is not valid or was used before"}
        self.tokens.discard(asked["token"])
        host = f"id-{len(self.hosts) + 1}"
        self.hosts[host] = asked["key"]
        return 201, {
            "host": host,
            "name": asked.get("name", "unnamed"),
            "cluster": self.cluster,
            "incarnation": "first",
            "server_key": self.keys.server.public,
            "nats_url": self.nats_url,
            "credentials": self.credentials(host),
            "something_newer": True,
        }

    def credentials(self, host: str) -> str:
        key = self.hosts[host]
        return host_credentials(self.keys, self.cluster, HostId(host), key, datetime.now(UTC), self.lifetime)

    def certify(self, path: str, headers: dict[str, str], body: bytes) -> bytes:
        """The sealed answer to a certificate request."""
        host = headers["x-vmorch-host"]
        signature = b64decode(headers["x-vmorch-signature"])
        verifier(self.hosts[host]).verify(signed_text(path, int(headers["x-vmorch-time"]), body), signature)
        assert path == f"/v1/hosts/{host}/certificate"
        wish = read_request(json.loads(body)["csr"])
        self.wishes.append(wish)
        names = tuple(dict.fromkeys((wish.common_name, *wish.names)))
        certificate, pem = self.authority.issue(wish, names, self.now())
        self.certificates.append(certificate)
        issued = Issued(
            host=HostId(host), certificate=pem, authority=self.authority.certificate, revoked=self.revoked_list()
        )
        return seal(issued, self.keys.server)

    def revoked_list(self) -> str:
        self.revocations += 1
        return self.authority.revoked(revoke(self.revoked, self.now()), self.revocations, self.now())

    def renew(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        host = headers["x-vmorch-host"]
        signature = b64decode(headers["x-vmorch-signature"])
        verifier(self.hosts[host]).verify(signed_text(path, int(headers["x-vmorch-time"])), signature)
        assert path == f"/v1/hosts/{host}/credentials"
        self.renewals += 1
        return 200, {"credentials": self.credentials(host)}


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, Any]:
        request, _ = super().get_request()
        return request, ("unix", 0)


@contextmanager
def open_desk(desk: FrontDesk, unix: Path | None = None) -> Iterator[str]:
    """Serve on loopback, or on a Unix socket; the server's url."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/enroll":
                self.answer(*desk.enroll(json.loads(body)))
            elif not desk.certifies:
                self.answer(503, {"code": "log-unavailable", "detail": "Postgres is away"})
            else:
                self.send(200, desk.certify(self.path, self.lower_headers(), body))

        def do_GET(self) -> None:
            if self.path == "/":
                self.answer(200, {})
                return
            if self.path == "/v1/certificates/revoked":
                self.send(200, seal(Revoked(revoked=desk.revoked_list()), desk.keys.server))
                return
            self.answer(*desk.renew(self.path, self.lower_headers()))

        def lower_headers(self) -> dict[str, str]:
            return {name.lower(): value for name, value in self.headers.items()}

        def answer(self, status: int, body: dict[str, Any]) -> None:
            self.send(status, json.dumps(body).encode())

        def send(self, status: int, body: bytes) -> None:
            data = body if desk.broken is None else desk.broken
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server: socketserver.BaseServer
    if unix is not None:
        server = _UnixServer(str(unix), Handler)
        url = f"unix:{unix}"
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
