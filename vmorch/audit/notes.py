"""Signed notes and checkpoints as text, after C2SP signed-note and tlog-checkpoint.

A checkpoint says: the log called `origin` has `size` events, whose tree has this root. Must not sign or verify:
that takes keys.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from hashlib import sha256

from msgspec import Struct

from vmorch.audit.merkle import HASH

ED25519 = 1
"""The algorithm's number in a verifier key."""
MAX_NOTE = 64 * 1024
"""Characters of the longest note that is looked at."""

_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]+")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_DASH = "\u2014"


class BadNote(ValueError):
    """A text is no signed note, no checkpoint or no verifier key; the message says why."""

    code = "bad-checkpoint"


class Signature(Struct, frozen=True):
    """One signature line: whose it claims to be, and the bytes."""

    name: str
    key_id: bytes
    signature: bytes


class Note(Struct, frozen=True):
    """A text, ending in a newline, and its signatures."""

    text: str
    signatures: tuple[Signature, ...]


class Checkpoint(Struct, frozen=True):
    """The head of a log at one moment."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


class VerifierKey(Struct, frozen=True):
    """A public Ed25519 key with the name of the log that it signs for."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes that signature lines name the key by."""
        return sha256(self.name.encode() + b"\n" + bytes([ED25519]) + self.public).digest()[:4]

    def text(self) -> str:
        """The key as people pass it on: `name+id+key`."""
        return f"{self.name}+{self.id.hex()}+{b64encode(bytes([ED25519]) + self.public).decode()}"


def read_key(text: str) -> VerifierKey:
    """A verifier key from its text. Raises BadNote."""
    parts = text.strip().split("+", 2)
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise BadNote("a verifier key is NAME+ID+KEY")
    raw = _base64(parts[2])
    if len(raw) != 1 + HASH or raw[0] != ED25519:
        raise BadNote("the verifier key is none of Ed25519")
    key = VerifierKey(parts[0], raw[1:])
    if key.id.hex() != parts[1]:
        raise BadNote("the verifier key's id is not that of its name and bytes")
    return key


def write_note(note: Note) -> str:
    """The note with its signature lines."""
    lines = [f"{_DASH} {each.name} {b64encode(each.key_id + each.signature).decode()}\n" for each in note.signatures]
    return f"{note.text}\n{''.join(lines)}"


def read_note(text: str) -> Note:
    """A note from its text. Raises BadNote."""
    if len(text) > MAX_NOTE or any(ord(each) < 0x20 and each != "\n" for each in text):
        raise BadNote("a note is short and has no control characters")
    body, gap, tail = text.rpartition("\n\n")
    if not gap or not tail.endswith("\n"):
        raise BadNote("a note is a text, an empty line and signatures")
    return Note(body + "\n", tuple(_signature(line) for line in tail[:-1].split("\n")))


def read_checkpoint(note: Note) -> Checkpoint:
    """What a note says as a checkpoint. Raises BadNote."""
    lines = note.text.split("\n")
    if len(lines) < 4 or not lines[0]:
        raise BadNote("a checkpoint is an origin, a size and a root")
    if not _DECIMAL.fullmatch(lines[1]):
        raise BadNote("a checkpoint's size is a decimal number")
    root = _base64(lines[2])
    if len(root) != HASH:
        raise BadNote("a checkpoint's root is a SHA-256")
    return Checkpoint(lines[0], int(lines[1]), root)


def _signature(line: str) -> Signature:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != _DASH or not _NAME.fullmatch(parts[1]):
        raise BadNote("a signature line is a dash, a name and base64")
    raw = _base64(parts[2])
    if len(raw) < 5:
        raise BadNote("a signature is too short")
    return Signature(parts[1], raw[:4], raw[4:])


def _base64(text: str) -> bytes:
    try:
        raw = b64decode(text, validate=True)
    except (NotBase64, ValueError) as error:
        raise BadNote(f"not base64: {text[:60]!r}") from error
    if b64encode(raw).decode() != text:
        raise BadNote(f"not canonical base64: {text[:60]!r}")
    return raw
