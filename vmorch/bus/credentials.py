"""Who may do what on the bus: the operator, account and user JWTs that a NATS server believes, and its configuration.

Rights are allow-lists only. Must not read a clock: `now` comes in.
"""

import json
import re
from base64 import b32encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import Struct

from vmorch.bus.keys import BadKey, KeyPair, create, load_or_create, verifier
from vmorch.core.ids import HostId
from vmorch.wire import subjects
from vmorch.wire.envelopes import MAX_BODY

LONGEST_HOST_LIFETIME = timedelta(hours=1)
"""How long a host's credential may be valid, and so a stolen one."""

_HOST_ANSWERS_WITHIN = timedelta(seconds=30)
_SERVER_ANSWERS_WITHIN = timedelta(minutes=2)
_HOST_SUBSCRIPTIONS = 16
_READER_SUBSCRIPTIONS = 64
_READERS_MEMORY = 64 * 1024 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ControlKeys(Struct, frozen=True, kw_only=True):
    """Every key of a cluster's control plane. Whoever has `account` can admit himself as anybody.

    The published log has an account of its own, `log`: no subject of a host exists there, and hosts see nothing of it.
    """

    operator: KeyPair
    account: KeyPair
    system: KeyPair
    server: KeyPair
    log: KeyPair
    publisher: KeyPair


def ensure_keys(directory: Path) -> ControlKeys:
    """The control plane's keys, made in `directory` at the first call (mode 0600) and the same ever after.

    Raises BadKey if one of the files is not what it should be; it is never replaced.
    """
    return ControlKeys(
        operator=load_or_create(directory / "operator.nk", "operator"),
        account=load_or_create(directory / "account.nk", "account"),
        system=load_or_create(directory / "system.nk", "account"),
        server=load_or_create(directory / "server.nk", "user"),
        log=load_or_create(directory / "log.nk", "account"),
        publisher=load_or_create(directory / "publisher.nk", "user"),
    )


def operator_jwt(keys: ControlKeys, now: datetime) -> str:
    """What the NATS server trusts; it names the account of the broker's own events, which nobody can enter."""
    nats = {"type": "operator", "version": 2, "system_account": keys.system.public}
    return _token(keys.operator, keys.operator.public, "vmorch", nats, now)


def account_jwts(keys: ControlKeys, cluster: str, now: datetime) -> dict[str, str]:
    """The cluster's account, the published log's and the broker's own, by public key."""
    return {
        keys.account.public: _account(keys, keys.account.public, f"vmorch-{_checked(cluster)}", now),
        keys.system.public: _account(keys, keys.system.public, "SYS", now),
        keys.log.public: _account(keys, keys.log.public, f"vmorch-{cluster}-log", now, store=True),
    }


def server_credentials(keys: ControlKeys, cluster: str, now: datetime) -> str:
    """The control plane's JWT: everything of its cluster, its own inbox, and one answer to each request.

    It does not expire: its key lies beside the account's, which can mint another at any time.
    """
    everything = f"vmorch.{_checked(cluster)}.>"
    nats = _user(
        publish=[everything],
        subscribe=[everything, f"{subjects.server_inbox(cluster)}.>"],
        answers_within=_SERVER_ANSWERS_WITHIN,
        subscriptions=-1,
    )
    return _token(keys.account, keys.server.public, f"server-{cluster}", nats, now)


def host_credentials(
    keys: ControlKeys, cluster: str, host: HostId, public_key: str, now: datetime, lifetime: timedelta
) -> str:
    """A host's JWT, of use only to the holder of that user key's seed, and only for `lifetime`.

    The host may say its own report, heartbeat and telemetry, hear its own commands and inbox, and answer once
    whatever it was asked. Raises BadKey for a key that is no user's, ValueError for a lifetime over an hour
    or a name that is more than one word of a subject.
    """
    if not timedelta(0) < lifetime <= LONGEST_HOST_LIFETIME:
        raise ValueError(f"a host's credential is valid for at most {LONGEST_HOST_LIFETIME}, not {lifetime}")
    if verifier(public_key).kind != "user":
        raise BadKey("a host needs the public key of a user")
    _checked(cluster)
    _checked(host)
    nats = _user(
        publish=[
            subjects.report(cluster, host),
            subjects.heartbeat(cluster, host),
            f"vmorch.{cluster}.host.{host}.telemetry.*",
        ],
        subscribe=[subjects.command(cluster, host), f"{subjects.inbox(host)}.>"],
        answers_within=_HOST_ANSWERS_WITHIN,
        subscriptions=_HOST_SUBSCRIPTIONS,
    )
    return _token(keys.account, public_key, f"host-{host}", nats, now, expires=now + lifetime)


def publisher_credentials(keys: ControlKeys, cluster: str, now: datetime) -> str:
    """The JWT of whoever fills the published log: its subjects, and the stream that holds them.

    It does not expire, as the control plane's own.
    """
    stream = subjects.published_stream(_checked(cluster))
    verbs = ("INFO", "CREATE", "UPDATE", "DELETE", "MSG.GET")
    nats = _user(
        publish=[subjects.published_log(cluster), *(f"$JS.API.STREAM.{verb}.{stream}" for verb in verbs)],
        subscribe=[f"{subjects.publisher_inbox(cluster)}.>"],
        answers_within=None,
        subscriptions=_READER_SUBSCRIPTIONS,
    )
    return _token(keys.log, keys.publisher.public, f"publisher-{cluster}", nats, now)


