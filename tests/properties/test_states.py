"""A checkpoint of the state is the state: folding on from one gives what folding from the beginning gives."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.histories import random_history
from vmorch.core.codec import Fact
from vmorch.core.fleet import Fleet
from vmorch.core.states import digest, frame_of, held, pack_frame, read_frame, read_row, restore, row_of


def folded(facts: list[Fact], fleet: Fleet | None = None) -> Fleet:
    fleet = fleet or Fleet()
    for fact in facts:
        fleet.apply(fact)
    return fleet


def through_bytes(fleet: Fleet) -> Fleet:
    rows = [row_of(each) for each in held(fleet)]
    return restore(fleet.position, read_frame(pack_frame(frame_of(fleet, {}))), map(read_row, rows))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), at=st.floats(0, 1), until=st.floats(0, 1))
def test_a_state_by_its_checkpoint_equals_the_state_by_plain_replay(seed: int, at: float, until: float) -> None:
    facts = random_history(seed, 250).facts
    end = int(until * len(facts))
    mark = int(at * end)
    plain = folded(facts[:end])
    found = folded(facts[mark:end], through_bytes(folded(facts[:mark])))
    assert digest(found) == digest(plain)
    assert (found.position, found.recorded_at) == (plain.position, plain.recorded_at)
    assert found.operations == plain.operations
    assert found.causes == plain.causes
    assert found.ended() == plain.ended()
    # what is oldest is forgotten first, so the order is part of the state
    assert [list(vm.operations) for vm in found.vms.values()] == [list(vm.operations) for vm in plain.vms.values()]
    assert list(found.drains) == list(plain.drains)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_state_that_differs_in_anything_has_another_digest(seed: int) -> None:
    facts = random_history(seed, 60).facts
    states = [digest(folded(facts[:end])) for end in range(len(facts) + 1)]
    # every fact but those that change nothing but the versions moves at least a version
    assert len(set(states)) == len(states)
