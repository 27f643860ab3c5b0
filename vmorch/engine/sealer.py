"""Seals the log each second: what was appended becomes a part of its tree, and a signed checkpoint says so.

It goes on from the last seal and from nothing that it remembers, so that servers may take turns. It refuses to seal
a log that does not begin with what is sealed, and says that in the log. Must not change what is sealed.
"""

from collections.abc import Sequence

import structlog

from vmorch.audit.leaves import sealed_hash
from vmorch.audit.merkle import Tree
from vmorch.audit.notes import BadNote, read_checkpoint, read_key, read_note
from vmorch.audit.sealing import ANNOUNCED, SPAN, Announcement, key_in_force, seal_end
from vmorch.audit.signing import LogSigner, signed_by
from vmorch.bus.keys import BadKey
from vmorch.core.aggregates import cluster as clusters
from vmorch.core.aggregates.cluster import LogKeyAnnounced
from vmorch.core.codec import Unreadable, decode_event
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position
from vmorch.core.operation import Change, change
from vmorch.engine.effects import Clock
from vmorch.engine.logkeys import LogKeys
from vmorch.engine.recorder import Recorder
from vmorch.log.errors import LogError
from vmorch.log.interface import Log
from vmorch.log.seals import Seal, Seals

logger = structlog.get_logger()

EVERY = 1.0
"""Seconds between looks for what is not sealed yet."""
AHEAD = 16 * SPAN
"""Events whose hashes are asked for at once, if so many are not sealed yet."""
ACTOR = "sealer"


class Sealer:
    """Seals one log. Any number of servers may have one; a seal is written by whichever is first."""

    def __init__(self, log: Log, seals: Seals, keys: LogKeys, recorder: Recorder, clock: Clock) -> None:
        self._log = log
        self._seals = seals
        self._keys = keys
        self._recorder = recorder
        self._clock = clock
        self._tree: Tree | None = None
        self._leaf = b""

    async def run(self) -> None:
        """Seal, until cancelled. What stands in the way is recorded once, and again when it is gone."""
        while True:
            try:
                await self._say(await self._refusal())
            except (LogError, Rejected) as error:
                # Postgres is away, or the log's own order is broken: either way the next round looks again
                logger.warning("sealing waits", why=str(error))
            await self._clock.sleep(EVERY)

    async def seal(self) -> None:
        """Seal all that the log holds now.

        Raises Rejected `log-tampered` if it is not what was sealed, `other-log-key` if the key in force is not here;
        BadKey, LogUnavailable.
        """
        head = await self._log.head()
        announced: Sequence[Announcement] | None = None
        if self._tree is None:
            self._tree = await self._resume()
        tree = self._tree
        if head < tree.size:
            self._tree = None
            raise _gone(tree.size)
        signer: tuple[str, LogSigner] | None = None
        ahead: tuple[bytes, ...] = ()
        while tree.size < head:
            announced = announced if announced is not None else await announcements(self._log)
            ahead = ahead or await self._following(tree, min(head, tree.size + AHEAD))
            end = seal_end(announced, tree.size, tree.size + len(ahead))
            leaves, ahead = ahead[: end - tree.size], ahead[end - tree.size :]
            grown = tree.copy()
            completed = grown.extend(leaves)
            key = key_in_force(announced, tree.size)
            if key is None:
                raise Rejected("other-log-key", "the log announces no key to sign with", hint="vmorch server init")
            if signer is None or signer[0] != key:
                signer = key, self._keys.signer(key)
            seal = Seal(
                after=Position(tree.size),
                size=Position(grown.size),
                leaves=leaves,
                edge=tuple(grown.edge),
                note=signer[1].sign(grown.size, grown.root()),
            )
            if await self._seals.add(seal, completed):
                self._leaf = leaves[-1]
            else:
                # another server was first, or this one does not know that it was: either way there is a newer seal
                self._tree, ahead = None, ()
                grown = await self._resume()
            self._tree = tree = grown

    async def _refusal(self) -> tuple[str, str] | None:
        try:
            await self.seal()
        except Rejected as refusal:
            logger.error("the log is not sealed", code=refusal.code, why=refusal.reason)
            return refusal.code, refusal.reason
        except BadKey as error:
            logger.error("the log is not sealed", code=error.code, why=str(error))
            return "other-log-key", str(error)
        return None

    async def _say(self, refusal: tuple[str, str] | None) -> None:
        def decide() -> tuple[list[Change], None]:
            events = clusters.note_sealing(self._recorder.world.fleet.cluster, refusal)
            return [change(clusters.STREAM, event) for event in events], None

        await self._recorder.record(decide, lambda _: self._recorder.meta(actor=ACTOR))

    async def _resume(self) -> Tree:
        """The tree of the last seal, if it is one and the log still holds what it sealed."""
        last = await self._seals.last()
        if last is None:
            return Tree()
        key = key_in_force(await announcements(self._log), last.after)
        try:
            tree = Tree(last.size, last.edge)
            note = read_note(last.note)
            told = read_checkpoint(note)
            signed = key is not None and signed_by(note, read_key(key))
        except (ValueError, BadNote) as error:
            raise Rejected("log-tampered", f"the seal of {last.size} events cannot be read: {error}") from error
        if not signed or told.origin != self._keys.origin or (told.size, told.root) != (tree.size, tree.root()):
            raise Rejected("log-tampered", f"the seal of {last.size} events is not what the log's key signed")
        found = await self._hashes(last.after, last.size)
        for position, (one, other) in enumerate(zip(found, last.leaves, strict=True), start=last.after + 1):
            if one != other:
                raise _changed(position)
        self._leaf = last.leaves[-1]
        return tree

    async def _following(self, tree: Tree, until: int) -> tuple[bytes, ...]:
        """The hashes of the events after those of the tree up to `until`, if they follow the last that is sealed."""
        overlap = min(tree.size, 1)
        try:
            found = await self._hashes(Position(tree.size - overlap), Position(until))
            if overlap and found[0] != self._leaf:
                raise _changed(tree.size)
        except Rejected:
            self._tree = None
            raise
        return found[overlap:]

    async def _hashes(self, after: Position, until: Position) -> tuple[bytes, ...]:
        """The leaf hashes of events as the log holds them. Raises Rejected `log-tampered` if one is not there."""
        found, whole = await self._seals.leaf_hashes(after, until)
        if whole and len(found) == until - after:
            return found
        # Postgres does not have all of them: some are archived, or one is gone
        there = await self._log.read(after, until - after, until)
        places = [*(each.position for each in there), 0]
        gap = next(position for position, one in enumerate(places, start=after + 1) if one != position)
        if gap <= until:
            raise _gone(gap)
        return tuple(sealed_hash(each) for each in there)


async def announcements(log: Log) -> list[Announcement]:
    """The keys that a log announces, in its order. Raises Rejected `log-tampered`, LogUnavailable."""
    found = []
    for record in await log.read_stream(clusters.STREAM):
        if record.kind == ANNOUNCED:
            try:
                event = decode_event(record.kind, record.schema, record.data)
            except Unreadable as error:
                raise Rejected("log-tampered", f"event {record.position} cannot be read: {error}") from error
            assert isinstance(event, LogKeyAnnounced)
            found.append(Announcement(position=record.position, key=event.key, orphaned=event.orphaned))
    return found


def _changed(position: int) -> Rejected:
    return Rejected("log-tampered", f"event {position} is not what was sealed")


def _gone(position: int) -> Rejected:
    return Rejected("log-tampered", f"event {position} is not in the log")