def reader_credentials(
    keys: ControlKeys, cluster: str, reader: str, public_key: str, now: datetime, lifetime: timedelta
) -> str:
    """The JWT of a reader of the published log: it may hear events as they come, and pull them through one consumer
    that is called as the reader is.

    Raises BadKey for a key that is no user's, ValueError for a name that is more than one word of a subject.
    """
    if verifier(public_key).kind != "user":
        raise BadKey("a reader needs the public key of a user")
    stream = subjects.published_stream(_checked(cluster))
    consumer = f"{stream}.{_checked(reader)}"
    nats = _user(
        publish=[
            "$JS.API.INFO",
            "$JS.API.STREAM.NAMES",
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.CONSUMER.CREATE.{consumer}",
            f"$JS.API.CONSUMER.CREATE.{consumer}.>",
            f"$JS.API.CONSUMER.DURABLE.CREATE.{consumer}",
            f"$JS.API.CONSUMER.INFO.{consumer}",
            f"$JS.API.CONSUMER.DELETE.{consumer}",
            f"$JS.API.CONSUMER.MSG.NEXT.{consumer}",
            f"$JS.ACK.{consumer}.>",
        ],
        subscribe=[subjects.published_log(cluster), f"{subjects.reader_inbox(reader)}.>"],
        answers_within=None,
        subscriptions=_READER_SUBSCRIPTIONS,
    )
    return _token(keys.log, public_key, f"reader-{reader}", nats, now, expires=now + lifetime)


def reader_file(keys: ControlKeys, cluster: str, reader: str, now: datetime, lifetime: timedelta) -> str:
    """A new reader's credential together with its key, in the form that every NATS client reads (`.creds`)."""
    pair = create("user")
    jwt = reader_credentials(keys, cluster, reader, pair.public, now, lifetime)
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{pair.reveal()}\n------END USER NKEY SEED------\n"
    )


def nats_config(listen: str, operator: str, accounts: Mapping[str, str], store: Path | None = None) -> str:
    """The text of a NATS server's configuration: `listen` is host:port, `operator` and `accounts` are JWTs.

    Only plain clients with such a credential come in. With a `store`, JetStream keeps its files there.
    """
    lines = [
        f"listen: {json.dumps(listen)}",
        f"operator: {operator}",
        "resolver: MEMORY",
        "resolver_preload: {",
        *(f"  {public}: {jwt}" for public, jwt in accounts.items()),
        "}",
        f"system_account: {_system_account(operator)}",
        f"max_payload: {MAX_BODY}",
        # a client that vanished without a word must not seem to listen for minutes
        'ping_interval: "2s"',
        "ping_max: 2",
        'write_deadline: "5s"',
    ]
    if store is not None:
        # what a power cut takes from the end is published again; a flush for each event would slow the log itself
        lines.append(f'jetstream: {{ store_dir: {json.dumps(str(store))}, sync_interval: "10s" }}')
    return "\n".join(lines) + "\n"


def _user(
    publish: list[str], subscribe: list[str], answers_within: timedelta | None, subscriptions: int
) -> dict[str, Any]:
    user = {
        "type": "user",
        "version": 2,
        "pub": {"allow": publish},
        "sub": {"allow": subscribe},
        "allowed_connection_types": ["STANDARD"],
        "subs": subscriptions,
        "data": -1,
        "payload": MAX_BODY,
    }
    if answers_within is not None:
        user["resp"] = {"max": 1, "ttl": int(answers_within.total_seconds()) * 1_000_000_000}
    return user


def _account(keys: ControlKeys, public: str, name: str, now: datetime, *, store: bool = False) -> str:
    nats: dict[str, Any] = {
        "type": "account",
        "version": 2,
        "limits": {
            "subs": -1,
            "data": -1,
            "payload": -1,
            "imports": 0,
            "exports": 0,
            "wildcards": False,
            "conn": -1,
            "leaf": 0,
        },
        # a user without rights of his own has none
        "default_permissions": {"pub": {"deny": [">"]}, "sub": {"deny": [">"]}},
    }
    if store:
        nats["limits"] |= {"mem_storage": _READERS_MEMORY, "disk_storage": -1, "streams": 1, "consumer": -1}
    return _token(keys.operator, public, name, nats, now)


def _token(
    issuer: KeyPair,
    subject: str,
    name: str,
    nats: dict[str, Any],
    now: datetime,
    *,
    expires: datetime | None = None,
) -> str:
    claims: dict[str, Any] = {
        "iat": int(now.timestamp()),
        "iss": issuer.public,
        "name": name,
        "sub": subject,
        "nats": nats,
    }
    if expires is not None:
        claims["exp"] = int(expires.timestamp())
    claims["jti"] = b32encode(sha256(_compact(claims)).digest()).decode().rstrip("=")
    text = _base64(_compact({"typ": "JWT", "alg": "ed25519-nkey"})) + "." + _base64(_compact(claims))
    return f"{text}.{_base64(issuer.sign(text.encode()))}"


def _claims(jwt: str) -> dict[str, Any]:
    body = jwt.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


def _system_account(operator: str) -> str:
    return str(_claims(operator)["nats"]["system_account"])


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _checked(token: str) -> str:
    # a dot or wildcard in a name would widen the rights that are built from it
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"not one word of a subject: {token!r}")
    return token
