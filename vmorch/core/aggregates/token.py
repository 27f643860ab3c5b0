"""An API token: who its bearer is and what he may do. The secret itself is never recorded, only its hash."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Literal

from msgspec.structs import replace

from vmorch.core.errors import Rejected
from vmorch.core.messages import Event, message
from vmorch.core.sealed import Sealed
from vmorch.core.value import Value

Role = Literal["viewer", "auditor", "operator", "admin"]

RANK: dict[Role, frozenset[Role]] = {
    "viewer": frozenset({"viewer"}),
    "auditor": frozenset({"viewer", "auditor"}),
    "operator": frozenset({"viewer", "operator"}),
    "admin": frozenset({"viewer", "auditor", "operator", "admin"}),
}
"""The roles that each role includes."""


class Token(Value, frozen=True, kw_only=True):
    """A token, folded from its stream. `name` becomes the actor of every event its bearer causes; `holder` says who it
    is, and is sealed."""

    id: str
    name: str = ""
    version: int = 0
    role: Role = "viewer"
    hash: str = ""
    holder: Sealed = Sealed("")
    created_at: datetime | None = None
    expires: datetime | None = None
    revoked: bool = False

    def valid(self, now: datetime) -> bool:
        """Whether its bearer is let in."""
        return not self.revoked and (self.expires is None or now < self.expires)


class TokenEvent(Event, frozen=True, kw_only=True):
    """A fact about one token."""

    subject: ClassVar[str] = "token"

    def apply(self, token: Token, at: datetime) -> Token:
        """The token after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("token.created")
class TokenCreated(TokenEvent, frozen=True, kw_only=True):
    """A token with this name and role exists; `hash` is the SHA-256 of its secret. `holder` is the person behind the
    name, sealed."""

    name: str
    role: Role
    hash: str
    expires: datetime | None = None
    holder: Sealed = Sealed("")

    def apply(self, token: Token, at: datetime) -> Token:
        return replace(
            token,
            name=self.name,
            role=self.role,
            hash=self.hash,
            expires=self.expires,
            holder=self.holder,
            created_at=at,
        )


@message("token.revoked")
class TokenRevoked(TokenEvent, frozen=True, kw_only=True):
    """The token's bearer is not let in any more."""

    def apply(self, token: Token, at: datetime) -> Token:
        return replace(token, revoked=True)


@message("token.audit-read")
class AuditRead(TokenEvent, frozen=True, kw_only=True):
    """The token's bearer read what reads are recorded of: a path of the API, and what was asked there."""

    what: str
    query: Mapping[str, str] = {}

    def apply(self, token: Token, at: datetime) -> Token:
        return token


def revoke(token: Token) -> list[TokenEvent]:
    """Shut the token's bearer out. Raises Rejected `already-so`."""
    if token.revoked:
        raise Rejected("already-so", f"token {token.name} is already revoked")
    return [TokenRevoked()]
