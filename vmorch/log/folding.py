"""Long folds without the collector of cycles.

A fold makes much, drops little, and nothing of it lies in a cycle: the collector would walk through all of it, again
and again, and find nothing. Must not be held for longer than a fold.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside the block nothing is looked for in cycles; what is dropped otherwise is freed as always."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
