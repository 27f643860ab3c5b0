"""Why a thing is as it is. Must not interpret the log itself."""

from starlette.responses import Response

from vmorch.core.errors import Rejected
from vmorch.core.ids import Position
from vmorch.core.resources import WhyResource
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call
from vmorch.edge.routes.events import event_resource, subject_stream
from vmorch.engine.why import chain, last_change


async def why(call: Call) -> Response:
    kind, ref = call.path("kind"), call.path("ref")
    log, fleet = call.services.log, call.fleet
    at = subject_stream(fleet, f"{kind}/{ref}")
    field = call.request.query_params.get("field")
    found = await last_change(log, fleet, at, field)
    causes = [event_resource(fleet, each) for each in await chain(log, found.record)]
    answer = WhyResource(
        subject=at, name=causes[0].subject_name, field=field, value=found.after, before=found.before, causes=causes
    )
    return answers.single("Why", answer, answers.as_of(fleet))


async def causes(call: Call) -> Response:
    position = requests.whole_number(call.path("position"), "position")
    log = call.services.log
    found = await log.read(Position(position - 1), 1) if position else []
    if not found:
        raise Rejected("no-such-event", f"the log holds no event at {position}")
    docs = [answers.encode(event_resource(call.fleet, each)) for each in await chain(log, found[0])]
    return answers.listing("Event", docs, answers.as_of(call.fleet))
