"""Who did what, when, why, with which outcome. Must not interpret the log itself."""

from starlette.responses import Response

from vmorch.core.acts import Act
from vmorch.core.ids import Position
from vmorch.core.resources import ActResource
from vmorch.core.sealed import briefly
from vmorch.edge import answers, requests, shapes
from vmorch.edge.calls import Call, Parameter, Route
from vmorch.edge.routes.events import named, subject_stream
from vmorch.edge.routes.reading import position_of
from vmorch.engine.reporting import Outcome, Reporter, Wanted

_PARAMETERS = (
    Parameter(name="actor", about="only by actors like this glob", schema=shapes.STRING),
    Parameter(name="object", about="only what was done to this thing, such as vm/<name>", schema=shapes.STRING),
    Parameter(name="from", about="from this moment: @POSITION, a time, or -2h ago", schema=shapes.STRING),
    Parameter(name="to", about="up to this moment; now without it", schema=shapes.STRING),
    Parameter(name="after", about="`next` of the page before", schema=shapes.POSITION),
    Parameter(name="limit", about="items on the page",
              schema={"type": "integer", "minimum": 1, "maximum": 10000, "default": 1000}),
)  # fmt: skip


async def report(call: Call) -> Response:
    given = call.request.query_params
    limit, services = requests.limit(call.request), call.services
    after = requests.position(call.request, "after")
    if after is None:
        after = await position_of(call, "from") if "from" in given else Position(0)
    until = await position_of(call, "to")
    at = subject_stream(call.fleet, given["object"]) if "object" in given else None
    wanted = Wanted(after=after, until=until, actor=given.get("actor"), stream=at)
    found = await Reporter(services.history, call.fleet).report(wanted, limit)
    docs = [answers.encode(_resource(call, act, outcome)) for act, outcome in found.acts]
    now = answers.as_of(call.fleet)
    return answers.listing("Act", docs, now, None if found.next is None else str(found.next))


def _resource(call: Call, act: Act, outcome: Outcome) -> ActResource:
    return ActResource(
        position=act.position,
        time=act.time,
        actor=act.actor,
        what=act.what,
        subject=act.subject,
        subject_name=named(call.fleet, act.subject),
        reason=act.reason,
        outcome=outcome.state,
        code=outcome.code,
        message=outcome.message,
        operation=act.operation,
        request=act.request,
        details=briefly(act.details),
        events=act.events,
    )


ROUTES = (
    Route(method="GET", path="/v1/audit/report", access="auditor", handler=report, audited=True,
          summary="Who did what, when, why, and how it ended", parameters=_PARAMETERS,
          answer=shapes.listing("Act", ActResource)),
)  # fmt: skip
