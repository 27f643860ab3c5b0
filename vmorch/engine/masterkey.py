"""The master key that wraps the keys of subjects: a file that never leaves its server, so that a dump of the database
alone opens nothing.

Must not know what is sealed with the keys that it wraps.
"""

import secrets
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmorch.bus.keys import BadKey
from vmorch.bus.private import write_private
from vmorch.core.errors import Rejected
from vmorch.core.ids import Stream
from vmorch.core.sealed import NONCE

KEY = 32
"""Bytes of a key of AES-256."""


class MasterKey:
    """Wraps and unwraps keys. `name` tells it from others and gives nothing of it away."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.name = sha256(b"vmorch.master" + key).hexdigest()[:16]

    def wrap(self, subject: Stream, key: bytes, nonce: bytes) -> bytes:
        """A subject's key as it may be kept anywhere."""
        return nonce + self._cipher.encrypt(nonce, key, subject.encode())

    def unwrap(self, subject: Stream, wrapped: bytes) -> bytes:
        """A subject's key. Raises Rejected `key-damaged` if it is not what was wrapped for this subject."""
        try:
            return self._cipher.decrypt(wrapped[:NONCE], wrapped[NONCE:], subject.encode())
        except InvalidTag as error:
            raise Rejected("key-damaged", f"what is kept as the key of {subject} was not wrapped for it") from error


def path_of(keys: Path) -> Path:
    """The file in the directory of the server's keys."""
    return keys / "master.key"


def create_master_key(keys: Path) -> None:
    """Make a master key and keep it, unless one is there."""
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        write_private(path_of(keys), f"{secrets.token_hex(KEY)}\n".encode(), replace=False)


def read_master_key(keys: Path) -> MasterKey:
    """The master key in the directory of the server's keys. Raises Rejected `other-master-key`, BadKey."""
    path = path_of(keys)
    try:
        if path.stat().st_mode & 0o077:
            raise BadKey(f"{path} may be read by others: it must have mode 0600")
        key = bytes.fromhex(path.read_text())
    except FileNotFoundError as error:
        raise missing(f"this server does not have {path}, which wraps the keys of what is sealed in the log") from error
    except ValueError as error:
        raise BadKey(f"{path} holds no key") from error
    if len(key) != KEY:
        raise BadKey(f"{path} holds a key of {len(key)} bytes, not of {KEY}")
    return MasterKey(key)


def missing(what: str) -> Rejected:
    """The refusal where the cluster's master key is needed and is not here."""
    hint = "copy keys/master.key from another server; if it is lost: vmorch server init --new-master-key"
    return Rejected("other-master-key", what, hint=hint)
