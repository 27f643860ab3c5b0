"""Refusals: answers to a question that was understood and declined.

A refusal is part of the contract (stable code, reason, hint); a fault is anything else and is never
turned into one of these silently.
"""

from typing import Any


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
