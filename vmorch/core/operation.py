"""The saga machine: steps, progress, and the one function that says what comes next.

Must not know what a step does. Unknown is not failed: a step without an answer stays sent until its host
answers or its time is over, and then the operation is stuck with a name, not guessed to an end.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec.structs import replace

from vmorch.core.codec import Packed, pack
from vmorch.core.hostcommands import Failed, Observed
from vmorch.core.ids import HostId, Stream
from vmorch.core.messages import Event, HostCommand
from vmorch.core.migration import Verdict, judge
from vmorch.core.value import Value

Outcome = Literal["succeeded", "undone", "cancelled", "stuck"]

MAX_ATTEMPTS = 5
"""How often one step is sent when its agent died in the middle and found nothing done."""


class Change(Value, frozen=True, kw_only=True):
    """An event that shall be appended to a stream."""

    stream: Stream
    event: Packed


def change(stream: Stream, event: Event) -> Change:
    """A change from an event."""
    return Change(stream=stream, event=pack(event))


class Step(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One order to one host, how to take it back, and how long it may take.

    `commits`: once it is done, nothing before it can be taken back. `keep`: if it fails, what was done before
    stays in place and the operation is stuck with its code. `deadline` is in seconds from sending. `then` is appended
    with the fact that it is done.

    `judged` names the host that the VM leaves and the one that it goes to: however such a step ended, both are looked
    at, and what is seen there says whether it is done.
    """

    host: HostId
    label: str
    command: Packed
    undo: Packed | None = None
    commits: bool = False
    keep: bool = False
    deadline: float = 60.0
    then: tuple[Change, ...] = ()
    judged: tuple[HostId, HostId] | None = None


def step(
    host: HostId,
    command: HostCommand,
    *,
    undo: HostCommand | None = None,
    commits: bool = False,
    keep: bool = False,
    deadline: float = 60.0,
    then: tuple[Change, ...] = (),
    judged: tuple[HostId, HostId] | None = None,
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
        then=then,
        judged=judged,
    )


class Plan(Value, frozen=True, kw_only=True):
    """An operation before it starts, as data.

    `opening` is appended together with its start, `success` or `failure` together with its end. A plan
    without steps is only facts: `opening` says all of it and no operation is started.
    """

    steps: tuple[Step, ...] = ()
    opening: tuple[Change, ...] = ()
    success: tuple[Change, ...] = ()
    failure: tuple[Change, ...] = ()
    done: int = 0
    """How many of the steps an earlier operation has done already."""


class Sight(Value, frozen=True):
    """What one host showed of the domain, and in which round of looks."""

    round: int
    observed: Observed


class Progress(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How far an operation has come, folded from its events.

    `over`: a judged step ended, or is waited for no longer; `sights` are what was seen since, by host, and
    `last_look` says that nothing more will come. `unknown` is why nobody can tell where the VM is.
    """

    done: int = 0
    undone: frozenset[int] = frozenset()
    attempt: int = 1
    failed: Failed | None = None
    undo_failed: Failed | None = None
    cancel: bool = False
    timed_out: str = ""
    over: Failed | Literal["done", ""] = ""
    sights: Mapping[HostId, Sight] = {}
    last_look: bool = False
    unknown: str = ""
    tunings: tuple[Packed, ...] = ()
    """Orders to change the step under way, in the order in which they were asked for."""
    tuned: int = 0
    """How many of them were answered."""


class Send(Value, frozen=True):
    """Send step `index` (its undo, if so) to its host."""

    index: int
    undo: bool = False


class Withdraw(Value, frozen=True):
    """Ask that step `index` be given up; its host answers with what became of it, then undoing can begin."""

    index: int


class Look(Value, frozen=True):
    """Ask these hosts what they see of the domain after step `index`. Later rounds are worth a pause before them."""

    index: int
    round: int
    hosts: tuple[HostId, ...]


class Settle(Value, frozen=True):
    """Step `index` is judged: done, not done, or nobody can tell."""

    index: int
    verdict: Verdict
    why: str


class Finish(Value, frozen=True):
    """The operation is over."""

    outcome: Outcome
    code: str = ""
    message: str = ""


Action = Send | Withdraw | Look | Settle | Finish


def next_action(steps: tuple[Step, ...], seen: Progress) -> Action:
    """What to do now. Total: every progress has exactly one answer, and every path of answers ends."""
    if seen.timed_out:
        return Finish("stuck", "host-silent", seen.timed_out)
    if seen.unknown:
        return Finish("stuck", "outcome-unknown", seen.unknown)
    committed = any(each.commits for each in steps[: seen.done])
    if seen.failed is None:
        if seen.done == len(steps):
            return Finish("succeeded")
        if seen.over:
            return _after(steps[seen.done], seen)
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


def _after(judged: Step, seen: Progress) -> Look | Settle:
    """What to do once a judged step has ended: look at both ends, as often as it takes, then say where the VM is."""
    assert judged.judged is not None
    ends = judged.judged
    rounds = [seen.sights[end].round if end in seen.sights else 0 for end in ends]
    source, destination = (seen.sights[end].observed if end in seen.sights else None for end in ends)
    now = max(1, *rounds)
    missing = tuple(end for end, round in zip(ends, rounds, strict=True) if round < now)
    if missing and not seen.last_look:
        return Look(seen.done, now, missing)
    found = judge(source, destination, patient=not seen.last_look)
    if found.verdict == "again":
        return Look(seen.done, now + 1, ends)
    return Settle(seen.done, found.verdict, found.why)


def step_over(seen: Progress, index: int, failure: Failed | None) -> Progress:
    """Progress after a judged step ended by itself, or was given up; only looks can tell what became of it."""
    if index != seen.done or seen.failed is not None or seen.over:
        return seen
    return replace(seen, over=failure or "done", attempt=1)


def end_seen(seen: Progress, host: HostId, round: int, observed: Observed) -> Progress:
    """Progress after a look at one end. An older look than the last one counts for nothing."""
    known = seen.sights.get(host)
    if not seen.over or (known is not None and known.round >= round):
        return seen
    return replace(seen, sights={**seen.sights, host: Sight(round, observed)})


def settled(seen: Progress, index: int, verdict: Verdict, why: str) -> Progress:
    """Progress after a judged step was judged."""
    if index != seen.done or not seen.over:
        return seen
    cleared = replace(seen, over="", sights={}, last_look=False, tunings=(), tuned=0, attempt=1)
    match verdict:
        case "moved":
            return replace(cleared, done=index + 1)
        case "stayed":
            failure = seen.over if isinstance(seen.over, Failed) else Failed(code="not-moved", message=why)
            return replace(cleared, failed=failure)
        case _:
            return replace(cleared, unknown=why)


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
