"""What a cluster needs once before its first start: database, keys, authority, the broker's configuration, a token.

Harmless to repeat: what is there stays. Must not need a running broker.
"""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from vmorch.bus.credentials import account_jwts, ensure_keys, nats_config, operator_jwt
from vmorch.bus.private import write_private
from vmorch.config import Config
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.engine.authority import ensure_authority
from vmorch.engine.caller import Caller
from vmorch.engine.handle import Handler
from vmorch.engine.logkeys import LogKeys, log_origin
from vmorch.engine.masterkey import create_master_key, read_master_key
from vmorch.engine.recorder import Recorder
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.engine.world import World
from vmorch.log.keyring import Keyring, PostgresKeyring
from vmorch.log.schema import create_logins, partition_by, upgrade
from vmorch.log.store import EventLog
from vmorch.system import SystemClock, new_id, secrets_of

ADMIN, SETUP = "admin", "setup"


async def prepare(
    config: Config,
    *,
    new_authority: bool = False,
    new_log_key: bool = False,
    new_master_key: bool = False,
    partition_size: int | None = None,
) -> None:
    """Make everything that is missing. With `new_authority` the one that is here replaces the cluster's, with
    `new_log_key` the log's checkpoints are signed by a new key from now on, with `new_master_key` the one that is here,
    or is made, wraps the keys of subjects from now on, with `partition_size` later partitions of the log hold so many
    events.

    Raises psycopg.Error, OSError, BadKey, Rejected `other-authority`, `other-log-key`, `other-master-key`,
    `forbidden`.
    """
    data = config.data_dir
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = config.database.owner_url
    if owner is None and partition_size is not None:
        raise Rejected(
            "forbidden",
            "only the database's owner chooses the size of partitions",
            hint="name [database] owner_url in the settings",
        )
    if owner is not None:
        _ensure_database(owner)
        upgrade(owner)
        create_logins(owner)
        if partition_size is not None:
            partition_by(owner, partition_size)
    now = datetime.now(UTC)
    keys = ensure_keys(data / "keys")
    authority = ensure_authority(data / "keys", config.server.cluster, now)
    accounts = account_jwts(keys, config.server.cluster, now)
    store = Path(config.nats.store_dir or data / "jetstream") if config.published.enabled else None
    text = nats_config(config.nats.listen, operator_jwt(keys, now), accounts, store)
    _write(Path(config.nats.config_file), text)
    path = data / "admin.token"
    lost = not path.exists()
    log = await EventLog.open(config.database.url, config.archives_dir)
    keyring = PostgresKeyring(config.database.url)
    try:
        subject_keys = await _ensure_master_key(data / "keys", keyring, new=new_master_key)
        world = World(log)
        await world.load()
        handler = Handler(Recorder(world, SystemClock()), new_id, secrets_of(secrets_key(data)), subject_keys)
        await handler.adopt_authority(authority.fingerprint, instead=new_authority, actor=SETUP)
        log_keys = LogKeys(data / "keys", log_origin(config.server.cluster, log.incarnation))
        await _ensure_log_key(handler, log_keys, new=new_log_key)
        await _ensure_admin(handler, path, lost=lost)
    finally:
        await keyring.close()
        await log.close()


async def _ensure_master_key(keys: Path, keyring: Keyring, *, new: bool) -> SubjectKeys:
    """The master key that wraps the keys of subjects is here, and is the cluster's."""
    if new or not await keyring.masters():
        create_master_key(keys)
    made = SubjectKeys(keyring, read_master_key(keys), os.urandom)
    await made.agree(instead=new)
    return made


async def _ensure_log_key(handler: Handler, keys: LogKeys, *, new: bool) -> None:
    """The key that signs the log's checkpoints is announced in the log, and is here."""
    announced = handler.fleet.cluster.log_key
    if announced and not new:
        keys.signer(announced)
    else:
        # a new key that its predecessor cannot vouch for is one that auditors must be told of
        orphaned = bool(announced) and not keys.has(announced)
        await handler.announce_log_key(keys.create().text(), orphaned=orphaned, actor=SETUP)


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
