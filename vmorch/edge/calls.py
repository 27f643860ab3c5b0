"""One admitted request with everything its handler may use.

Must not do anything: a handler is a function of this.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.token import Role, Token
from vmorch.core.fleet import Fleet
from vmorch.core.ids import RequestId
from vmorch.edge.fetch import Fetcher
from vmorch.edge.images import ImageStore
from vmorch.edge.limits import Buckets
from vmorch.edge.ports import Bus, Control, Follower, ReadModels
from vmorch.edge.settings import EdgeSettings
from vmorch.engine.caller import Caller
from vmorch.engine.history import History
from vmorch.log.interface import Log
from vmorch.log.seals import Seals


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the API stands on."""

    control: Control
    models: ReadModels
    log: Log
    history: History
    seals: Seals
    images: ImageStore
    fetcher: Fetcher
    settings: EdgeSettings
    bus: Bus | None
    published: Follower | None
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    stopping: asyncio.Event
    """Set when the server shuts down: whoever streams without an end stops."""
    enrolments: Buckets
    """Failed enrolments of each peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request whose sender is known and may make it. The sender is the bearer of `token`, or `host`."""

    request: Request
    request_id: RequestId
    caller: Caller
    token: Token | None
    host: Host | None
    services: Services

    @property
    def fleet(self) -> Fleet:
        """The live state."""
        return self.services.control.fleet

    @property
    def of_the_past(self) -> bool:
        """Whether the caller asks about a moment that is named in `asOf`."""
        return "asOf" in self.request.query_params

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])


Handler = Callable[[Call], Awaitable[Response]]

Access = Role | Literal["anyone", "host", "host or operator"]
"""Who may use a route: bearers of a role (or of one that includes it), enrolled hosts, both, or anyone at all."""


class Parameter(Struct, frozen=True, kw_only=True):
    """A query parameter: its JSON Schema and what it is for."""

    name: str
    about: str
    schema: Mapping[str, Any]
    repeats: bool = False


class Route(Struct, frozen=True, kw_only=True):
    """A line of the table of routes: where, who may, what answers, and how it is documented."""

    method: Literal["GET", "POST", "PUT", "PATCH"]
    path: str
    access: Access
    handler: Handler
    summary: str
    status: int = 200
    answer: Mapping[str, Any] = {}
    """JSON Schema of the answer's body."""
    media_type: str = "application/json"
    body: Any = None
    """The type that the request's JSON body is decoded as."""
    upload: bool = False
    parameters: tuple[Parameter, ...] = ()
    audited: bool = False
    """Whether reading it is recorded, before it is answered."""
    listed: bool = True
    """False for routes that only give a better refusal."""
