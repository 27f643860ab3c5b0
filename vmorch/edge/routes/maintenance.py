"""Maintenances: foreseen, begun, seen, watched, a host's work said to be done, all undone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime

from starlette.responses import Response

from vmorch.core.aggregates.maintenance import CancelMaintenance, Maintenance, StartMaintenance
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.maintenance_resources import GroupResource, MaintenanceResource, maintenance_resource
from vmorch.core.planning.maintaining import maintaining
from vmorch.edge import answers, requests, streams
from vmorch.edge.calls import Call, Services
from vmorch.edge.routes.drains import PAUSE
from vmorch.edge.routes.reading import basis, dry, moment_of, state


async def list_maintenances(call: Call) -> Response:
    fleet, after, limit = await state(call), call.request.query_params.get("after", ""), requests.limit(call.request)
    active = requests.flag(call.request, "active")
    found = sorted(fleet.maintenances.values(), key=lambda each: each.id, reverse=True)
    wanted = [each for each in found if active is None or each.running == active]
    later = [each for each in wanted if not after or each.id < after.rpartition("/")[2]]
    docs = [answers.encode(_resource(fleet, each, moment_of(call, fleet))) for each in later[: limit + 1]]
    page, next = answers.cursor(docs, limit)
    return answers.listing("Maintenance", page, answers.as_of(fleet), next)


async def show_maintenance(call: Call) -> Response:
    fleet = await state(call)
    at = answers.as_of(fleet)
    found = await _find(call.services, call.path("id"), fleet)
    return answers.single("Maintenance", _resource(fleet, found, moment_of(call, fleet)), at)


async def start_maintenance(call: Call) -> Response:
    command = await requests.body(call.request, StartMaintenance)
    upkeep = call.services.control.upkeep
    if not dry(call):
        return answers.accepted(await upkeep.start(command, call.caller))
    fleet = await basis(call)
    groups = [
        GroupResource(
            hosts=tuple(fleet.hosts[host].name for host in each.hosts),
            moves=len(each.plan.moves),
            blocked={vm.name: tuple(cause.text() for cause in vm.causes) for vm in each.plan.blocked},
            estimate=each.plan.seconds,
            survivable=each.plan.survival.survivable,
        )
        for each in upkeep.foresee(command, fleet)
    ]
    fields = {"groups": groups, "position": fleet.position}
    return answers.document("MaintenancePlan", fields, position=fleet.position)


async def cancel_maintenance(call: Call) -> Response:
    command = await requests.body(call.request, CancelMaintenance)
    return answers.accepted(await call.services.control.upkeep.cancel(call.path("id"), command, call.caller))


async def work_done(call: Call) -> Response:
    return answers.accepted(await call.services.control.upkeep.work_done(call.path("ref"), call.caller))


async def watch_maintenance(call: Call) -> Response:
    found = await _find(call.services, call.path("id"), call.fleet)
    return streams.response(_watch(call.services, found))


async def _find(services: Services, ref: str, fleet: Fleet) -> Maintenance:
    try:
        return fleet.find_maintenance(ref)
    except Rejected as refusal:
        unknown = refusal.code == "no-such-maintenance"
        past = await services.control.upkeep.past(ref, fleet.position) if unknown else None
        if past is None:
            raise
        return past


def _resource(fleet: Fleet, found: Maintenance, now: datetime) -> MaintenanceResource:
    waits = maintaining(fleet, found, now).waits if found.running else ()
    return maintenance_resource(fleet, found, {wait.host: wait.on for wait in waits})


async def _watch(services: Services, found: Maintenance) -> AsyncIterator[bytes]:
    seen = b""
    moves = streams.lively(services.control.changes(), services.stopping, services.settings.keepalive)
    async with aclosing(moves):
        async for moved in moves:
            if moved is None:
                yield streams.KEEPALIVE
            found = services.control.fleet.maintenances.get(found.id, found)
            doc = answers.encode(_resource(services.control.fleet, found, services.now()))
            if doc != seen:
                seen = doc
                yield streams.message(doc, event="maintenance")
            if found.ended_at is not None:
                return
            await asyncio.sleep(PAUSE)
