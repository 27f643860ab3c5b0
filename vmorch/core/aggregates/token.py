"""An API token: who its bearer is and what he may do. The secret itself is never recorded, only its hash."""

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct
from msgspec.structs import replace

from vmorch.core.errors import Rejected
from vmorch.core.messages import Event, message

Role = Literal["viewer", "auditor", "operator", "admin"]

RANK: dict[Role, frozenset[Role]] = {
    "viewer": frozenset({"viewer"}),
    "auditor": frozenset({"viewer", "auditor"}),
    "operator": frozenset({"viewer", "operator"}),
    "admin": frozenset({"viewer", "auditor", "operator", "admin"}),
}
"""The roles that each role includes."""


class Token(Struct, frozen=True, kw_only=True):
    """A token, folded from its stream. `name` becomes the actor of every event its bearer causes."""

    id: str
    name: str = ""
    version: int = 0
    role: Role = "viewer"
    hash: str = ""
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
    """A token with this name and role exists; `hash` is the SHA-256 of its secret."""

    name: str
    role: Role
    hash: str
    expires: datetime | None = None

    def apply(self, token: Token, at: datetime) -> Token:
        return replace(
            token, name=self.name, role=self.role, hash=self.hash, expires=self.expires, created_at=at
        )


@message("token.revoked")
class TokenRevoked(TokenEvent, frozen=True, kw_only=True):
    """The token's bearer is not let in any more."""

    def apply(self, token: Token, at: datetime) -> Token:
        return replace(token, revoked=True)


def revoke(token: Token) -> list[TokenEvent]:
    """Shut the token's bearer out. Raises Rejected `already-so`."""
    if token.revoked:
        raise Rejected("already-so", f"token {token.name} is already revoked")
    return [TokenRevoked()]
