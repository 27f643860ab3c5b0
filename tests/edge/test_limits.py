"""How often a peer may try."""

import pytest

from vmorch.core.errors import Rejected
from vmorch.edge.limits import Buckets


def test_a_peer_that_fails_too_often_waits_and_others_do_not() -> None:
    now = [0.0]
    buckets = Buckets(2, 10, lambda: now[0])
    for _ in range(2):
        buckets.admit("a")
        buckets.spend("a")
    with pytest.raises(Rejected, match="10 s"):
        buckets.admit("a")
    buckets.admit("b")
    now[0] = 10.0
    buckets.admit("a")
    buckets.spend("a")
    with pytest.raises(Rejected):
        buckets.admit("a")


def test_what_is_not_counted_is_not_limited() -> None:
    buckets = Buckets(1, 10, lambda: 0.0)
    for _ in range(100):
        buckets.admit("a")


def test_the_number_of_remembered_peers_is_bounded() -> None:
    buckets = Buckets(1, 10, lambda: 0.0, peers=2)
    for peer in ("a", "b", "c"):
        buckets.spend(peer)
    buckets.admit("a")
    with pytest.raises(Rejected):
        buckets.admit("c")
