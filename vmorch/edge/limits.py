"""How often one peer may try. Must not know what."""

from collections import OrderedDict
from collections.abc import Callable

from vmorch.core.errors import Rejected


class Buckets:
    """A bucket of tries for each peer: `burst` at once, then one more every `every` seconds.

    Remembers a bounded number of peers; one that was forgotten begins anew.
    """

    def __init__(self, burst: int, every: float, monotonic: Callable[[], float], *, peers: int = 10_000) -> None:
        self._burst = burst
        self._every = every
        self._monotonic = monotonic
        self._peers = peers
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, peer: str) -> None:
        """Let a peer try that has a try left. Raises Rejected `too-many-requests`."""
        left = self._now_left(peer)
        if left < 1:
            raise Rejected("too-many-requests", f"try again in {(1 - left) * self._every:.0f} s")

    def spend(self, peer: str) -> None:
        """Count a try of `peer`."""
        left = self._now_left(peer)
        self._left[peer] = (max(0.0, left - 1), self._monotonic())
        self._left.move_to_end(peer)
        if len(self._left) > self._peers:
            self._left.popitem(last=False)

    def _now_left(self, peer: str) -> float:
        now = self._monotonic()
        left, since = self._left.get(peer, (float(self._burst), now))
        return min(float(self._burst), left + (now - since) / self._every)
