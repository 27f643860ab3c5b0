"""What a policy may answer with: acts to be carried out now, and the time to be asked again.

Acts are data. Whoever carries one out asks it for its changes on the newest state, as often as somebody else is faster;
an act that is no longer wanted by then has none. Must not do anything.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import OperationId
from vmorch.core.operation import Change
from vmorch.core.value import Value


class Because(Value, frozen=True, kw_only=True):
    """On whose behalf and why an act is carried out; `correlation` names the larger undertaking."""

    actor: str = "system"
    reason: str = ""
    correlation: str | None = None


class Act(Value, frozen=True):
    """Something that a policy wants to be done."""

    @property
    def subject(self) -> str:
        """What it is about: acts on one subject are not tried again at once when one was refused."""
        raise NotImplementedError

    def because(self, fleet: Fleet) -> Because:
        """On whose behalf and why."""
        return Because()

    def changes(self, fleet: Fleet, now: datetime, operation: OperationId) -> tuple[Change, ...]:
        """Everything to append; nothing if it is no longer wanted. `operation` is the id of the operation that it may
        begin. Raises Rejected."""
        raise NotImplementedError

    def refused(self, fleet: Fleet, now: datetime, refusal: Rejected) -> tuple[Change, ...]:
        """What to append instead when its changes cannot be recorded; nothing: it is tried again."""
        return ()


class Later(Value, frozen=True):
    """Nothing to do before `at`, unless something happens."""

    at: datetime


Answer = Act | Later
Policy = Callable[[Fleet, datetime], Sequence[Answer]]
"""Follows from the state and the time alone. Must be quick when there is nothing to do: it is asked at each change."""
