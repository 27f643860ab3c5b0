"""The offline verifier: an export, the keys that its reader trusts, and what witnesses saw; nothing else.

Every event is hashed again from the bytes in the export, the tree is grown from the hashes, and each signed checkpoint
must have its root. Must not stop at the first finding: an auditor wants to know all that is wrong.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from vmorch.audit.export import (
    CHECKPOINT,
    END,
    FORMAT,
    HEADER,
    MISSING,
    OURS,
    BadExport,
    CheckpointLine,
    EndLine,
    Header,
    Line,
    Turn,
    content,
    data_of,
    event_hash,
    position_of,
    read_line,
    source_of,
    unhash,
    unshown,
)
from vmorch.audit.merkle import Tree, cover
from vmorch.audit.notes import BadNote, Checkpoint, VerifierKey, read_checkpoint, read_note
from vmorch.audit.sealing import ANNOUNCED
from vmorch.audit.trust import Trust

What = Literal[
    "changed",      # an event is not what was sealed at its position
    "missing",      # an event that was sealed is not there
    "out-of-place", # an event stands where another belongs
    "not-sealed",   # events do not give the root that was signed, so some are not what was sealed
    "unsigned",     # a checkpoint is signed by no key that counts
    "misplaced",    # a checkpoint is of another log, or of other events than those before it
    "forked",       # a witness holds another checkpoint of the same size
    "shorter",      # a witness holds a checkpoint of more events than there are
    "partial",      # the export does not begin with the log, though all of it was asked for
]  # fmt: skip
MOST = 1000
"""Findings after which the rest is only counted."""


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that is wrong, with the first and the last position that it touches."""

    what: What
    first: int
    last: int
    detail: str


