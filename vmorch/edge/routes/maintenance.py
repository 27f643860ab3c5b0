"""Maintenances: foreseen, begun, seen, watched, a host's work said to be done, all undone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.responses import Response

from vmorch.core.aggregates.maintenance import CancelMaintenance, Maintenance, StartMaintenance
from vmorch.core.errors import Rejected
from vmorch.core.maintenance_resources import GroupResource, MaintenanceResource, maintenance_resource
from vmorch.core.planning.maintaining import maintaining
from vmorch.edge import answers, requests, streams
from vmorch.edge.calls import Call, Services
from vmorch.edge.routes.drains import PAUSE
from vmorch.edge.routes.reading import settle


async def list_maintenances(call: Call) -> Response:
    await settle(call)
    fleet, after, limit = call.fleet, call.request.query_params.get("after", ""), requests.limit(call.request)
    active = requests.flag(call.request, "active")
    found = sorted(fleet.maintenances.values(), key=lambda each: each.id, reverse=True)
    wanted = [each for each in found if active is None or each.running == active]
    later = [each for each in wanted if not after or each.id < after.rpartition("/")[2]]
    docs = [answers.encode(_resource(call.services, each)) for each in later[: limit + 1]]
    page, next = answers.cursor(docs, limit)
    return answers.listing("Maintenance", page, answers.as_of(fleet), next)


async def show_maintenance(call: Call) -> Response:
    await settle(call)
    at = answers.as_of(call.fleet)
    found = await _find(call.services, call.path("id"))
    return answers.single("Maintenance", _resource(call.services, found), at)


async def start_maintenance(call: Call) -> Response:
    command = await requests.body(call.request, StartMaintenance)
    upkeep, fleet = call.services.control.upkeep, call.fleet
    if not requests.flag(call.request, "dryRun"):
        return answers.accepted(await upkeep.start(command, call.caller))
    groups = [
        GroupResource(
            hosts=tuple(fleet.hosts[host].name for host in each.hosts),
            moves=len(each.plan.moves),
            blocked={vm.name: tuple(cause.text() for cause in vm.causes) for vm in each.plan.blocked},
            estimate=each.plan.seconds,
            survivable=each.plan.survival.survivable,
        )
        for each in upkeep.foresee(command)
    ]
    fields = {"groups": groups, "position": fleet.position}
    return answers.document("MaintenancePlan", fields, position=fleet.position)


async def cancel_maintenance(call: Call) -> Response:
    command = await requests.body(call.request, CancelMaintenance)
    return answers.accepted(await call.services.control.upkeep.cancel(call.path("id"), command, call.caller))


async def work_done(call: Call) -> Response:
    return answers.accepted(await call.services.control.upkeep.work_done(call.path("ref"), call.caller))


async def watch_maintenance(call: Call) -> Response:
    found = await _find(call.services, call.path("id"))
    return streams.response(_watch(call.services, found))


async def _find(services: Services, ref: str) -> Maintenance:
    try:
        return services.control.fleet.find_maintenance(ref)
    except Rejected as refusal:
        past = await services.control.upkeep.past(ref) if refusal.code == "no-such-maintenance" else None
        if past is None:
            raise
        return past


def _resource(services: Services, found: Maintenance) -> MaintenanceResource:
    fleet = services.control.fleet
    waits = maintaining(fleet, found, services.now()).waits if found.running else ()
    return maintenance_resource(fleet, found, {wait.host: wait.on for wait in waits})


async def _watch(services: Services, found: Maintenance) -> AsyncIterator[bytes]:
    seen = b""
    moves = streams.lively(services.control.changes(), services.stopping, services.settings.keepalive)
    async with aclosing(moves):
        async for moved in moves:
            if moved is None:
                yield streams.KEEPALIVE
            found = services.control.fleet.maintenances.get(found.id, found)
            doc = answers.encode(_resource(services, found))
            if doc != seen:
                seen = doc
                yield streams.message(doc, event="maintenance")
            if found.ended_at is not None:
                return
            await asyncio.sleep(PAUSE)
