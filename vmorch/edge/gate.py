"""The one door: every request is named, its sender known and allowed, and every outcome put into words here.

Deny by default: a handler is reached only through a line of the table, and each line says who may.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.token import RANK, Role, Token
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import RequestId
from vmorch.edge import identity, problems, requests
from vmorch.edge.answers import POSITION_HEADER
from vmorch.edge.calls import Access, Call, Route, Services
from vmorch.engine.caller import Caller
from vmorch.log.errors import LogError

logger = structlog.get_logger(__name__)

NOBODY = "anonymous"


class Gate:
    """Turns lines of the table into endpoints."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._bearers = identity.Bearers()

    def endpoint(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a route."""

        async def answer(request: Request) -> Response:
            return await self._answer(route, request)

        return answer

    async def _answer(self, route: Route, request: Request) -> Response:
        id, actor = RequestId(self._services.new_id()), NOBODY
        try:
            id = requests.request_id(request, lambda: id)
            call = self._admit(route, request, id)
            actor = call.caller.actor
            if route.audited:
                await self._services.control.note_reading(
                    route.path, dict(sorted(request.query_params.items())), call.caller
                )
            response = await route.handler(call)
        except Rejected as refusal:
            response = problems.response_of(refusal, id)
        except LogError as error:
            told = problems.refusal_of(error)
            if told is None:
                logger.exception("request failed", request=id, method=request.method, path=request.url.path)
            response = problems.response_of(told or problems.fault(), id)
        except ClientDisconnect:
            logger.info("caller went away", request=id, path=request.url.path)
            return Response(status_code=400)
        except Exception:  # the boundary: whatever it is, the log has it and the caller is told where to look
            logger.exception("request failed", request=id, method=request.method, path=request.url.path)
            response = problems.response_of(problems.fault(), id)
        self._mark(response, id)
        note = logger.info if request.method != "GET" or response.status_code >= 400 else logger.debug
        note(
            "request",
            request=id,
            method=request.method,
            path=request.url.path,
            actor=actor,
            status=response.status_code,
        )
        return response

    def _admit(self, route: Route, request: Request, id: RequestId) -> Call:
        token, host = self._sender(route.access, request)
        if route.listed:
            requests.only(request, [each.name for each in route.parameters])
        actor = NOBODY
        if token is not None:
            actor = token.name
        elif host is not None:
            actor = f"host:{host.name}"
        caller = Caller(
            actor=actor,
            role="viewer" if token is None else token.role,
            reason=requests.reason(request),
            request=id,
            traceparent=requests.traceparent(request),
        )
        return Call(request=request, request_id=id, caller=caller, token=token, host=host, services=self._services)

    def _sender(self, access: Access, request: Request) -> tuple[Token | None, Host | None]:
        fleet, now = self._services.control.fleet, self._services.now()
        match access:
            case "anyone":
                return None, None
            case "host":
                return None, identity.signing_host(request, fleet, now)
            case "host or operator":
                if identity.signed_by_host(request):
                    return None, identity.signing_host(request, fleet, now)
                return self._bearer("operator", request, fleet, now), None
            case _:
                return self._bearer(access, request, fleet, now), None

    def _bearer(self, needed: Role, request: Request, fleet: Fleet, now: datetime) -> Token:
        token = self._bearers.token(fleet, identity.bearer(request), now)
        if needed not in RANK[token.role]:
            raise Rejected("forbidden", f"{token.name} is {token.role}; this needs {needed}")
        return token

    def _mark(self, response: Response, id: RequestId) -> None:
        response.headers[requests.REQUEST_HEADER] = id
        response.headers.setdefault(POSITION_HEADER, str(self._services.control.fleet.position))
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
