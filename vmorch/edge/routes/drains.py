"""Plans and drains: made, seen, carried out, watched, ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime

import msgspec
from starlette.responses import Response

from vmorch.core.aggregates.drain import ActivateHost, ApplyPlan, Drain, PlanDrain
from vmorch.core.drain_resources import DrainDetail, TouchResource, drain_detail
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId
from vmorch.core.planning.draining import draining
from vmorch.edge import answers, requests, streams
from vmorch.edge.calls import Call, Services
from vmorch.edge.routes.reading import basis, dry, moment_of, page, state

PAUSE = 0.2
"""Seconds between two lines to a watcher: what happens meanwhile is one line."""


async def list_drains(call: Call) -> Response:
    docs, at, next = await page(call, "drains")
    return answers.listing("Drain", docs, at, next)


async def show_drain(call: Call) -> Response:
    fleet, drains = await state(call), call.services.control.drains
    at = answers.as_of(fleet)
    drain = await _find(call.services, call.path("id"), fleet)
    touched = await drains.touches(drain, fleet) if drain.state == "planned" else []
    shown = [TouchResource(**msgspec.structs.asdict(each)) for each in touched]
    return answers.single("Drain", _detail(fleet, drain, moment_of(call, fleet), shown), at)


async def plan_drain(call: Call) -> Response:
    command = await requests.body(call.request, PlanDrain)
    if dry(call):
        fleet = await basis(call)
        drain = call.services.control.drains.foresee(command, call.caller, fleet)
        return answers.single("Drain", _detail(fleet, drain, moment_of(call, fleet), []), answers.as_of(fleet))
    return answers.accepted(await call.services.control.drains.plan(command, call.caller))


async def apply_plan(call: Call) -> Response:
    command = await requests.body(call.request, ApplyPlan)
    return answers.accepted(await call.services.control.drains.apply(call.path("id"), command, call.caller))


async def discard_plan(call: Call) -> Response:
    return answers.accepted(await call.services.control.drains.discard(call.path("id"), call.caller))


async def cancel_drain(call: Call) -> Response:
    return answers.accepted(await call.services.control.drains.cancel(call.path("id"), call.caller))


async def activate_host(call: Call) -> Response:
    command = await requests.body(call.request, ActivateHost)
    return answers.accepted(await call.services.control.drains.activate(call.path("ref"), command, call.caller))


async def watch_drain(call: Call) -> Response:
    drain = await _find(call.services, call.path("id"), call.fleet)
    return streams.response(_watch(call.services, drain.id))


async def _find(services: Services, ref: str, fleet: Fleet) -> Drain:
    try:
        return fleet.find_drain(ref)
    except Rejected as refusal:
        # the state forgets drains that were over long ago; the log does not
        past = await services.control.drains.past(ref, fleet.position) if refusal.code == "no-such-drain" else None
        if past is None:
            raise
        return past


def _detail(fleet: Fleet, drain: Drain, now: datetime, touched: list[TouchResource]) -> DrainDetail:
    waits = draining(fleet, drain, now).waits if drain.running else ()
    return drain_detail(fleet, drain, {wait.vm: wait.on for wait in waits}, touched)


async def _watch(services: Services, id: DrainId) -> AsyncIterator[bytes]:
    seen = b""
    moves = streams.lively(services.control.changes(), services.stopping, services.settings.keepalive)
    async with aclosing(moves):
        async for moved in moves:
            if moved is None:
                yield streams.KEEPALIVE
            drain = services.control.fleet.drains.get(id)
            if drain is None:
                drain = await services.control.drains.past(id)
                if drain is None:
                    return
            doc = answers.encode(_detail(services.control.fleet, drain, services.now(), []))
            if doc != seen:
                seen = doc
                yield streams.message(doc, event="drain")
            if drain.ended_at is not None:
                return
            await asyncio.sleep(PAUSE)
