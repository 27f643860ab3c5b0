"""The past beside the present: what differs between two moments, and whether the log still says what is shown."""

from starlette.responses import Response

from vmorch.core.differences import Difference
from vmorch.core.errors import Rejected
from vmorch.core.moments import NOTATION
from vmorch.edge import answers, requests, shapes
from vmorch.edge.calls import Call, Parameter, Route
from vmorch.edge.routes.reading import position_of
from vmorch.engine.comparing import differences
from vmorch.engine.replay import Replayed, Stored, replay

_FROM = Parameter(name="from", about="the earlier moment: @POSITION, a time, or -2h ago", schema=shapes.STRING)
_UNTIL = Parameter(name="to", about="the later moment; now without it", schema=shapes.STRING)
_SUBJECT = Parameter(name="subject", about="only of this thing, such as vm/<name>", schema=shapes.STRING)
_LABEL = Parameter(name="label", about="only VMs with key=value at either moment", schema=shapes.STRING, repeats=True)
_TO = Parameter(name="to", about="replay up to this moment", schema=shapes.STRING)
_VERIFY = Parameter(
    name="verify", about="true: compare with live state, read models and checkpoints", schema=shapes.BOOLEAN
)


async def diff(call: Call) -> Response:
    if "from" not in call.request.query_params:
        raise Rejected("bad-request", "from is missing: the moment to compare with", hint=f"write {NOTATION}")
    before, after = await position_of(call, "from"), await position_of(call, "to")
    found = await differences(
        call.services.history, before, after, call.request.query_params.get("subject"), requests.labels(call.request)
    )
    fields = {"from": before, "to": after, "items": found}
    return answers.document("Diff", fields, position=after)


async def audit_replay(call: Call) -> Response:
    to = await position_of(call, "to") if "to" in call.request.query_params else None
    stored = None
    if requests.flag(call.request, "verify"):
        at, rows = await call.services.models.everything()
        stored = Stored(at, rows, call.fleet.copy())
    done = await replay(call.services.history, to, stored)
    return answers.single("Replay", done, answers.AsOf(position=done.position, time=done.time))


ROUTES = (
    Route(method="GET", path="/v1/diff", access="viewer", handler=diff,
          summary="What differs between two moments, and which events made it so",
          parameters=(_FROM, _UNTIL, _SUBJECT, _LABEL),
          answer=shapes.document("Diff", **{"from": shapes.POSITION}, to=shapes.POSITION,
                                 items=shapes.array(shapes.ref(Difference)))),
    Route(method="GET", path="/v1/audit/replay", access="auditor", handler=audit_replay, audited=True,
          summary="Fold the whole log anew and compare what is shown with it", parameters=(_TO, _VERIFY),
          answer=shapes.single("Replay", Replayed)),
)  # fmt: skip
