"""The saga machine: steps, progress, and the one function that says what comes next.

Must not know what a step does. Unknown is not failed: a step without an answer stays sent until its host
answers or its time is over, and then the operation is stuck with a name, not guessed to an end.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from vmorch.core.codec import Packed, pack
from vmorch.core.hostcommands import Failed
from vmorch.core.ids import HostId, Stream
from vmorch.core.messages import Event, HostCommand

Outcome = Literal["succeeded", "undone", "cancelled", "stuck"]

MAX_ATTEMPTS = 5
"""How often one step is sent when its agent died in the middle and found nothing done."""


class Step(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One order to one host, how to take it back, and how long it may take.

    `commits`: once it is done, nothing before it can be taken back. `keep`: if it fails, what was done before
    stays in place and the operation is stuck with its code. `deadline` is in seconds from sending.
    """

    host: HostId
    label: str
    command: Packed
    undo: Packed | None = None
    commits: bool = False
    keep: bool = False
    deadline: float = 60.0


def step(
    host: HostId,
    command: HostCommand,
    *,
    undo: HostCommand | None = None,
    commits: bool = False,
    keep: bool = False,
    deadline: float = 60.0,
) -> Step:
    """A step from messages."""
    return Step(
        host=host,
        label=command.label,
        command=pack(command),
        undo=None if undo is None else pack(undo),
        commits=commits,
        keep=keep,
        deadline=deadline,
    )


class Change(Struct, frozen=True, kw_only=True):
    """An event that shall be appended to a stream."""

    stream: Stream
    event: Packed


def change(stream: Stream, event: Event) -> Change:
    """A change from an event."""
    return Change(stream=stream, event=pack(event))


class Plan(Struct, frozen=True, kw_only=True):
    """An operation before it starts, as data.

    `opening` is appended together with its start, `success` or `failure` together with its end. A plan
    without steps is only facts: `opening` says all of it and no operation is started.
    """

    steps: tuple[Step, ...] = ()
    opening: tuple[Change, ...] = ()
    success: tuple[Change, ...] = ()
    failure: tuple[Change, ...] = ()


class Progress(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far an operation has come, folded from its events."""

    done: int = 0
    undone: frozenset[int] = frozenset()
    attempt: int = 1
    failed: Failed | None = None
    undo_failed: Failed | None = None
    cancel: bool = False
    timed_out: str = ""


class Send(Struct, frozen=True):
    """Send step `index` (its undo, if so) to its host."""

    index: int
    undo: bool = False


class Withdraw(Struct, frozen=True):
    """Ask that step `index` be given up; its host answers with what became of it, then undoing can begin."""

    index: int


class Finish(Struct, frozen=True):
    """The operation is over."""

    outcome: Outcome
    code: str = ""
    message: str = ""


def next_action(steps: tuple[Step, ...], seen: Progress) -> Send | Withdraw | Finish:
    """What to do now. Total: every progress has exactly one answer, and every path of answers ends."""
    if seen.timed_out:
        return Finish("stuck", "host-silent", seen.timed_out)
    committed = any(each.commits for each in steps[: seen.done])
    if seen.failed is None:
        if seen.done == len(steps):
            return Finish("succeeded")
        # what cannot be taken back any more is carried through, cancelled or not
        return Withdraw(seen.done) if seen.cancel and not committed else Send(seen.done)
    if committed or (steps[seen.done].keep and not seen.cancel):
        return Finish("stuck", seen.failed.code, seen.failed.message)
    if seen.undo_failed is not None:
        return Finish("stuck", seen.undo_failed.code, seen.undo_failed.message)
    # the failed step is taken back too: it may have done a part before it gave up
    for index in reversed(range(seen.done + 1)):
        if steps[index].undo is not None and index not in seen.undone:
            return Send(index, undo=True)
    return Finish("cancelled" if seen.cancel else "undone", seen.failed.code, seen.failed.message)


def step_done(seen: Progress, index: int, *, undo: bool) -> Progress:
    """Progress after a step's (or its undo's) target was reached. A repeated answer changes nothing."""
    if undo:
        return replace(seen, undone=seen.undone | {index}, attempt=1)
    return replace(seen, done=index + 1, attempt=1) if index == seen.done else seen


def step_failed(seen: Progress, index: int, failure: Failed, *, undo: bool) -> Progress:
    """Progress after a step (or its undo) failed; an interrupted one is tried again a bounded number of times."""
    if failure.code == "interrupted" and seen.attempt < MAX_ATTEMPTS:
        return replace(seen, attempt=seen.attempt + 1)
    if undo:
        return replace(seen, undo_failed=failure)
    return replace(seen, failed=failure, attempt=1) if index == seen.done and seen.failed is None else seen
