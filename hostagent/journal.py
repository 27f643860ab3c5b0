"""What the agent remembers across a crash: orders, epochs, what it last told, and what is not confirmed yet.

One SQLite file, every change on the disk before the call returns. Thread-safe; every method may block for a
disk flush. Must not decide about sessions and signatures, and must not touch the hypervisor.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from hostagent.hypervisor import Inventory
from hostagent.inventory import LastSeen, change, changes
from vmorch.core.codec import Packed
from vmorch.core.hostcommands import Answer, Failed, Observed
from vmorch.core.ids import CommandId, VmId
from vmorch.wire.envelopes import Answered, Item, Order, Seen, SeenUnmanaged

KEEP_SECONDS = 30 * 24 * 3600.0
KEEP_ORDERS = 100_000
PRUNE_EVERY = 1000
"""Orders between two prunings."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY, state TEXT NOT NULL CHECK (state IN ('intent', 'told', 'done')),
    lane TEXT NOT NULL, vm TEXT, epoch INTEGER NOT NULL, session TEXT NOT NULL,
    command BLOB, answer BLOB, at REAL NOT NULL,
    CHECK ((state = 'intent') = (answer IS NULL))
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS orders_open ON orders (at) WHERE state != 'done';
CREATE INDEX IF NOT EXISTS orders_done ON orders (at) WHERE state = 'done';
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, order_id TEXT, vm TEXT, item BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_order ON outbox (order_id) WHERE order_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS epochs (vm TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (
    vm TEXT PRIMARY KEY, observed BLOB NOT NULL, configuration BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

Admission = Literal["new", "known", "stale-epoch"]
MetaKey = Literal[
    "incarnation", "left-incarnations", "regressed", "position", "machine-id", "host-key", "unmanaged", "sessions"
]

_encode = msgspec.json.encode
_answer = msgspec.json.Decoder(Answer)
_item = msgspec.json.Decoder(Item)
_observed = msgspec.json.Decoder(Observed)
_configuration = msgspec.json.Decoder(dict[str, tuple[str, str]])
_packed = msgspec.json.Decoder(Packed)
_names = msgspec.json.Decoder(tuple[str, ...])


class OpenOrder(Struct, frozen=True, kw_only=True):
    """An order that was accepted and is not over: its effect may be there or not. If it was `told`, its answer was, and
    what comes after that may be missing."""

    id: CommandId
    lane: str
    vm: VmId | None
    command: Packed
    told: bool


class Entry(Struct, frozen=True):
    """An unconfirmed item and its number."""

    seq: int
    item: Item
    size: int


class Journal:
    """The journal in one file. Raises sqlite3.OperationalError from any call if the disk refuses, and then
    nothing of that call is remembered."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises sqlite3.OperationalError if another agent has it open."""
        self._lock = threading.RLock()
        self._accepted = 0
        # SQLite gives its other files the mode of this one
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
        # one agent per journal: the file stays locked for as long as it is open
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def accept(self, order: Order, lane: str, vm: VmId | None, at: float) -> Admission:
        """Remember the intent of an order. `known`: it was accepted before; if it is answered and its answer was
        confirmed, the answer is put in the outbox again."""
        with self._change() as db:
            row = db.execute("SELECT answer FROM orders WHERE id = ?", (order.id,)).fetchone()
            if row is not None:
                self._repeat(order.id, vm, row[0])
                return "known"
            if vm is not None:
                highest = db.execute("SELECT epoch FROM epochs WHERE vm = ?", (vm,)).fetchone()
                if highest is not None and order.epoch < highest[0]:
                    return "stale-epoch"
                if highest is None or order.epoch > highest[0]:
                    db.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (vm, order.epoch))
            db.execute(
                "INSERT INTO orders VALUES (?, 'intent', ?, ?, ?, ?, ?, NULL, ?)",
                (order.id, lane, vm, order.epoch, order.session, _encode(order.command), at),
            )
            self._accepted += 1
            if self._accepted % PRUNE_EVERY == 0:
                self._prune(at)
            return "new"

    def withdraw(self, id: CommandId, lane: str, vm: VmId | None, session: str, at: float) -> bool:
        """Make sure that an order which was never accepted will never run: it counts as answered
        `cancelled`. True if it has an answer now, False if its intent stands."""
        with self._change() as db:
            row = db.execute("SELECT answer FROM orders WHERE id = ?", (id,)).fetchone()
            if row is not None:
                self._repeat(id, vm, row[0])
                return row[0] is not None
            answer = Failed(code="cancelled", message="withdrawn before it came")
            db.execute(
                "INSERT INTO orders VALUES (?, 'done', ?, ?, 0, ?, NULL, ?, ?)",
                (id, lane, vm, session, _encode(answer), at),
            )
            self._put(Answered(id=id, answer=answer), id, vm)
            return True

    def answer(self, id: CommandId, vm: VmId | None, answer: Answer, *, over: bool = True) -> None:
        """Remember what became of an order and that it must be told, and whether the order is `over`. A second answer
        changes nothing but that."""
        with self._change() as db:
            changed = db.execute(
                "UPDATE orders SET state = ?, answer = ? WHERE id = ? AND state = 'intent'",
                ("done" if over else "told", _encode(answer), id),
            ).rowcount
            if not changed:
                if over:
                    db.execute("UPDATE orders SET state = 'done' WHERE id = ? AND state = 'told'", (id,))
                return
            self._put(Answered(id=id, answer=answer), id, vm)
            if vm is not None and answer.observed is not None:
                before = self._seen(vm)
                self._see(vm, answer.observed, before.configuration if before else {})

    def open_orders(self) -> list[OpenOrder]:
        """Every order that is not over, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, lane, vm, command, state = 'told' FROM orders WHERE state != 'done' ORDER BY at, id"
            ).fetchall()
        return [
            OpenOrder(id=id, lane=lane, vm=vm, command=_packed.decode(data), told=bool(told))
            for id, lane, vm, data, told in rows
        ]

    def unconfirmed(self, items: int, size: int) -> list[Entry]:
        """The oldest unconfirmed items: at most `items`, and of `size` bytes together, but at least one."""
        with self._lock:
            rows = self._db.execute("SELECT seq, item FROM outbox ORDER BY seq LIMIT ?", (items,)).fetchall()
        entries: list[Entry] = []
        for seq, data in rows:
            size -= len(data)
            if entries and size < 0:
                break
            entries.append(Entry(seq, _item.decode(data), len(data)))
        return entries

    def confirm(self, through: int, position: int) -> None:
        """Forget items up to `through`: they are in the log, which reached at least `position`."""
        with self._change() as db:
            db.execute("DELETE FROM outbox WHERE seq <= ?", (through,))
            if position > self.position():
                self.set_meta("position", str(position))

    def pin_incarnation(self, incarnation: str, left: tuple[str, ...], position: int) -> None:
        """Obey this log from now on, and never again those that were left for it."""
        with self._change():
            self.set_meta("incarnation", incarnation)
            self.set_meta("left-incarnations", _encode(left).decode())
            self.set_meta("position", str(position))
            self.set_meta("regressed", "")

    def position(self) -> int:
        """The highest log position that was ever confirmed, or 0."""
        return int(self.meta("position") or 0)

    def look(self, now: Inventory, settled: Callable[[VmId], bool]) -> int:
        """Put what changed since last told into the outbox. `settled` is asked under the journal's lock, so
        that a VM's newer answer is never overtaken by an older look. Returns how many items it put."""
        with self._change():
            seen = changes(self._all_seen(), now, settled)
            for each in seen:
                self._tell(each)
            unmanaged = tuple(sorted(now.unmanaged))
            known = _names.decode(self.meta("unmanaged") or "[]")
            if unmanaged != known:
                self.set_meta("unmanaged", _encode(unmanaged).decode())
                self._put(SeenUnmanaged(domains=unmanaged))
            return len(seen) + (unmanaged != known)

    def glance(self, vm: VmId, observed: Observed, settled: Callable[[VmId], bool]) -> bool:
        """Put what changed of one domain into the outbox, like `look`. Whether anything did."""
        with self._change():
            seen = change(vm, self._seen(vm), observed) if settled(vm) else None
            if seen is not None:
                self._tell(seen)
            return seen is not None

    def greeted(self, domains: Mapping[VmId, Observed], unmanaged: tuple[str, ...]) -> None:
        """Remember that a hello with these domains was recorded. Of a VM with unconfirmed items, which will
        be recorded later though they are older, nothing counts as told, so that the next look tells it again."""
        with self._change() as db:
            pending = {row[0] for row in db.execute("SELECT DISTINCT vm FROM outbox WHERE vm IS NOT NULL")}
            before = self._all_seen()
            for vm in before.keys() | domains.keys():
                configuration = before[vm].configuration if vm in before else {}
                if vm in pending:
                    self._see(vm, Observed(power="unknown"), configuration)
                else:
                    self._see(vm, domains.get(vm, Observed(power="absent")), configuration)
            self.set_meta("unmanaged", _encode(tuple(sorted(unmanaged))).decode())

    def seen(self) -> dict[VmId, LastSeen]:
        """What was last told of every domain."""
        with self._lock:
            return self._all_seen()

    def next_session(self) -> int:
        """The number of a new session: one more than any before."""
        number = int(self.meta("sessions") or 0) + 1
        self.set_meta("sessions", str(number))
        return number

    def meta(self, key: MetaKey) -> str | None:
        """A remembered value."""
        with self._lock:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: MetaKey, value: str) -> None:
        """Remember a value."""
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def prune(self, at: float) -> None:
        """Forget finished, confirmed orders that are older than 30 days or beyond the newest 100,000."""
        with self._change():
            self._prune(at)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def _repeat(self, id: CommandId, vm: VmId | None, answer: bytes | None) -> None:
        told = self._db.execute("SELECT 1 FROM outbox WHERE order_id = ?", (id,)).fetchone()
        if answer is not None and told is None:
            self._put(Answered(id=id, answer=_answer.decode(answer)), id, vm)

    def _put(self, item: Item, order: CommandId | None = None, vm: VmId | None = None) -> None:
        self._db.execute("INSERT INTO outbox (order_id, vm, item) VALUES (?, ?, ?)", (order, vm, _encode(item)))

    def _tell(self, seen: Seen) -> None:
        before = self._seen(seen.vm)
        known = before.configuration if before else {}
        self._see(seen.vm, seen.observed, known if seen.configuration is None else seen.configuration)
        self._put(seen, vm=seen.vm)

    def _see(self, vm: VmId, observed: Observed, configuration: dict[str, tuple[str, str]]) -> None:
        if observed.power == "absent":
            self._db.execute("DELETE FROM seen WHERE vm = ?", (vm,))
            return
        self._db.execute(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (vm, _encode(observed), _encode(configuration))
        )

    def _seen(self, vm: VmId) -> LastSeen | None:
        row = self._db.execute("SELECT observed, configuration FROM seen WHERE vm = ?", (vm,)).fetchone()
        return None if row is None else LastSeen(_observed.decode(row[0]), _configuration.decode(row[1]))

    def _all_seen(self) -> dict[VmId, LastSeen]:
        rows = self._db.execute("SELECT vm, observed, configuration FROM seen")
        return {vm: LastSeen(_observed.decode(seen), _configuration.decode(found)) for vm, seen, found in rows}

    def _prune(self, at: float) -> None:
        beyond = self._db.execute(
            "SELECT at FROM orders WHERE state = 'done' ORDER BY at DESC LIMIT 1 OFFSET ?", (KEEP_ORDERS,)
        ).fetchone()
        before = max(at - KEEP_SECONDS, beyond[0] if beyond else float("-inf"))
        self._db.execute(
            "DELETE FROM orders WHERE state = 'done' AND at <= ?"
            " AND id NOT IN (SELECT order_id FROM outbox WHERE order_id IS NOT NULL)",
            (before,),
        )

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when it is left; within another one, a part of it."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise
