"""The saga machine: whatever the answers are and however often they come, every operation ends, and ends truly."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vmorch.core.codec import Packed
from vmorch.core.hostcommands import Failed, Observed
from vmorch.core.ids import HostId
from vmorch.core.operation import (
    MAX_ATTEMPTS,
    Action,
    Finish,
    Look,
    Progress,
    Settle,
    Step,
    Withdraw,
    end_seen,
    next_action,
    settled,
    step_done,
    step_failed,
    step_over,
)

ORDER = Packed(kind="host.start-domain", schema=1, data={"vm": "x"})

steps = st.lists(
    st.builds(
        Step,
        host=st.just(HostId("h")),
        label=st.just("s"),
        command=st.just(ORDER),
        undo=st.sampled_from([None, ORDER]),
        commits=st.booleans(),
        keep=st.booleans(),
        judged=st.sampled_from([None, None, (HostId("here"), HostId("there"))]),
    ),
    max_size=6,
).map(tuple)
POWERS = ("absent", "off", "paused", "running", "unknown")
answers = st.lists(st.sampled_from(["done", "failed", "interrupted", "cancel", "repeat", *POWERS]), max_size=100)


@given(steps, answers)
def test_every_operation_ends(plan: tuple[Step, ...], said: list[str]) -> None:
    seen = Progress()
    queue = list(said)
    for _ in range(4 * MAX_ATTEMPTS * (len(plan) + 1) + len(said)):
        action = next_action(plan, seen)
        if isinstance(action, Finish):
            return
        word = queue.pop(0) if queue else "done"
        if word == "cancel":
            seen = replace(seen, cancel=True)
        elif word != "repeat":
            seen = answer(plan, seen, action, word)
    raise AssertionError("no end")


@given(steps, answers)
def test_what_is_undone_leaves_no_undoable_step_in_place(plan: tuple[Step, ...], said: list[str]) -> None:
    seen = Progress()
    for word in [*said, *["done"] * 100]:
        action = next_action(plan, seen)
        if isinstance(action, Finish):
            if action.outcome in ("undone", "cancelled"):
                assert not seen.unknown
                standing = [i for i in range(seen.done) if plan[i].undo and i not in seen.undone]
                assert not standing
                assert not any(step.commits for step in plan[: seen.done])
            if action.outcome == "succeeded":
                assert seen.done == len(plan)
            return
        if word == "cancel":
            seen = replace(seen, cancel=True)
        elif word != "repeat":
            seen = answer(plan, seen, action, word)


@given(steps, st.integers(0, 5))
def test_a_repeated_answer_changes_nothing(plan: tuple[Step, ...], index: int) -> None:
    once = step_done(Progress(done=index), index, undo=False)
    assert step_done(once, index, undo=False) == once


@given(steps, answers)
def test_a_judged_step_counts_as_done_only_when_both_ends_were_seen(plan: tuple[Step, ...], said: list[str]) -> None:
    seen = Progress()
    for word in [*said, *["done"] * 100]:
        action = next_action(plan, seen)
        if isinstance(action, Finish):
            return
        if isinstance(action, Settle) and action.verdict in ("moved", "stayed"):
            assert set(seen.sights) == set(plan[action.index].judged or ())
        if word == "cancel":
            seen = replace(seen, cancel=True)
        elif word != "repeat":
            seen = answer(plan, seen, action, word)


def answer(plan: tuple[Step, ...], seen: Progress, action: Action, word: str) -> Progress:
    assert not isinstance(action, Finish)
    if isinstance(action, Settle):
        return settled(seen, action.index, action.verdict, action.why)
    if isinstance(action, Look):
        if word not in POWERS:
            return replace(seen, last_look=True)
        for end in action.hosts:
            seen = end_seen(seen, end, action.round, Observed(power=word))  # type: ignore[arg-type]
        return seen
    if plan[action.index].judged and not (not isinstance(action, Withdraw) and action.undo):
        failure = None if word == "done" else Failed(code="libvirt-refused", message="")
        return step_over(seen, action.index, failure)
    if isinstance(action, Withdraw):
        if word == "done":
            return step_done(seen, action.index, undo=False)
        return step_failed(seen, action.index, Failed(code="cancelled", message=""), undo=False)
    if word == "done":
        return step_done(seen, action.index, undo=action.undo)
    code = "interrupted" if word == "interrupted" else "libvirt-refused"
    return step_failed(seen, action.index, Failed(code=code, message=""), undo=action.undo)
