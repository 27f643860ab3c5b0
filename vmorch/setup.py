"""What a cluster needs once before its first start: database, keys, authority, the broker's configuration, a token.

Harmless to repeat: what is there stays. Must not need a running broker.
"""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from vmorch.bus.credentials import account_jwts, ensure_keys, nats_config, operator_jwt
from vmorch.bus.private import write_private
from vmorch.config import Config
from vmorch.core.fleet import Fleet
from vmorch.engine.authority import ensure_authority
from vmorch.engine.caller import Caller
from vmorch.engine.handle import Handler
from vmorch.engine.recorder import Recorder
from vmorch.engine.world import World
from vmorch.log.schema import create_logins, upgrade
from vmorch.log.store import EventLog
from vmorch.system import SystemClock, new_id, secrets_of

ADMIN, SETUP = "admin", "setup"


async def prepare(config: Config, *, new_authority: bool = False) -> None:
    """Make everything that is missing. With `new_authority` the one that is here replaces the cluster's.

    Raises psycopg.Error, OSError, BadKey, Rejected `other-authority`.
    """
    data = config.data_dir
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = config.database.owner_url
    if owner is not None:
        _ensure_database(owner)
        upgrade(owner)
        create_logins(owner)
    now = datetime.now(UTC)
    keys = ensure_keys(data / "keys")
    authority = ensure_authority(data / "keys", config.server.cluster, now)
    accounts = account_jwts(keys, config.server.cluster, now)
    text = nats_config(config.nats.listen, operator_jwt(keys, now), accounts)
    _write(Path(config.nats.config_file), text)
    path = data / "admin.token"
    lost = not path.exists()
    log = await EventLog.open(config.database.url)
    try:
        world = World(log)
        await world.load()
        handler = Handler(Recorder(world, SystemClock()), new_id, secrets_of(secrets_key(data)))
        await handler.adopt_authority(authority.fingerprint, instead=new_authority, actor=SETUP)
        await _ensure_admin(handler, path, lost=lost)
    finally:
        await log.close()


async def _ensure_admin(handler: Handler, path: Path, *, lost: bool) -> None:
    """An admin's token in a private file. A lost file is made up for by a new token; the old one stays valid."""
    fleet = handler.fleet
    if not lost and _admins(fleet):
        return
    taken = {token.name for token in fleet.tokens.values() if not token.revoked}
    name = ADMIN if ADMIN not in taken else f"{ADMIN}-{len(taken) + 1}"
    caller = Caller(actor=SETUP, role="admin", reason="first token of the cluster")
    _, secret = await handler.create_token(name, "admin", None, caller)
    _write(path, secret + "\n")


def secrets_key(data: Path) -> bytes:
    """The key that enrolment and API tokens are made with, created at the first call."""
    path = data / "keys" / "secrets.key"
    if not path.exists():
        _write(path, secrets.token_hex(32) + "\n")
    return bytes.fromhex(path.read_text())


def _admins(fleet: Fleet) -> bool:
    return any(token.role == "admin" and not token.revoked for token in fleet.tokens.values())


def _ensure_database(url: str) -> None:
    parts = urlsplit(url)
    name = unquote(parts.path.lstrip("/")) or "postgres"
    with psycopg.connect(urlunsplit(parts._replace(path="/postgres")), autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, text.encode())
