"""The keys that sign the log's checkpoints: files that never leave their server, named by the key's id.

Which of them is in force is said by the log itself. Must not decide when one is used.
"""

from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vmorch.audit.notes import BadNote, VerifierKey, read_key
from vmorch.audit.signing import LogSigner
from vmorch.bus.keys import BadKey
from vmorch.bus.private import write_private
from vmorch.core.errors import Rejected


def log_origin(cluster: str, incarnation: str) -> str:
    """What checkpoints call the log; never the same for two logs."""
    return f"vmorch/{cluster}/{incarnation}"


class LogKeys:
    """The keys of one log in a directory that only the server may read."""

    def __init__(self, directory: Path, origin: str) -> None:
        self.origin = origin
        self._directory = directory

    def create(self) -> VerifierKey:
        """Make a key and keep it."""
        private = Ed25519PrivateKey.generate()
        key = LogSigner(self.origin, private).key
        text = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            write_private(self._path(key), text, replace=False)
        return key

    def has(self, announced: str) -> bool:
        """Whether the key that the log announced is here."""
        return self._path(read_key(announced)).exists()

    def signer(self, announced: str) -> LogSigner:
        """What signs with the key that the log announced. Raises Rejected `other-log-key`, BadKey."""
        try:
            key = read_key(announced)
        except BadNote as error:
            raise BadKey(f"the log announces a key that is none: {error}") from error
        path = self._path(key)
        try:
            if path.stat().st_mode & 0o077:
                raise BadKey(f"{path} may be read by others: it must have mode 0600")
            private = serialization.load_pem_private_key(path.read_bytes(), None)
        except FileNotFoundError as error:
            raise Rejected(
                "other-log-key",
                f"this server does not have {path}, which signs the log's checkpoints",
                hint="copy it from another server; if it is lost: vmorch server init --new-log-key",
            ) from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadKey(f"{path} holds no private key") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise BadKey(f"{path} holds another kind of key than Ed25519")
        signer = LogSigner(key.name, private)
        if signer.key != key or key.name != self.origin:
            raise BadKey(f"{path} is not the key that this log announced")
        return signer

    def _path(self, key: VerifierKey) -> Path:
        return self._directory / f"log-{key.id.hex()}.pem"
