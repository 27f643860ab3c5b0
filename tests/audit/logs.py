"""A small sealed log in memory, and its export as the server writes it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.audit import naive
from vmorch.audit.export import FORMAT, Header, checkpoint_line, end_line, event_line, header_line, shown, write_line
from vmorch.audit.leaves import sealed_hash
from vmorch.audit.merkle import cover
from vmorch.audit.notes import Checkpoint
from vmorch.audit.sealing import ANNOUNCED
from vmorch.audit.signing import LogSigner
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded

ORIGIN = "vmorch/test/1"
START = datetime(2026, 11, 20, 14, tzinfo=UTC)


def signer(seed: int = 7) -> LogSigner:
    return LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


FIRST, SECOND, THIEF = signer(7), signer(8), signer(66)


def event(position: int, kind: str = "vm.renamed", data: bytes = b"") -> Recorded:
    return Recorded(
        position=Position(position),
        stream=Stream(f"vm/{position % 3}"),
        version=position // 3 + 1,
        kind=kind,
        schema=1,
        data=data or b'{"name":"web-%d"}' % position,
        meta=b'{"actor":"oncall","occurred_at":"2026-11-20T14:00:00Z"}',
        recorded_at=START + timedelta(microseconds=position * 1237),
    )


def events(count: int) -> list[Recorded]:
    return [event(position) for position in range(1, count + 1)]


def announcement(position: int, key: LogSigner, *, orphaned: bool = False) -> Recorded:
    data = msgspec.json.encode({"key": key.key.text(), "orphaned": orphaned})
    return event(position, ANNOUNCED, data)


def leaves(log: Sequence[Recorded]) -> list[bytes]:
    return [sealed_hash(each) for each in log]


def checkpoint(log: Sequence[Recorded], size: int) -> Checkpoint:
    return Checkpoint(ORIGIN, size, naive.mth(leaves(log)[:size]))


def note(log: Sequence[Recorded], size: int, by: LogSigner = FIRST) -> str:
    return by.sign(size, checkpoint(log, size).root)


def export(
    log: Sequence[Recorded], seals: Sequence[tuple[int, LogSigner]], after: int = 0, until: int | None = None
) -> list[bytes]:
    """The lines of an export of a log with these seals, by size and signer; the last one ends it."""
    hashes, notes = leaves(log), {size: note(log, size, by) for size, by in seals}
    last = seals[-1][0]
    until = last if until is None else until
    size = min(each for each, _ in seals if each >= until)
    left = shown(naive.node(at, hashes) for at in cover(0, after))
    head = Header(format=FORMAT, origin=ORIGIN, after=after, until=until, head=len(log), left=left)
    lines = [write_line(header_line(head))]
    for record in log[after:until]:
        lines.append(write_line(event_line(ORIGIN, record, hashes[record.position - 1])))
        if record.position in notes:
            lines.append(write_line(checkpoint_line(ORIGIN, record.position, notes[record.position])))
    right = [naive.node(at, hashes) for at in cover(until, size)]
    return [*lines, write_line(end_line(ORIGIN, until, right, notes[size]))]
