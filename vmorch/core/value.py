"""What all data of the core is made of."""

from msgspec import Struct


class Value(Struct, frozen=True, gc=False):
    """Data that never changes, so that nothing in it can refer back to it: the collector of cycles need not look
    through it, which it would do again and again with everything that the state and the log hold."""
