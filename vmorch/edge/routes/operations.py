"""Operations: seen, watched, cancelled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec
from starlette.responses import Response

from vmorch.core.aggregates.vm import Operation, Vm
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Sample
from vmorch.core.ids import OperationId
from vmorch.core.resources import operation_resource, vm_resource
from vmorch.edge import answers, requests, streams
from vmorch.edge.calls import Call, Services
from vmorch.edge.routes.reading import page, state
from vmorch.engine.handle import Tuning


async def list_operations(call: Call) -> Response:
    docs, at, next = await page(call, "operations")
    return answers.listing("Operation", docs, at, next)


async def show_operation(call: Call) -> Response:
    fleet, id = await state(call), OperationId(call.path("id"))
    doc = await (_doc_of_the_past(call.services, fleet, id) if call.of_the_past else _doc(call.services, id))
    return answers.single("Operation", doc, answers.as_of(fleet))


async def cancel_operation(call: Call) -> Response:
    receipt = await call.services.control.cancel(OperationId(call.path("id")), call.caller)
    return answers.accepted(receipt)


async def tune_operation(call: Call) -> Response:
    tuning = await requests.body(call.request, Tuning)
    return answers.accepted(await call.services.control.tune(OperationId(call.path("id")), tuning, call.caller))


async def watch_operation(call: Call) -> Response:
    id = OperationId(call.path("id"))
    doc = await _doc(call.services, id)
    if call.fleet.operation(id) is None:
        return streams.response(_once(doc))
    return streams.response(_watch(call.services, id))


async def _doc(services: Services, id: OperationId) -> bytes:
    fleet = services.control.fleet
    found = fleet.operation(id)
    if found is not None:
        return answers.encode(operation_resource(fleet, *found, services.control.samples.newest(id)))
    # a VM's state forgets its oldest operations; the read model does not
    doc = await services.models.row("operations", id)
    if doc is None:
        raise Rejected("no-such-operation", f"no operation has the id {id}", hint="vmorch op list")
    return doc


async def _doc_of_the_past(services: Services, fleet: Fleet, id: OperationId) -> bytes:
    found = fleet.operation(id)
    if found is not None:
        return answers.encode(operation_resource(fleet, *found))
    # what its VM had forgotten by then was over before
    doc = await services.models.row("operations", id)
    ended = None if doc is None else msgspec.json.decode(doc, type=_Ended).ended_at
    if doc is None or ended is None or fleet.recorded_at is None or ended >= fleet.recorded_at:
        raise Rejected("no-such-operation", f"no operation had the id {id} then", hint="vmorch op list")
    return doc


class _Ended(msgspec.Struct, frozen=True):
    ended_at: datetime | None


async def _moves(services: Services, id: OperationId) -> AsyncIterator[bool]:
    """At once, and whenever the log or what is told of the operation may have moved."""
    changes = services.control.changes()
    coming = asyncio.ensure_future(anext(changes))
    with services.control.samples.watch(id) as told:
        telling = asyncio.ensure_future(told.wait())
        try:
            while True:
                both: set[asyncio.Future[Any]] = {coming, telling}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    coming.result()
                    coming = asyncio.ensure_future(anext(changes))
                if telling.done():
                    told.clear()
                    telling = asyncio.ensure_future(told.wait())
                yield True
        finally:
            coming.cancel()
            telling.cancel()
            await asyncio.gather(coming, telling, return_exceptions=True)
            await changes.aclose()


async def _once(doc: bytes) -> AsyncIterator[bytes]:
    yield streams.message(doc, event="operation")


def _now(fleet: Fleet, vm: Vm, operation: Operation, sample: Sample | None) -> bytes:
    """The operation; once it is over, its VM before it, so that whoever waited for the end need not ask for that."""
    doc = streams.message(answers.encode(operation_resource(fleet, vm, operation, sample)), event="operation")
    if operation.outcome is None or vm.spec is None:
        return doc
    return streams.message(answers.encode(vm_resource(fleet, vm)), event="vm") + doc


async def _watch(services: Services, id: OperationId) -> AsyncIterator[bytes]:
    seen: Operation | None = None
    sample: Sample | None = None
    samples = services.control.samples
    moves = streams.lively(_moves(services, id), services.stopping, services.settings.keepalive)
    async with aclosing(moves):
        async for moved in moves:
            if moved is None:
                yield streams.KEEPALIVE
            fleet = services.control.fleet
            found = fleet.operation(id)
            if found is None:
                doc = await services.models.row("operations", id)
                if doc is not None:
                    yield streams.message(doc, event="operation")
                return
            if found[1] is not seen or samples.newest(id) is not sample:
                seen, sample = found[1], samples.newest(id)
                yield _now(fleet, *found, sample)
            if seen.outcome is not None:
                return
