"""Everything that an agent takes from the world besides bus, hypervisor and files, in one place.

The composition root fills it in; a simulation fills it with its own time and chance.
"""

import random
import time
from collections.abc import Callable

import uuid_utils
from msgspec import Struct

from hostagent.threads import Blocking, Threads


class Effects(Struct, frozen=True, kw_only=True):
    """`clock` is monotonic and judges deadlines; `wall` is unix seconds and judges nothing but age."""

    clock: Callable[[], float]
    wall: Callable[[], float]
    new_id: Callable[[], str]
    chance: Callable[[], float]
    """From 0 to 1: spreads retries of many hosts."""
    blocking: Blocking


def real_effects() -> Effects:
    """This machine's clock, randomness and threads."""
    return Effects(
        clock=time.monotonic,
        wall=time.time,
        new_id=lambda: str(uuid_utils.uuid7()),
        chance=random.random,
        blocking=Threads(),
    )