class Verdict(Struct, frozen=True, kw_only=True):
    """What an export proves: the events after `after` up to `until` are in the tree of `size`, unless findings say no.

    `beyond` counts the witnessed checkpoints that the export does not reach, `unsealed` the events that the log had
    beyond its last checkpoint.
    """

    origin: str
    after: int
    until: int
    size: int
    root: str
    signed_by: str
    events: int
    checkpoints: int
    witnessed: int
    beyond: int
    unsealed: int
    findings: tuple[Finding, ...]
    more: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class Verifier:
    """Reads an export line by line. `part`: only a part of the log was asked for, so that nobody expects the rest."""

    def __init__(
        self, trusted: Sequence[VerifierKey], witnessed: Iterable[Checkpoint] = (), *, part: bool = False
    ) -> None:
        self._trust = Trust(trusted)
        self._witnessed: dict[int, list[Checkpoint]] = {}
        for each in witnessed:
            self._witnessed.setdefault(each.size, []).append(each)
        self._part = part
        self._tree = Tree()
        self._position = 0
        """The last position that was seen."""
        self._header: Header | None = None
        self._end: Checkpoint | None = None
        self._signed_by = ""
        self._last_note = ""
        self._good = 0
        """The size of the last checkpoint that is true to the tree."""
        self._broken = False
        """The tree cannot be grown as it was from here on; events are still held against the hashes beside them."""
        self._doubts: list[Finding] = []
        """Checkpoints that no key that counts signed: harmless if a later one of the same tree is signed."""
        self._findings: list[Finding] = []
        self._more = 0
        self._events = self._checkpoints = self._compared = 0
        self._lines = 0

    def feed(self, text: bytes) -> None:
        """The next line. Raises BadExport with its number."""
        self._lines += 1
        try:
            self._line(read_line(text))
        except (BadExport, BadNote) as error:
            raise BadExport(f"line {self._lines}: {error}") from error

    def verdict(self) -> Verdict:
        """What was found. Raises BadExport if the export ended early."""
        if self._header is None or self._end is None:
            raise BadExport(f"the export ends after line {self._lines}, before its end")
        findings = [*self._findings, *self._doubts]
        beyond = 0
        for each in sorted(size for size in self._witnessed if size > self._end.size):
            beyond += 1
            if not self._part:
                detail = f"a witness holds a checkpoint of {each} events; the newest one here has {self._end.size}"
                findings.append(Finding(what="shorter", first=self._end.size + 1, last=each, detail=detail))
        return Verdict(
            origin=self._header.origin,
            after=self._header.after,
            until=self._header.until,
            size=self._end.size,
            root=self._end.root.hex(),
            signed_by=self._signed_by,
            events=self._events,
            checkpoints=self._checkpoints,
            witnessed=self._compared,
            beyond=beyond + sum(self._header.until < size < self._end.size for size in self._witnessed),
            unsealed=max(self._header.head - self._end.size, 0),
            findings=tuple(findings),
            more=self._more,
        )

    def _line(self, line: Line) -> None:
        if self._header is None:
            self._begin(line)
        elif self._end is not None:
            raise BadExport("something follows the end")
        elif line.source != source_of(self._header.origin):
            raise BadExport(f"of another log: {line.source[:200]!r}")
        elif not line.type.startswith(OURS):
            self._event(line)
        elif line.type == MISSING:
            self._missing(line)
        elif line.type == CHECKPOINT:
            self._checkpoints += 1
            self._checkpoint(content(line, CheckpointLine).note)
        elif line.type == END:
            self._finish(content(line, EndLine))
        else:
            raise BadExport(f"{line.type[:60]!r} is no line of an export")

    def _begin(self, line: Line) -> None:
        if line.type != HEADER:
            raise BadExport("an export begins with its header")
        header = content(line, Header)
        if header.format != FORMAT:
            raise BadExport(f"format {header.format}; this verifier reads format {FORMAT}")
        if not 0 <= header.after <= header.until:
            raise BadExport("the header's positions contradict each other")
        for turn in header.turns:
            if position_of(turn.event) > header.after:
                raise BadExport("the header tells of keys that are announced later")
            follow(self._trust, header.origin, turn)
        self._header = header
        _push(self._tree, unshown(header.left), 0, header.after)
        self._good = self._position = header.after
        if header.after and not self._part:
            detail = f"the events up to {header.after} are not in this export"
            self._find(Finding(what="partial", first=1, last=header.after, detail=detail))
        for each in {one.origin for group in self._witnessed.values() for one in group} - {header.origin}:
            detail = f"the witness watches another log: {each[:200]!r}, and this is {header.origin!r}"
            self._find(Finding(what="forked", first=1, last=header.until, detail=detail))
        self._compare()

    def _event(self, line: Line) -> None:
        position, hash = position_of(line), event_hash(line)
        self._events += 1
        if not self._at(position):
            return
        sealed = unhash(line.sealedhash) if line.sealedhash else hash
        if sealed != hash:
            detail = f"event {position} ({line.type} of {line.subject}) is not what was sealed"
            self._find(Finding(what="changed", first=position, last=position, detail=detail))
        elif line.type == ANNOUNCED:
            self._trust.announce(position, data_of(line))
        self._grow(sealed)

    def _missing(self, line: Line) -> None:
        position = position_of(line)
        if self._at(position):
            self._gone(position, position)
            self._grow(unhash(line.sealedhash))

    def _at(self, position: int) -> bool:
        """Whether an event may stand here; those that are left out before it are found missing."""
        expected = self._position + 1
        if position < expected:
            detail = f"event {position} comes again, where event {expected} belongs"
            self._find(Finding(what="out-of-place", first=position, last=expected, detail=detail))
            return False
        if position > expected:
            self._gone(expected, position - 1)
            self._broken, self._position = True, position - 1
        return True

    def _grow(self, hash: bytes) -> None:
        self._position += 1
        if not self._broken:
            self._tree.push(hash)
            if self._position in self._witnessed:
                self._compare()

    def _gone(self, first: int, last: int) -> None:
        """Events are missing: one finding for those that follow each other."""
        before = self._findings[-1] if self._findings else None
        if before is not None and before.what == "missing" and before.last == first - 1:
            first = self._findings.pop().first
        which = f"event {first} is" if first == last else f"the events from {first} to {last} are"
        self._find(Finding(what="missing", first=first, last=last, detail=f"{which} not in the log"))

    def _compare(self) -> None:
        """Hold the tree against what witnesses saw of it at this size."""
        for each in self._witnessed.get(self._tree.size, ()):
            self._compared += 1
            if each.root != self._tree.root():
                detail = f"a witness holds another checkpoint of {each.size} events"
                self._find(Finding(what="forked", first=self._good + 1, last=each.size, detail=detail))

    def _checkpoint(self, text: str) -> None:
        """A checkpoint of the tree as it is now."""
        assert self._header is not None
        if text == self._last_note:
            return
        self._last_note, size = text, self._position
        try:
            note = read_note(text)
            told = read_checkpoint(note)
        except BadNote as error:
            self._find(Finding(what="misplaced", first=size, last=size, detail=f"no checkpoint: {error}"))
            return
        if told.origin != self._header.origin or told.size != size:
            detail = f"a checkpoint of {told.size} events of {told.origin[:200]!r} stands after event {size}"
            self._find(Finding(what="misplaced", first=size, last=size, detail=detail))
            return
        true = not self._broken and told.root == self._tree.root()
        if not true and not self._broken:
            self._broken = True
            detail = f"the events do not have the root that the checkpoint of {size} events was signed with"
            self._find(Finding(what="not-sealed", first=self._good + 1, last=size, detail=detail))
        key = self._trust.signer(note, size)
        if key is None:
            names = ", ".join(f"{each.name}+{each.key_id.hex()}" for each in note.signatures)
            detail = f"the checkpoint of {size} events is signed by no key that counts: {names}"
            self._doubts.append(Finding(what="unsigned", first=size, last=size, detail=detail))
        elif true:
            self._good, self._signed_by = size, key.text()
            self._doubts.clear()
            self._trust.accept(size, key)

    def _finish(self, end: EndLine) -> None:
        assert self._header is not None
        until = self._header.until
        if self._position < until:
            self._gone(self._position + 1, until)
            self._broken, self._position = True, until
        told = read_checkpoint(read_note(end.note))
        if not self._broken:
            _push(self._tree, unshown(end.right), until, told.size)
        self._position = max(until, told.size)
        self._checkpoint(end.note)
        if told.size != until and not self._broken:
            self._compare()
        self._end = told

    def _find(self, finding: Finding) -> None:
        if len(self._findings) < MOST:
            self._findings.append(finding)
        else:
            self._more += 1


