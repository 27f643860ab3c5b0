"""Keep the host's certificate in force: ask for it, renew it long before it ends, and learn which are revoked.

The private key is made here and stays here. Must not judge names: what a host may be called the control plane decides.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TypeVar

import structlog

from hostagent.config import Config
from hostagent.effects import Effects
from hostagent.enrolment import EnrolmentError, ask_certificate, ask_revoked
from hostagent.identity import Identity
from hostagent.pki import BadPki, Held, OtherAuthority, Store
from vmorch.bus.keys import KeyPair, verifier
from vmorch.core.aggregates.certificate import is_address
from vmorch.wire.certificates import Issued, Revoked
from vmorch.wire.envelopes import Forged, unseal

T = TypeVar("T", Issued, Revoked)

LOOK_EVERY = 60.0
"""Seconds between looks; a revoked certificate is refused by then."""
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 600.0
_log = structlog.get_logger(__name__)


class Desk:
    """The control plane's counter for certificates, as this host comes to it."""

    def __init__(self, identity: Identity, pair: KeyPair) -> None:
        self.identity = identity
        self._pair = pair

    def certify(self, csr: str) -> Issued:
        """A certificate for the key of this request. Raises EnrolmentError."""
        issued = self._opened(ask_certificate(self.identity, self._pair, csr, time.time()), Issued)
        if issued.host != self.identity.host:
            raise EnrolmentError("unexpected-answer", "the certificate is another host's")
        return issued

    def revoked(self) -> str:
        """The list of certificates that are to be trusted no more. Raises EnrolmentError."""
        return self._opened(ask_revoked(self.identity, self._pair, time.time()), Revoked).revoked

    def _opened(self, sealed: bytes, type: type[T]) -> T:
        try:
            found: T = unseal(sealed, type, verifier(self.identity.server_key))
        except Forged as error:
            raise EnrolmentError("unexpected-answer", f"the answer is not the control plane's: {error}") from error
        return found


def store_of(config: Config) -> Store:
    """Where this host's certificates are."""
    return Store(config.pki_dir, config.migration.group)


def own_address(config: Config) -> str:
    """The name or address by which other hosts reach this one: as set, or what libvirt calls itself."""
    if config.migration.address:
        given = config.migration.address.lower()
        # as a certificate writes it
        return str(ip_address(given)) if is_address(given) else given
    name = socket.gethostname().lower()
    if "." in name:
        return name
    try:
        found = socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME)[0][3].lower()
    except OSError:
        return name
    # some machines call their own name a name of the loopback
    return name if not found or found.startswith("localhost") else found


def names_of(config: Config, identity: Identity) -> tuple[str, ...]:
    """What this host's certificate shall carry."""
    address = own_address(config)
    return (identity.name,) if address in (identity.name, "localhost") else (identity.name, address)


def why_renew(held: Held | None, names: tuple[str, ...], now: datetime) -> str:
    """Why a new certificate is needed; empty if it is not."""
    if held is None:
        return "there is none"
    missing = [name for name in names if name not in held.names]
    if missing:
        return f"it does not carry {', '.join(missing)}"
    if held.expires - now <= (held.expires - held.begins) / 3:
        return f"it ends {held.expires:%Y-%m-%d %H:%M} UTC"
    return ""


def obtain(store: Store, desk: Desk, names: tuple[str, ...]) -> Held:
    """Get a certificate for a new key and use it from now on. Raises EnrolmentError, BadPki, OSError."""
    draft = store.draft()
    issued = desk.certify(draft.request(desk.identity.name, names))
    return store.take(draft, issued.certificate, issued.authority, issued.revoked)


class Certificates:
    """Looks after the certificates in `store`. `changed` is called, on any thread, after they changed, and again at
    each look until it says that whoever uses them knows."""

    def __init__(
        self,
        store: Store,
        desk: Desk,
        names: tuple[str, ...],
        effects: Effects,
        changed: Callable[[], bool],
        every: float = LOOK_EVERY,
    ) -> None:
        self._store = store
        self._desk = desk
        self._names = names
        self._effects = effects
        self._changed = changed
        self._every = every
        self._told = False

    async def keep(self, first: Callable[[], None]) -> None:
        """Until cancelled: have a certificate that is good for long and the newest list of revoked ones. `first` is
        called when there was none before."""
        wait = _FIRST_WAIT
        while True:
            try:
                if await self._effects.blocking.run(self.look):
                    first()
                wait, pause = _FIRST_WAIT, self._every
            except (EnrolmentError, BadPki) as error:
                _log.warning("certificates not looked after", code=error.code, error=str(error))
                wait, pause = min(wait * 2, _LONGEST_WAIT), wait
            except OSError as error:
                _log.warning("certificates not stored", error=str(error))
                wait, pause = min(wait * 2, _LONGEST_WAIT), wait
            await asyncio.sleep(pause * (0.5 + self._effects.chance() / 2))

    def look(self) -> bool:
        """Renew what needs it; whether this host has a certificate now and had none before. Blocking. Raises
        EnrolmentError, BadPki, OSError."""
        held = self._held()
        why = why_renew(held, self._names, datetime.fromtimestamp(self._effects.wall(), UTC))
        # an earlier process may have ended between storing and telling
        changed = not self._told
        if not why:
            try:
                if self._store.renew_revoked(self._desk.revoked()):
                    _log.info("list of revoked certificates renewed")
                    changed = True
            except OtherAuthority:
                why = "the cluster has a new authority"
        if why:
            new = obtain(self._store, self._desk, self._names)
            until = f"{new.expires:%Y-%m-%d %H:%M} UTC"
            _log.info("certificate obtained", why=why, names=new.names, until=until, fingerprint=new.fingerprint)
            changed = True
        if changed:
            self._told = self._changed()
        return held is None

    def _held(self) -> Held | None:
        try:
            return self._store.held()
        except BadPki as error:
            _log.warning("certificate cannot be used", code=error.code, error=str(error))
            return None
