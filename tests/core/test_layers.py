"""Layers of a disk: which can be reduced when only some must go on to hold what they hold."""

from vmorch.core.layers import Drop, Merge, above, chain, grown, reduced, spare, stack, stands_for
from vmorch.core.spec import DiskSpec

LINE = {0: None, 1: 0, 2: 1, 3: 2}
FORK = {0: None, 1: 0, 2: 0}


def test_a_chain_is_read_from_the_top_to_the_image() -> None:
    assert chain(LINE, 2) == [2, 1, 0]
    assert chain(FORK, 2) == [2, 0]


def test_a_new_layer_stands_on_the_one_that_it_is_told() -> None:
    assert grown(FORK, 3, 1) == {0: None, 1: 0, 2: 0, 3: 1}
    assert above(grown(FORK, 3, 0), 0) == [1, 2, 3]


def test_nothing_is_reduced_while_everything_is_kept() -> None:
    assert list(spare(LINE, {0, 1, 2, 3})) == []


def test_what_nobody_keeps_and_nothing_stands_on_is_dropped() -> None:
    assert list(spare(FORK, {0, 2})) == [Drop(1)]


def test_a_dropped_branch_goes_from_its_tip_down() -> None:
    assert list(spare({**LINE, 4: 0}, {0, 4})) == [Drop(3), Drop(2), Drop(1)]


def test_a_layer_that_nobody_keeps_takes_in_the_only_one_above_it() -> None:
    assert list(spare(LINE, {0, 2, 3})) == [Merge(2, 1)]
    assert reduced(LINE, Merge(2, 1)) == {0: None, 1: 0, 3: 1}
    assert stands_for(Merge(2, 1), 2) == 1
    assert stands_for(Merge(2, 1), 3) == 3


def test_a_layer_that_two_others_need_stays_though_nobody_keeps_it() -> None:
    assert list(spare(FORK, {1, 2})) == []


def test_a_fork_that_lost_one_branch_is_merged_with_the_other() -> None:
    assert list(spare(FORK, {2})) == [Drop(1), Merge(2, 0)]


def test_a_line_of_which_only_the_top_is_kept_becomes_one_layer() -> None:
    assert list(spare(LINE, {3})) == [Merge(1, 0), Merge(2, 0), Merge(3, 0)]


def test_a_host_is_told_lower_layers_first() -> None:
    told = stack(DiskSpec(name="vda", size=1, layer=3), {3: 1, 0: None, 1: 0})  # type: ignore[arg-type]
    assert [(each.number, each.on) for each in told.layers] == [(0, None), (1, 0), (3, 1)]
    assert told.tree == {0: None, 1: 0, 3: 1}
