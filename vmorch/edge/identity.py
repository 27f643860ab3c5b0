"""Who asks: bearer tokens, and hosts that sign with their pinned key.

Must not decide what somebody may do; that is in the table of routes.
"""

import base64
import binascii
import hmac
from datetime import datetime
from hashlib import sha256

from starlette.requests import Request

from vmorch.bus.keys import BadKey, BadSignature, verifier
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.token import Token
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, Position
from vmorch.edge.requests import DIGEST_HEADER

HOST_HEADER = "X-Vmorch-Host"
TIME_HEADER = "X-Vmorch-Time"
SIGNATURE_HEADER = "X-Vmorch-Signature"
SIGNED_WITHIN = 300
"""Seconds that a host's clock may differ from ours."""

_LONGEST_SECRET = 256


class Bearers:
    """Finds the token of a secret. Tokens are known by hash, so a lookup's timing tells nothing of a secret."""

    def __init__(self) -> None:
        self._by_hash: dict[str, str] = {}
        self._position = Position(-1)

    def token(self, fleet: Fleet, secret: str, now: datetime) -> Token:
        """The token in force that has this secret. Raises Rejected `unauthenticated`."""
        digest = sha256(secret.encode()).hexdigest()
        if digest not in self._by_hash and self._position != fleet.position:
            self._by_hash = {token.hash: token.id for token in fleet.tokens.values()}
            self._position = fleet.position
        # revocation and expiry are looked up in the state itself, so they hold from their event on
        token = fleet.tokens.get(self._by_hash.get(digest, ""))
        if token is None or not hmac.compare_digest(token.hash, digest) or not token.valid(now):
            raise Rejected("unauthenticated", "the token is unknown, expired or revoked", hint="vmorch login")
        return token


def bearer(request: Request) -> str:
    """The request's bearer secret. Raises Rejected `unauthenticated`."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret or len(secret) > _LONGEST_SECRET:
        raise Rejected("unauthenticated", "the request carries no bearer token", hint="vmorch login")
    return secret


def signed_by_host(request: Request) -> bool:
    """Whether the request claims to come from a host's agent."""
    return HOST_HEADER in request.headers


def signing_host(request: Request, fleet: Fleet, now: datetime) -> Host:
    """The enrolled host that signed method, path and time of this request, and the digest of what it sends along.
    Whoever reads the body compares it with that digest. Raises Rejected `unauthenticated`."""
    headers = request.headers
    host = fleet.hosts.get(HostId(headers.get(HOST_HEADER, "")))
    stamp = headers.get(TIME_HEADER, "")
    if host is None or host.retired or not host.key:
        raise Rejected("unauthenticated", "no such host is enrolled")
    if not stamp.isascii() or not stamp.isdecimal() or abs(int(stamp[:20]) - now.timestamp()) > SIGNED_WITHIN:
        raise Rejected("unauthenticated", f"the time of signing is missing or more than {SIGNED_WITHIN} s off")
    try:
        signature = base64.b64decode(headers.get(SIGNATURE_HEADER, ""), validate=True)
        verifier(host.key).verify(_signed(request, stamp), signature)
    except (BadKey, BadSignature, binascii.Error) as error:
        raise Rejected("unauthenticated", "the signature is not the host's") from error
    return host


def _signed(request: Request, stamp: str) -> bytes:
    text = f"{request.method} {request.url.path} {stamp}"
    if request.method == "GET":
        return text.encode()
    digest = request.headers.get(DIGEST_HEADER, "")
    if not digest:
        raise Rejected("unauthenticated", f"{DIGEST_HEADER} is missing: a host signs what it sends along")
    return f"{text} {digest}".encode()
