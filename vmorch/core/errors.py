"""Refusals: answers to a question that was understood and declined.

A refusal is part of the contract (stable code, reason, hint); a fault is anything else and is never
turned into one of these silently.
"""

from typing import Any

from vmorch.core.spec import NAME_PATTERN, NAME_RULE


class Rejected(Exception):
    """A command was refused and nothing changed.

    `code` is stable and documented; `facts` are the figures or names behind the refusal (per host, per
    field); `hint` is what to type next.
    """

    def __init__(
        self, code: str, reason: str, *, hint: str = "", facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.hint = hint
        self.facts = facts or {}


def bad_value(detail: str) -> Rejected:
    """The refusal of a value that breaks the limits of its type, from what msgspec says of it.

    It is `bad-request`, but `bad-name` for a name: a pattern would not tell the operator what is wrong with that.
    """
    found, _, place = detail.partition(" - at ")
    field = place.strip("`$.")
    if repr(NAME_PATTERN) in found:
        return Rejected("bad-name", f"{field or 'a name'} must be {NAME_RULE}")
    return Rejected("bad-request", detail)
