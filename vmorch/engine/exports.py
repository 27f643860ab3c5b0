"""The log as lines that prove themselves, from the log and its seals as they are, whether or not they agree.

Must not judge: what is missing or changed is shown beside the hash that was sealed, for a verifier to name.
"""

from collections.abc import AsyncIterator, Sequence

from vmorch.audit.blocks import EVENTS
from vmorch.audit.export import (
    FORMAT,
    Header,
    Turn,
    checkpoint_line,
    end_line,
    event_line,
    header_line,
    missing_line,
    shown,
    write_line,
)
from vmorch.audit.merkle import Node, Span, cover, span_hash
from vmorch.audit.sealing import ANNOUNCED
from vmorch.core.aggregates import cluster as clusters
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position
from vmorch.core.records import Recorded
from vmorch.log.interface import Log
from vmorch.log.seals import Seal, Seals


class Export:
    """The events after `after` up to `until` of one log; `seal` is the oldest that covers them."""

    def __init__(
        self, log: Log, seals: Seals, origin: str, after: Position, until: Position, seal: Seal, *, archive: bool
    ) -> None:
        self._log = log
        self._seals = seals
        self._origin = origin
        self._after = after
        self._until = until
        self._seal = seal
        self._archive = archive

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines in batches: the header, each EVENTS positions, the end.

        Raises Rejected `log-tampered`, LogUnavailable.
        """
        yield write_line(header_line(await self._header()))
        low = self._after
        while low < self._until:
            high = Position(min(low + EVENTS, self._until))
            yield await self._page(low, high)
            low = high
        right = await _hashes(self._seals, cover(self._until, self._seal.size))
        yield write_line(end_line(self._origin, self._until, right, self._seal.note))

    async def _header(self) -> Header:
        return Header(
            format=FORMAT,
            origin=self._origin,
            after=self._after,
            until=self._until,
            head=self._seal.size if self._archive else await self._log.head(),
            left=shown(await _hashes(self._seals, cover(0, self._after))),
            turns=await turns(self._log, self._seals, self._origin, self._after),
        )

    async def _page(self, low: Position, high: Position) -> bytes:
        # one more than there are positions: two events at one of them must show
        records = await self._log.read(low, high - low + 1, high)
        by_position: dict[Position, list[Recorded]] = {}
        for record in records:
            by_position.setdefault(record.position, []).append(record)
        seals = await self._seals.between(low, high)
        leaves = {Position(seal.after + at): leaf for seal in seals for at, leaf in enumerate(seal.leaves, start=1)}
        notes = {seal.size: seal.note for seal in seals}
        lines: list[bytes] = []
        for position in map(Position, range(low + 1, high + 1)):
            sealed = leaves.get(position)
            found = by_position.get(position, ())
            lines += [write_line(event_line(self._origin, each, sealed)) for each in found]
            if not found and sealed is not None:
                lines.append(write_line(missing_line(self._origin, position, sealed)))
            if position in notes:
                lines.append(write_line(checkpoint_line(self._origin, position, notes[position])))
        return b"".join(lines)


async def prepare_export(
    log: Log,
    seals: Seals,
    origin: str,
    after: Position | None = None,
    until: Position | None = None,
    *,
    archive: bool = False,
) -> Export:
    """An export of the events after `after` up to `until`, or to the last one that is sealed. An `archive` is the same
    whenever it is made.

    Raises Rejected `not-sealed`, LogUnavailable.
    """
    last = await seals.last()
    sealed = Position(0) if last is None else last.size
    after, until = after or Position(0), sealed if until is None else until
    seal = await seals.covering(until)
    if seal is None or after > until:
        raise Rejected(
            "not-sealed",
            f"the log is sealed up to event {sealed}",
            hint="vmorch audit status",
            facts={"sealed": sealed},
        )
    return Export(log, seals, origin, after, until, seal, archive=archive)


async def turns(log: Log, seals: Seals, origin: str, until: Position) -> tuple[Turn, ...]:
    """The changes of keys up to an event, with what proves them. Raises Rejected `log-tampered`, LogUnavailable."""
    found = []
    for record in await log.read_stream(clusters.STREAM, until=until) if until else []:
        seal = await seals.at(record.position) if record.kind == ANNOUNCED else None
        if seal is not None:
            left = shown(await _hashes(seals, cover(0, record.position - 1)))
            event = event_line(origin, record, seal.leaves[-1])
            found.append(Turn(event=event, left=left, note=seal.note))
    return tuple(found)


async def proof(seals: Seals, spans: Sequence[Span]) -> tuple[str, ...]:
    """The hashes that a proof asks for, as base64. Raises Rejected `log-tampered`, LogUnavailable."""
    known = dict.fromkeys(node for span in spans for node in cover(span.low, span.high))
    hashes = dict(zip(known, await _hashes(seals, list(known)), strict=True))
    return shown(span_hash(span, hashes.__getitem__) for span in spans)


async def _hashes(seals: Seals, nodes: Sequence[Node]) -> list[bytes]:
    try:
        known = await seals.hashes(nodes)
    except KeyError as error:
        raise Rejected("log-tampered", f"hashes of the log's tree are missing: {error}") from error
    return [known[node] for node in nodes]
