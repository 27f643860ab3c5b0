"""A log's tail in memory against the log itself, whoever else writes to it."""

from datetime import UTC, datetime

import hypothesis.strategies as st
from hypothesis import given

from vmorch.core.ids import Position, Stream
from vmorch.core.records import Append, NewEvent, Recorded, StreamAppend
from vmorch.log.interface import Appended
from vmorch.log.tail import Tail, as_recorded

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_written(first: int, sizes: tuple[int, ...]) -> tuple[Append, Appended]:
    events = [
        tuple(NewEvent(kind="noted", schema=1, data=b"%d" % each, meta=b"{}") for each in range(size)) for size in sizes
    ]
    parts = tuple(
        StreamAppend(stream=Stream(f"vm/{number}"), expected=first, events=each) for number, each in enumerate(events)
    )
    last = Position(first + sum(sizes) - 1)
    return Append(streams=parts), Appended(first=Position(first), last=last, recorded_at=NOW, repeated=False)


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.sampled_from([1, 2, 3, 600]), min_size=1, max_size=2),
            st.sampled_from([10, 3 * 2**20]),
        ),
        max_size=12,
    ),
    st.data(),
)
def test_what_a_tail_gives_is_what_the_log_holds_after_that_position(
    writes: list[tuple[bool, list[int], int]], data: st.DataObject
) -> None:
    log, tail = list[Recorded](), Tail()
    for ours, sizes, size in writes:
        append, appended = a_written(len(log) + 1, tuple(sizes))
        log += as_recorded(append, appended)
        if ours:
            tail.add(append, appended, size)
        position = Position(data.draw(st.integers(0, len(log))))
        found = tail.after(position)
        assert found == log[position : position + len(found)]
        if ours and position == len(log) - 1:
            assert found == log[-1:]


def test_a_tail_has_nothing_that_is_older_than_what_somebody_else_wrote() -> None:
    tail = Tail()
    for first in (1, 2, 4):
        tail.add(*a_written(first, (1,)), 10)
    assert tail.after(Position(0)) == tail.after(Position(2)) == []
    assert [each.position for each in tail.after(Position(3))] == [4]


def test_a_tail_lets_go_of_its_oldest_events() -> None:
    tail = Tail()
    for first in range(1, 1002):
        tail.add(*a_written(first, (1,)), 10)
    assert tail.after(Position(0)) == []
    assert len(tail.after(Position(1))) == 1000
