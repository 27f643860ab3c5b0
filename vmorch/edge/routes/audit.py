"""The log's proof over HTTP: how far it is sealed, checkpoints, proofs, exports; and what shall not be read of it.

Must not verify: a caller who trusts this server's word needs none of it.
"""

from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from msgspec import Meta, Struct
from starlette.responses import Response, StreamingResponse

from vmorch.audit.export import shown
from vmorch.audit.merkle import consistency, inclusion
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call
from vmorch.engine.exports import Export, prepare_export, proof, turns
from vmorch.engine.logkeys import log_origin
from vmorch.log.errors import LogError
from vmorch.log.seals import Seal

logger = structlog.get_logger(__name__)

NDJSON = "application/x-ndjson"


class Erase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose key is destroyed: `vm/NAME` or `token/NAME`, or the like with an id."""

    subject: Annotated[str, Meta(min_length=1, max_length=200)]


async def status(call: Call) -> Response:
    log, cluster = call.services.log, call.fleet.cluster
    last = await call.services.seals.last()
    fields = {
        "origin": _origin(call),
        "key": cluster.log_key,
        "head": await log.head(),
        "sealed": 0 if last is None else last.size,
        "stopped": cluster.unsealed,
    }
    return answers.document("AuditStatus", fields, position=call.fleet.position)


async def checkpoint(call: Call) -> Response:
    size = requests.position(call.request, "size")
    seals = call.services.seals
    found = await (seals.last() if size is None else seals.at(size))
    if found is None:
        raise _unsealed("no checkpoint of this log" if size is None else f"no checkpoint of {size} events")
    before = await turns(call.services.log, seals, _origin(call), found.size)
    fields = {"size": found.size, "note": found.note, "turns": before}
    return answers.document("Checkpoint", fields, position=call.fleet.position)


async def growth(call: Call) -> Response:
    old, size = requests.position(call.request, "old"), requests.position(call.request, "size")
    if old is None or size is None or old > size:
        raise Rejected("bad-request", "old and size are needed, and old is not more than size")
    await _sealed(call, size)
    return answers.document("Consistency", {"old": old, "size": size, "hashes": await _proof(call, old, size)})


async def event_proof(call: Call) -> Response:
    position = requests.whole_number(call.path("position"), "position")
    if not position:
        raise Rejected("no-such-event", "positions begin with 1")
    seal = await _sealed(call, Position(position))
    fields = {
        "position": position,
        "size": seal.size,
        "leaf": shown([await _leaf(call, Position(position))])[0],
        "hashes": await proof(call.services.seals, inclusion(position - 1, seal.size)),
        "note": seal.note,
    }
    return answers.document("Inclusion", fields)


async def export(call: Call) -> Response:
    after, until = requests.position(call.request, "after"), requests.position(call.request, "until")
    services = call.services
    found = await prepare_export(services.log, services.seals, _origin(call), after, until)
    return StreamingResponse(_lines(found), 200, {"X-Accel-Buffering": "no"}, NDJSON)


async def erase(call: Call) -> Response:
    wanted = await requests.body(call.request, Erase)
    return answers.accepted(await call.services.control.erasing.erase(wanted.subject, call.caller))


async def _lines(export: Export) -> AsyncIterator[bytes]:
    try:
        async for lines in export.lines():
            yield lines
    except (LogError, Rejected) as error:
        # the answer has begun, so its missing end must say it
        logger.warning("an export broke off", why=str(error))


async def _proof(call: Call, old: Position, size: Position) -> tuple[str, ...]:
    return await proof(call.services.seals, consistency(old, size))


async def _leaf(call: Call, position: Position) -> bytes:
    [seal] = await call.services.seals.between(Position(position - 1), position)
    return seal.leaves[position - seal.after - 1]


async def _sealed(call: Call, size: Position) -> Seal:
    seal = await call.services.seals.covering(size)
    if seal is None:
        raise _unsealed(f"event {size} is not sealed yet")
    return seal


def _unsealed(what: str) -> Rejected:
    return Rejected("not-sealed", what, hint="vmorch audit status")


def _origin(call: Call) -> str:
    return log_origin(call.services.settings.cluster, call.services.log.incarnation)
