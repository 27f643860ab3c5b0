"""Ed25519 over notes: the only module of the audit that needs more than the standard library's hashes.

Must not read or keep files: where a private key lies is its owner's business.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vmorch.audit.notes import Checkpoint, Note, Signature, VerifierKey, write_note


class LogSigner:
    """Signs checkpoints of one log with one key."""

    def __init__(self, origin: str, key: Ed25519PrivateKey) -> None:
        self.key = VerifierKey(origin, key.public_key().public_bytes_raw())
        self._private = key

    def sign(self, size: int, root: bytes) -> str:
        """The signed checkpoint; the same tree always gives the same text."""
        text = Checkpoint(self.key.name, size, root).text()
        signature = Signature(self.key.name, self.key.id, self._private.sign(text.encode()))
        return write_note(Note(text, (signature,)))


def signed_by(note: Note, key: VerifierKey) -> bool:
    """Whether one of the note's signatures is the key's."""
    for each in note.signatures:
        if each.name == key.name and each.key_id == key.id:
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(each.signature, note.text.encode())
            except (InvalidSignature, ValueError):
                return False
            return True
    return False