def verify(
    lines: Iterable[bytes],
    trusted: Sequence[VerifierKey],
    witnessed: Iterable[Checkpoint] = (),
    *,
    part: bool = False,
) -> Verdict:
    """What the lines of an export prove. Raises BadExport."""
    verifier = Verifier(trusted, witnessed, part=part)
    for line in lines:
        verifier.feed(line)
    return verifier.verdict()


def follow(trust: Trust, origin: str, turn: Turn) -> None:
    """Trust the key that a change of keys announces, if one that counts vouches for it. Raises BadExport, BadNote."""
    position = position_of(turn.event)
    if turn.event.type != ANNOUNCED or position < 1:
        raise BadExport(f"event {turn.event.id} announces no key")
    tree = Tree()
    _push(tree, unshown(turn.left), 0, position - 1)
    tree.push(event_hash(turn.event))
    note = read_note(turn.note)
    key = trust.signer(note, position)
    if key is not None and read_checkpoint(note) == Checkpoint(origin, tree.size, tree.root()):
        trust.announce(position, data_of(turn.event))
        trust.accept(position, key)


def _push(tree: Tree, hashes: Sequence[bytes], low: int, high: int) -> None:
    """Grow a tree by the cover of a span. Raises BadExport."""
    nodes = cover(low, high)
    if tree.size != low or len(nodes) != len(hashes):
        raise BadExport(f"the hashes of the events from {low + 1} to {high} are not these")
    for node, hash in zip(nodes, hashes, strict=True):
        tree.push(hash, node.level)
