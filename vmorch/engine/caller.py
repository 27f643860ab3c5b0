"""Who asks, and what they are told at once."""

from msgspec import Struct

from vmorch.core.aggregates.token import Role
from vmorch.core.ids import OperationId, Position, RequestId


class Caller(Struct, frozen=True, kw_only=True):
    """The bearer of a token with one request. `actor` stands in every event that the request causes."""

    actor: str
    role: Role
    reason: str = ""
    request: RequestId | None = None
    traceparent: str | None = None


class Accepted(Struct, frozen=True, kw_only=True):
    """The request is in the log at `position`; `operation` runs from there, if one is needed."""

    subject: str
    name: str
    position: Position
    operation: OperationId | None = None
