"""What a witness keeps: every checkpoint that it saw, each proven to begin the next. Lines of JSON, oldest first.

It is worth something only where whoever runs the log cannot write. Must not fetch, and must not write.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from vmorch.audit.export import Turn
from vmorch.audit.merkle import extends
from vmorch.audit.notes import BadNote, Checkpoint, read_checkpoint, read_note
from vmorch.audit.trust import Trust
from vmorch.audit.verification import follow


class Contradiction(Exception):
    """A checkpoint does not grow from the one that was seen before; the message says how."""

    code = "log-tampered"


class Sighting(Struct, frozen=True, kw_only=True):
    """A checkpoint as it was seen."""

    seen: datetime
    note: str


def read_sightings(text: bytes) -> list[Checkpoint]:
    """The checkpoints of a witness's file. Raises BadNote with the line's number."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found.append(read_checkpoint(read_note(msgspec.json.decode(line, type=Sighting).note)))
        except (msgspec.DecodeError, UnicodeDecodeError, BadNote) as error:
            raise BadNote(f"line {number} is no sighting of a checkpoint: {error}") from error
    return found


def write_sighting(sighting: Sighting) -> bytes:
    """A sighting as a line."""
    return msgspec.json.encode(sighting) + b"\n"


def trusted_checkpoint(text: str, turns: Sequence[Turn], trust: Trust) -> Checkpoint:
    """What a note says, if a key that counts signed it, given the changes of keys so far.

    Raises BadNote, BadExport.
    """
    note = read_note(text)
    told = read_checkpoint(note)
    for turn in turns:
        follow(trust, told.origin, turn)
    if trust.signer(note, told.size) is None:
        names = ", ".join(f"{each.name}+{each.key_id.hex()}" for each in note.signatures)
        raise BadNote(f"the checkpoint of {told.size} events is signed by no key that counts: {names}")
    return told


def demand_growth(held: Checkpoint, offered: Checkpoint, path: Sequence[bytes]) -> None:
    """Nothing, if the log that was seen begins the one that is offered. Raises Contradiction."""
    if offered.origin != held.origin:
        raise Contradiction(f"this is another log: {offered.origin!r}; the one that was seen is {held.origin!r}")
    if offered.size < held.size:
        raise Contradiction(f"the log has {offered.size} sealed events; {held.size} were seen before")
    if not extends(held.size, held.root, offered.size, offered.root, path):
        raise Contradiction(f"the log forked: its first {held.size} events are not those that were seen before")
