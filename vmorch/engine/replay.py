"""The whole log folded anew, beside everything that was ever folded from it: live state, read models, checkpoints.

Must not mend anything: differences are told with the last event of what differs. Everything compared is taken at one
position each and compared when the replay passes there.
"""

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream
from vmorch.core.states import digest, frame_of, held, plain, read_frame, read_row, restore
from vmorch.engine.history import BATCH, History
from vmorch.log.folding import uncollected
from vmorch.views.projector import take
from vmorch.views.rows import Key, Row, Rows
from vmorch.views.tables import Model

MOST = 100
"""How many differences are told; `total` counts them all."""


class Differing(Struct, frozen=True, kw_only=True):
    """One thing that is otherwise than the log says. `position` and `event` are the last event of its stream."""

    where: str
    subject: str
    detail: str
    position: int | None
    event: str


class Replayed(Struct, frozen=True, kw_only=True):
    """What a replay found. `digest` is one name for the whole state at `position`: equal for equal states.

    `rows` and `live` tell what was compared: how many rows of the read models, and whether the live state; None and
    False where they stood beyond the position.
    """

    position: int
    time: datetime | None
    events: int
    seconds: float
    rate: float
    things: int
    digest: str
    unreadable: Mapping[Stream, str]
    verified: bool
    checkpoints: int
    rows: int | None
    live: bool
    total: int
    differences: tuple[Differing, ...]


class _Replay:
    def __init__(self) -> None:
        self.rows = Rows()
        self.poisoned: dict[Stream, str] = {}
        self.every: dict[Key, Row | None] = {}
        self.last: dict[Stream, tuple[Position, str]] = {}
        self.found: list[Differing] = []

    @property
    def fleet(self) -> Fleet:
        return self.rows.fleet

    def differs(self, where: str, subject: Stream | str, detail: str) -> None:
        position, event = self.last.get(Stream(subject), (None, ""))
        self.found.append(
            Differing(where=where, subject=subject, detail=detail, position=position, event=event)
        )

    def compare_state(self, where: str, other: Fleet) -> None:
        ours = {each.stream: each.state for each in held(self.fleet)}
        theirs = {each.stream: each.state for each in held(other)}
        for at in sorted(ours.keys() | theirs.keys()):
            if at not in theirs:
                self.differs(where, at, "is missing")
            elif at not in ours:
                self.differs(where, at, "is not known to the log")
            elif plain(ours[at]) != plain(theirs[at]):
                self.differs(where, at, ", ".join(_unequal(ours[at], theirs[at])))

    def compare_rows(self, theirs: Mapping[Key, Row]) -> int:
        ours = {key: row for key, row in self.every.items() if row is not None}
        for key in sorted(ours.keys() | theirs.keys()):
            model, id = key
            subject = _subject(model, id, ours.get(key) or theirs[key])
            if key not in theirs:
                self.differs(f"read model {model}", subject, f"the row of {id} is missing")
            elif key not in ours:
                self.differs(f"read model {model}", subject, f"the row of {id} is not known to the log")
            elif ours[key] != theirs[key]:
                columns = [name for name in ours[key] if ours[key][name] != theirs[key].get(name)]
                self.differs(f"read model {model}", subject, ", ".join(columns))
        return len(ours)


class Stored(Struct, frozen=True):
    """What is to be compared: the read models with their position, and the live state."""

    at: Position
    rows: Mapping[Key, Row]
    live: Fleet


async def replay(history: History, to: Position | None, stored: Stored | None) -> Replayed:
    """Fold the log up to a position, or to where all that is `stored` stands; compare with it, and with every
    checkpoint, unless there is nothing stored to compare."""
    began = time.perf_counter()
    end = to
    if end is None:
        end = await history.log.head() if stored is None else max(stored.at, stored.live.position)
    marks = [] if stored is None or history.states is None else await history.states.marks(end)
    work, rows, live = _Replay(), None, False
    stops = {*marks, end} | (set() if stored is None else {stored.at, stored.live.position})
    for stop in sorted(each for each in stops if each <= end):
        await _fold(history, work, Position(stop))
        if stop in marks:
            await _compare_checkpoint(history, work, Position(stop))
        if stored is not None and stop == stored.at:
            rows = work.compare_rows(stored.rows)
        if stored is not None and stop == stored.live.position:
            live = True
            work.compare_state("live state", stored.live)
    seconds = time.perf_counter() - began
    return Replayed(
        position=end,
        time=work.fleet.recorded_at,
        events=end,
        seconds=seconds,
        rate=end / seconds,
        things=len(held(work.fleet)),
        digest=digest(work.fleet),
        unreadable=work.poisoned,
        verified=stored is not None,
        checkpoints=len(marks),
        rows=rows,
        live=live,
        total=len(work.found),
        differences=tuple(work.found[:MOST]),
    )


async def _fold(history: History, work: _Replay, until: Position) -> None:
    with uncollected():
        while work.fleet.position < until:
            for record in await history.log.read(work.fleet.position, BATCH, until):
                take(work.rows, record, work.poisoned)
                work.last[record.stream] = (record.position, record.kind)
            work.every.update(work.rows.take())
            # a long fold must not starve the loop that everything else runs on
            await asyncio.sleep(0)


async def _compare_checkpoint(history: History, work: _Replay, at: Position) -> None:
    assert history.states is not None
    where = f"checkpoint @{at}"
    mark = await history.states.newest(at)
    if mark is None or mark.position != at:
        return  # dropped since
    rows = []
    for row in await history.states.states(at):
        try:
            rows.append(read_row(row))
        except ValueError as error:
            work.differs(where, row.stream, str(error))
    try:
        frame = read_frame(mark.frame)
    except ValueError as error:
        work.differs(where, "the frame", str(error))
        return
    work.compare_state(where, restore(at, frame, rows))
    ours = frame_of(work.fleet, work.poisoned)
    if plain(ours) != plain(frame):
        work.differs(where, "the frame", ", ".join(_unequal(ours, frame)))


def _unequal(ours: Struct, theirs: Struct) -> list[str]:
    names = ours.__struct_fields__
    return [name for name in names if plain(getattr(ours, name)) != plain(getattr(theirs, name, None))]


def _subject(model: Model, id: str, row: Row) -> str:
    if model == "operations":
        return f"vm/{row['vm']}"
    return f"{model.removesuffix('s')}/{id}"
