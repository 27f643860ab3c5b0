"""The nkeys by which broker, control plane and agents know each other, with types.

A seed is secret and leaves a process only into a file that its owner alone may read.
Must not decide who may do what: that is in the credentials.
"""

import os
from base64 import b32decode, b32encode
from binascii import Error as NotBase32
from contextlib import suppress
from pathlib import Path
from typing import Literal

import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from vmorch.bus.private import write_private

Kind = Literal["operator", "account", "user"]

_PREFIX: dict[Kind, int] = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
_KIND = {prefix: kind for kind, prefix in _PREFIX.items()}


class BadKey(Exception):
    """A text or file is not the nkey that was asked for. The message never contains a seed."""

    code = "bad-key"


class BadSignature(Exception):
    """Bytes were not signed by this key."""

    code = "bad-signature"


class KeyPair:
    """A private nkey: signs bytes (it is a `Signer`) and knows its own public key."""

    def __init__(self, seed: str) -> None:
        """Raises BadKey unless `seed` is the seed of an operator, account or user, unchanged."""
        text = seed.strip().encode("ascii", "replace")
        try:
            prefix, raw = nkeys.decode_seed(text)
            self.kind: Kind = _KIND[prefix]
            # the library reads a seed without looking at its checksum
            if bytes(nkeys.encode_seed(bytes(raw), prefix)) != text:
                raise BadKey("a seed with a wrong checksum")
            self._pair = nkeys.from_seed(text)
        except (nkeys.NkeysError, KeyError, ValueError) as error:
            raise BadKey("not a seed of an operator, account or user") from error
        self._seed = text.decode()
        self.public = str(self._pair.public_key.decode())

    def sign(self, input: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature."""
        return bytes(self._pair.sign(input))

    def save(self, path: Path) -> None:
        """Write the seed to a new file that only its owner may read; never half of it.

        Raises FileExistsError if there is one: a key is never overwritten.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, f"{self._seed}\n".encode(), replace=False)

    def reveal(self) -> str:
        """The seed, for handing a new key to whom it was made for; never to be logged."""
        return self._seed

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"


class PublicKey:
    """A public nkey: checks signatures (it is a `Verifier`)."""

    def __init__(self, text: str) -> None:
        """Raises BadKey unless `text` is the public key of an operator, account or user."""
        try:
            raw = b32decode(text.encode("ascii"))
        except (NotBase32, UnicodeEncodeError) as error:
            raise BadKey("not a public key: not base32") from error
        if len(raw) != 35 or b32encode(raw).decode() != text:
            raise BadKey("not a public key: wrong length")
        if nkeys.crc16_checksum(raw[:33]) != raw[33:]:
            raise BadKey("not a public key: wrong checksum")
        if raw[0] not in _KIND:
            raise BadKey("not the public key of an operator, account or user")
        self.kind = _KIND[raw[0]]
        self.public = text
        self._key = VerifyKey(raw[1:33])

    def verify(self, input: bytes, sig: bytes) -> bool:
        """True, or BadSignature is raised."""
        try:
            self._key.verify(input, sig)
        except (BadSignatureError, ValueError) as error:  # ValueError: not 64 bytes
            raise BadSignature("wrong signature") from error
        return True


def create(kind: Kind) -> KeyPair:
    """A new key from the operating system's randomness."""
    return KeyPair(bytes(nkeys.encode_seed(os.urandom(32), _PREFIX[kind])).decode())


def load(path: Path, kind: Kind) -> KeyPair:
    """The key in a file. Raises FileNotFoundError, or BadKey if it is no such key or others may read it."""
    with path.open() as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise BadKey(f"{path} may be read by others: it must have mode 0600")
        try:
            pair = KeyPair(file.read())
        except (BadKey, UnicodeDecodeError) as error:
            raise BadKey(f"{path} holds no seed") from error
    if pair.kind != kind:
        raise BadKey(f"{path} holds the seed of a {pair.kind}, not of a {kind}")
    return pair


def load_or_create(path: Path, kind: Kind) -> KeyPair:
    """The key in a file, made at the first call; callers at the same moment get the same key."""
    if not path.exists():
        with suppress(FileExistsError):
            create(kind).save(path)
    return load(path, kind)


def verifier(public_key: str) -> PublicKey:
    """What checks signatures of a public nkey. Raises BadKey."""
    return PublicKey(public_key)
