"""What an event follows from, as far as the event and those around it say.

Must not read the log: whoever does hands in the events to look among.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from vmorch.core.ids import Position
from vmorch.core.records import Recorded
from vmorch.core.value import Value

STARTED = "vm.operation-started"


class Cause(Value, frozen=True):
    """What an event itself says of its causes."""

    causation: Position | None = None
    operation: str | None = None
    correlation: str | None = None


class _Data(Value, frozen=True):
    operation: Any = None


_read_meta = msgspec.json.Decoder(Cause).decode
_read_data = msgspec.json.Decoder(_Data).decode


def cause_of(record: Recorded) -> Cause:
    """What the event says of its causes; nothing, if it cannot be read."""
    try:
        said = _read_meta(record.meta)
        of = _read_data(record.data).operation
    except msgspec.ValidationError:
        return Cause()
    if said.operation is None and isinstance(of, str):
        return msgspec.structs.replace(said, operation=of)
    return said


def parent_among(record: Recorded, around: Iterable[Recorded]) -> Recorded | None:
    """The event before this one in its operation; for what is told together with the beginning of the operation, that
    beginning. None for the beginning itself, and for what belongs to no operation."""
    operation = cause_of(record).operation
    if operation is None or record.kind == STARTED:
        return None
    same = [each for each in around if each.position != record.position and cause_of(each).operation == operation]
    begun = next((each for each in same if each.kind == STARTED), None)
    before = [each for each in same if each.position < record.position]
    if begun is None or begun.position > record.position:
        return begun or (before[-1] if before else None)
    return before[-1]
