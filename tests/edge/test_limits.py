"""How often a peer may ask."""

import pytest

from vmorch.core.errors import Rejected
from vmorch.edge.limits import Buckets


def test_a_peer_that_asks_too_often_waits_and_others_do_not() -> None:
    now = [0.0]
    buckets = Buckets(2, 10, lambda: now[0])
    buckets.take("a")
    buckets.take("a")
    with pytest.raises(Rejected, match="10 s"):
        buckets.take("a")
    buckets.take("b")
    now[0] = 10.0
    buckets.take("a")
    with pytest.raises(Rejected):
        buckets.take("a")


def test_the_number_of_remembered_peers_is_bounded() -> None:
    buckets = Buckets(1, 10, lambda: 0.0, peers=2)
    for peer in ("a", "b", "c"):
        buckets.take(peer)
    buckets.take("a")
    with pytest.raises(Rejected):
        buckets.take("c")
