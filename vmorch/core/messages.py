"""The registry: every event, command and host command under one stable kind and a schema number.

A message is a frozen struct; its kind and schema travel beside its fields, never inside them. Kinds are
forever: a changed shape gets a higher schema number and an upcaster. Must not decide anything.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from vmorch.core.ids import OperationId, Position, RequestId, SessionId
from vmorch.core.value import Value

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the fields of one schema into those of the next."""


class Message(Value, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Anything that is stored or sent. Concrete messages are registered with a decorator below."""

    kind: ClassVar[str] = ""
    schema: ClassVar[int] = 0
    upcasters: ClassVar[Mapping[int, Upcaster]] = {}


class Event(Message, frozen=True, kw_only=True):
    """A fact, named in the past tense. Belongs to the stream that it is appended to."""

    subject: ClassVar[str] = ""
    """The kind of thing that it is about."""
    unasked: ClassVar[bool] = False
    """Whether a host shows it of its own accord, whatever it answers at the same time."""


class Command(Message, frozen=True, kw_only=True):
    """A request of an operator or a policy, named in the imperative."""

    verb: ClassVar[str] = ""
    summary: ClassVar[str] = ""


class HostCommand(Message, frozen=True, kw_only=True):
    """An order to one host's agent: an absolute target, so that doing it twice changes nothing more."""

    label: ClassVar[str] = ""
    """What the step is called where people watch it."""

    @property
    def lane(self) -> str:
        """Commands of one lane run one after another on their host; different lanes run side by side."""
        raise NotImplementedError(self.kind)


class Meta(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Who, why and in answer to what: stored beside every event."""

    actor: str
    occurred_at: datetime
    reason: str = ""
    request: RequestId | None = None
    operation: OperationId | None = None
    causation: Position | None = None
    correlation: str | None = None
    session: SessionId | None = None
    traceparent: str | None = None
    fingerprint: str | None = None
    """Digest of the request that caused the event, to tell a repeat from a request id used twice."""


M = TypeVar("M", bound=type[Message])

EVENTS: dict[str, type[Event]] = {}
COMMANDS: dict[str, type[Command]] = {}
HOST_COMMANDS: dict[str, type[HostCommand]] = {}


def message(
    kind: str, *, schema: int = 1, upcasters: Mapping[int, Upcaster] | None = None
) -> Callable[[M], M]:
    """Register a message under its kind. `upcasters[n]` lifts fields of schema n to n + 1.

    Raises TypeError if the kind is taken or an older schema has no upcaster.
    """

    def register(cls: M) -> M:
        steps = dict(upcasters or {})
        if set(steps) != set(range(1, schema)):
            raise TypeError(f"{kind}: schema {schema} needs an upcaster from each of {list(range(1, schema))}")
        table = _table(cls)
        if kind in table:
            raise TypeError(f"{kind!r} is already {table[kind].__qualname__}")
        cls.kind, cls.schema, cls.upcasters = kind, schema, steps
        table[kind] = cls
        return cls

    return register


def _table(cls: type[Message]) -> dict[str, Any]:
    if issubclass(cls, Event):
        return EVENTS
    return HOST_COMMANDS if issubclass(cls, HostCommand) else COMMANDS
