"""Make this machine a host of a cluster: show a one-time token, pin both keys, keep what comes back.

Must not overwrite an identity unasked: a host that forgot who it is would be a new host with old domains.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
import msgspec
import structlog
from msgspec import Struct

from hostagent import identity as files
from hostagent.identity import Identity
from hostagent.signed_fetch import headers
from vmorch.bus import keys
from vmorch.core.ids import HostId

T = TypeVar("T")

_WITHIN = 30.0
_log = structlog.get_logger(__name__)


class EnrolmentError(Exception):
    """The machine was not enrolled. `code` is the control plane's, or `already-enrolled`, `no-machine-id`,
    `server-unreachable`, `unexpected-answer`, `bad-url`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Welcome(Struct, frozen=True, kw_only=True):
    host: HostId
    name: str
    cluster: str
    incarnation: str
    server_key: str
    nats_url: str
    credentials: str


class _Renewal(Struct, frozen=True, kw_only=True):
    credentials: str


class _Refusal(Struct, frozen=True, kw_only=True):
    code: str = "refused"
    message: str = ""
    reason: str = ""
    detail: str = ""
    hint: str = ""


def enroll(
    server_url: str,
    token: str,
    state_dir: Path,
    *,
    name: str | None = None,
    force: bool = False,
    machine_id: str | None = None,
) -> Identity:
    """Enrol with a one-time token and store the identity in `state_dir`. With `force` an earlier identity and
    its journal are set aside; the host key stays. Raises EnrolmentError, BadKey, OSError."""
    if (state_dir / files.IDENTITY).exists() and not force:
        known = files.load_identity(state_dir)
        raise EnrolmentError(
            "already-enrolled",
            f"{state_dir} already holds host {known.name} of cluster {known.cluster}; --force replaces it",
        )
    machine = files.machine_id() if machine_id is None else machine_id
    if not machine:
        raise EnrolmentError("no-machine-id", f"{files.MACHINE_ID} is missing or empty: run systemd-machine-id-setup")
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    pair = keys.load_or_create(state_dir / files.KEY, "user")
    asked = {"token": token, "key": pair.public, "machine_id": machine} | ({"name": name} if name else {})
    with http_client(server_url) as client:
        data = _ask(lambda: client.post("/v1/enroll", content=msgspec.json.encode(asked)), server_url)
    welcome = _understand(data, _Welcome, server_url)
    identity = Identity(
        host=welcome.host,
        name=welcome.name,
        cluster=welcome.cluster,
        incarnation=welcome.incarnation,
        key=pair.public,
        machine_id=machine,
        server_key=keys.verifier(welcome.server_key).public,
        server_url=server_url,
        nats_url=welcome.nats_url,
    )
    _set_aside(state_dir)
    files.save_credentials(state_dir, welcome.credentials)
    # last, because its presence says that everything is there
    files.save_identity(state_dir, identity)
    return identity


def renew_credentials(identity: Identity, pair: keys.KeyPair, now: float) -> str:
    """New bus credentials for a host whose old ones expired while it was off the bus. Raises EnrolmentError."""
    path = f"/v1/hosts/{identity.host}/credentials"
    with http_client(identity.server_url) as client:
        data = _ask(lambda: client.get(path, headers=headers(path, pair, identity.host, now)), identity.server_url)
    return _understand(data, _Renewal, identity.server_url).credentials


def ask_certificate(identity: Identity, pair: keys.KeyPair, csr: str, now: float) -> bytes:
    """The control plane's sealed answer to a certificate request. Raises EnrolmentError."""
    path = f"/v1/hosts/{identity.host}/certificate"
    body = msgspec.json.encode({"csr": csr})
    signed = headers(path, pair, identity.host, now, body)
    with http_client(identity.server_url) as client:
        return _ask(lambda: client.post(path, content=body, headers=signed), identity.server_url)


def ask_revoked(identity: Identity, pair: keys.KeyPair, now: float) -> bytes:
    """The control plane's sealed list of certificates that are to be trusted no more. Raises EnrolmentError."""
    path = "/v1/certificates/revoked"
    with http_client(identity.server_url) as client:
        return _ask(lambda: client.get(path, headers=headers(path, pair, identity.host, now)), identity.server_url)


def http_client(server_url: str) -> httpx2.Client:
    """A client of the control plane at `http(s)://host:port` or `unix:/path`. Raises EnrolmentError."""
    if server_url.startswith("unix:/"):
        path = server_url.removeprefix("unix:").replace("//", "/", 1)
        transport = httpx2.HTTPTransport(uds=path)
        return httpx2.Client(base_url="http://localhost", transport=transport, timeout=_WITHIN)
    if not server_url.startswith(("http://", "https://")):
        raise EnrolmentError("bad-url", f"{server_url!r} is neither http(s)://host:port nor unix:/path")
    return httpx2.Client(base_url=server_url.rstrip("/"), timeout=_WITHIN, trust_env=False)


def default_name() -> str:
    """This machine's host name without its domain."""
    return socket.gethostname().partition(".")[0].lower()


def _ask(request: Callable[[], httpx2.Response], server_url: str) -> bytes:
    try:
        response = request()
    except httpx2.TransportError as error:
        raise EnrolmentError("server-unreachable", f"{server_url} cannot be reached: {error}") from error
    if response.is_success:
        return response.content
    try:
        refusal = msgspec.json.decode(response.content, type=_Refusal)
    except msgspec.MsgspecError as error:
        raise EnrolmentError(
            "unexpected-answer", f"{server_url} answered {response.status_code}; is it a vmorch server?"
        ) from error
    words = refusal.message or refusal.reason or refusal.detail or f"status {response.status_code}"
    raise EnrolmentError(refusal.code, f"{words}{f' ({refusal.hint})' if refusal.hint else ''}")


def _understand(data: bytes, type: type[T], server_url: str) -> T:
    try:
        return msgspec.json.decode(data, type=type)
    except msgspec.MsgspecError as error:
        raise EnrolmentError("unexpected-answer", f"{server_url} answered something else: {error}") from error


def _set_aside(state_dir: Path) -> None:
    """Keep an earlier identity's files under its host id, so that its journal is not taken for the new one's."""
    try:
        before = files.load_identity(state_dir).host
    except files.NotEnrolled:
        before = HostId("unknown")
    for path in state_dir.glob(f"{files.JOURNAL}*"):
        os.replace(path, path.with_name(f"before-{before}.{path.name}"))
        _log.info("set aside", path=str(path), host=before)
    (state_dir / files.IDENTITY).unlink(missing_ok=True)
