"""The HTTP API as one ASGI application. Must not listen on anything and must not start background work."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import uuid_utils
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from vmorch.core.errors import Rejected
from vmorch.edge import openapi, problems, streams
from vmorch.edge.calls import Call, Route, Services
from vmorch.edge.fetch import Fetcher
from vmorch.edge.gate import Gate
from vmorch.edge.images import ImageStore
from vmorch.edge.limits import Buckets
from vmorch.edge.ports import Bus, Control, Follower, ReadModels
from vmorch.edge.requests import REQUEST_HEADER
from vmorch.edge.settings import EdgeSettings
from vmorch.edge.table import ROUTES
from vmorch.engine.history import History
from vmorch.log.interface import Log
from vmorch.log.seals import Seals


def build_app(
    control: Control,
    models: ReadModels,
    log: Log,
    seals: Seals,
    images: ImageStore,
    settings: EdgeSettings,
    *,
    bus: Bus | None = None,
    history: History | None = None,
    published: Follower | None = None,
    fetcher: Fetcher | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """The API over these. Without a `history` the past is folded from the log's beginning.

    `app.state.stopping` is the event that ends its endless answers.
    """
    services = Services(
        control=control,
        models=models,
        log=log,
        history=history or History(log, None),
        seals=seals,
        images=images,
        fetcher=fetcher
        or Fetcher(
            settings.allowed_networks, max_bytes=settings.max_image_bytes, seconds=settings.fetch_seconds
        ),
        settings=settings,
        bus=bus,
        published=published,
        now=now,
        new_id=lambda: str(uuid_utils.uuid7()),
        stopping=asyncio.Event(),
        enrolments=Buckets(settings.enroll_burst, settings.enroll_every, time.monotonic),
    )
    gate = Gate(services)
    routes = (*ROUTES, _description(settings.version))
    app = Starlette(
        routes=[_routed(each, gate) for each in routes],
        exception_handlers={HTTPException: _not_routed(services)},
    )
    app.router.redirect_slashes = False
    app.state.stopping = services.stopping
    return app


def _routed(route: Route, gate: Gate) -> StarletteRoute:
    made = StarletteRoute(route.path, gate.endpoint(route), methods=[route.method], name=f"{route.method} {route.path}")
    if made.methods is not None and route.media_type == streams.MEDIA_TYPE:
        # a HEAD of what never ends would never end
        made.methods.discard("HEAD")
    return made


def _description(version: str) -> Route:
    async def describe(call: Call) -> Response:
        return Response(document, media_type="application/json")

    route = Route(
        method="GET",
        path="/v1/openapi.json",
        access="anyone",
        handler=describe,
        summary="This description",
        answer={"type": "object"},
    )
    document = msgspec.json.encode(openapi.description((*ROUTES, route), version))
    return route


def _not_routed(services: Services) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = Rejected("not-found", f"nothing is served at {request.url.path}")
        if error.status_code == 405:
            refusal = Rejected("wrong-method", f"{request.url.path} does not know {request.method}")
        id = services.new_id()
        response = problems.response_of(refusal, id)
        response.headers[REQUEST_HEADER] = id
        response.headers.update(error.headers or {})
        return response

    return answer
