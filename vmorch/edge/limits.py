"""How often one peer may ask. Must not know what for."""

from collections import OrderedDict
from collections.abc import Callable

from vmorch.core.errors import Rejected


class Buckets:
    """A bucket of tokens for each peer: `burst` at once, then one more every `every` seconds.

    Remembers a bounded number of peers; one that was forgotten begins anew.
    """

    def __init__(self, burst: int, every: float, monotonic: Callable[[], float], *, peers: int = 10_000) -> None:
        self._burst = burst
        self._every = every
        self._monotonic = monotonic
        self._peers = peers
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str) -> None:
        """Count one request of `peer`. Raises Rejected `too-many-requests`."""
        now = self._monotonic()
        left, since = self._left.pop(peer, (float(self._burst), now))
        left = min(float(self._burst), left + (now - since) / self._every)
        allowed = left >= 1
        self._left[peer] = (left - 1 if allowed else left, now)
        if len(self._left) > self._peers:
            self._left.popitem(last=False)
        if not allowed:
            raise Rejected("too-many-requests", f"try again in {(1 - left) * self._every:.0f} s")
