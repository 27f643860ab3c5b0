"""The cluster as a whole: is it there, how is it, what should somebody look at."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.responses import Response

from vmorch.core.backup_resources import backup_resource
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.planning.draining import draining
from vmorch.core.planning.maintaining import maintaining
from vmorch.core.resources import cluster_resource, host_resource, vm_state
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call, Services
from vmorch.edge.ports import ProjectionStatus
from vmorch.edge.routes.reading import basis, state
from vmorch.engine.handle import PolicyChange
from vmorch.log.errors import LogUnavailable

LAG = 1000
"""Events that a read model may be behind before somebody should look."""
EXPIRES_SOON = timedelta(days=7)


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""


class LiveState(Struct, frozen=True, kw_only=True):
    """How far the state is that commands are decided on, as a follower of the log like any other."""

    name: str = "live-state"
    position: Position
    head: Position
    poisoned: Mapping[Stream, str]
    trouble: str = ""


async def healthz(call: Call) -> Response:
    return answers.document("Health", {"status": "ok", "version": call.services.settings.version})


async def status(call: Call) -> Response:
    services = call.services
    fleet = await basis(call)
    head: int | None = None
    lag: int | None = None
    try:
        async with asyncio.timeout(services.settings.answer):
            head = await services.log.head()
            lag = max((head - each.position for each in await services.models.status()), default=0)
    except (LogUnavailable, TimeoutError):
        # being without its database is something that a status must be able to say
        pass
    hosts = Counter(host_resource(fleet, host).state for host in fleet.hosts.values() if not host.retired)
    living = [vm for vm in fleet.vms.values() if vm.deleted_at is None and vm.spec is not None]
    fields = {
        "asOf": answers.as_of(fleet),
        "cluster": services.settings.cluster,
        "version": services.settings.version,
        "incarnation": services.log.incarnation,
        "head": head,
        "hosts": dict(hosts),
        "vms": dict(Counter(vm_state(fleet, vm) for vm in living)),
        "operations": sum(vm.active is not None for vm in living),
        "clearMigration": fleet.cluster.policy.clear_migration,
        "projectionLag": lag,
        "postgres": head is not None,
        "nats": None if services.bus is None else services.bus.connected,
    }
    return answers.document("Status", fields, position=fleet.position)


async def show_cluster(call: Call) -> Response:
    fleet = await state(call)
    return answers.single("Cluster", cluster_resource(fleet), answers.as_of(fleet))


async def set_policy(call: Call) -> Response:
    wanted = await requests.body(call.request, PolicyChange)
    return answers.accepted(await call.services.control.set_policy(wanted, call.caller))


async def projections(call: Call) -> Response:
    return answers.plain_listing("Projection", await _followers(call.services))


async def _followers(services: Services) -> list[ProjectionStatus]:
    control = services.control
    live = LiveState(position=control.fleet.position, head=await services.log.head(), poisoned=dict(control.poisoned))
    found: list[ProjectionStatus] = [*await services.models.status(), live]
    if services.published is not None:
        found.append(await services.published.status())
    return found


async def rebuild(call: Call) -> Response:
    done = await call.services.models.rebuild()
    fields = {"projections": await call.services.models.status(), "rebuilt": msgspec.to_builtins(done)}
    return answers.document("Rebuilt", fields)


async def doctor(call: Call) -> Response:
    services, fleet = call.services, call.fleet
    checks = [
        *await _log(services),
        *await _seals(services),
        *_bus(services),
        *_hosts(fleet),
        *_certificates(fleet, services.now()),
        *_vms(fleet),
        *_undertakings(fleet, services.now()),
        *_backups(fleet),
        _images(services),
        *_tokens(call),
    ]
    return answers.plain_listing("Check", checks)


async def _log(services: Services) -> list[Check]:
    try:
        async with asyncio.timeout(services.settings.answer):
            head = await services.log.head()
            projected, missing = await _followers(services), await services.log.missing()
    except (LogUnavailable, TimeoutError) as error:
        why = str(error) or f"Postgres is silent for {services.settings.answer:g} s"
        return [Check(check="log", state="fail", detail=why, hint="is Postgres running?")]
    found = [Check(check="log", state="ok", detail=f"Postgres answers, head at {head}")]
    if missing:
        detail = f"{missing[0]}; {len(missing)} in all" if len(missing) > 1 else missing[0]
        found.append(
            Check(check="archives", state="fail", detail=detail, hint="on the server: vmorch server archive list")
        )
    for each in projected:
        lag = max(head - each.position, 0)
        poisoned = len(each.poisoned)
        state: Literal["ok", "warn", "fail"] = "fail" if poisoned or each.trouble else "warn" if lag >= LAG else "ok"
        detail = f"{lag} events behind" + (f", {poisoned} streams stand still" if poisoned else "")
        detail += f": {each.trouble}" if each.trouble else ""
        hint = "vmorch projection status" if state != "ok" else ""
        found.append(Check(check=f"projection {each.name}", state=state, detail=detail, hint=hint))
    return found


async def _seals(services: Services) -> list[Check]:
    stopped = services.control.fleet.cluster.unsealed
    if stopped is not None:
        detail = f"not sealed since {stopped.since:%Y-%m-%d %H:%M:%S} UTC: {stopped.detail}"
        return [Check(check="seals", state="fail", detail=detail, hint=f"vmorch explain {stopped.code}")]
    try:
        async with asyncio.timeout(services.settings.answer):
            last, head = await services.seals.last(), await services.log.head()
    except (LogUnavailable, TimeoutError):
        return []  # the check of the log says so
    behind = head - (0 if last is None else last.size)
    state: Literal["ok", "warn"] = "ok" if behind < LAG else "warn"
    hint = "is a server leading?" if behind >= LAG else ""
    return [Check(check="seals", state=state, detail=f"{behind} events are not sealed", hint=hint)]


def _bus(services: Services) -> list[Check]:
    if services.bus is None:
        return []
    if services.bus.connected:
        return [Check(check="bus", state="ok", detail="NATS is connected")]
    return [Check(check="bus", state="fail", detail="NATS is not connected", hint="is nats-server running?")]


def _hosts(fleet: Fleet) -> list[Check]:
    found = []
    for host in fleet.hosts.values():
        seen = host_resource(fleet, host)
        since = f" since {host.since:%Y-%m-%d %H:%M:%S} UTC" if host.since else ""
        if seen.state == "maintenance":
            continue  # it may be off; whoever works on it knows
        if seen.state == "unreachable":
            hint = f"on {host.name}: systemctl status vmorch-agent"
            found.append(Check(check=f"host {host.name}", state="fail", detail=f"silent{since}", hint=hint))
        elif seen.state == "invited":
            detail = "invited but not enrolled"
            found.append(Check(check=f"host {host.name}", state="warn", detail=detail))
        elif not host.retired and host.unmanaged:
            detail = f"{len(host.unmanaged)} domains that vmorch did not make"
            hint = f"vmorch host describe {host.name}"
            found.append(Check(check=f"host {host.name}", state="warn", detail=detail, hint=hint))
    connected = sum(host.agent == "connected" for host in fleet.hosts.values() if not host.retired)
    return [Check(check="hosts", state="ok" if connected else "warn", detail=f"{connected} connected"), *found]


def _certificates(fleet: Fleet, now: datetime) -> list[Check]:
    """What keeps guests from travelling encrypted, now or soon."""
    found = []
    if fleet.cluster.policy.clear_migration:
        detail = "guests may travel unencrypted where a host has no certificate"
        found.append(Check(check="policy", state="warn", detail=detail, hint="vmorch cluster set --no-clear-migration"))
    for host in fleet.hosts.values():
        if host.retired or host.agent != "connected" or not host.certificates:
            continue
        expires = host.certificates[-1].expires
        # its agent renews it long before
        if expires - now < EXPIRES_SOON:
            state: Literal["ok", "warn", "fail"] = "fail" if expires <= now else "warn"
            detail = f"certificate expires {expires:%Y-%m-%d %H:%M} UTC and is not renewed"
            hint = f"on {host.name}: journalctl -u vmorch-agent"
            found.append(Check(check=f"host {host.name}", state=state, detail=detail, hint=hint))
    return found


def _vms(fleet: Fleet) -> list[Check]:
    found = []
    for vm in fleet.vms.values():
        if vm.deleted_at is not None or vm.spec is None:
            continue
        hint = f"vmorch vm describe {vm.name}"
        last = next(reversed(tuple(vm.operations.values())), None)
        if last is not None and last.outcome == "stuck":
            detail = f"{last.verb} {last.id} is stuck: {last.message or last.code}"
            found.append(Check(check=f"vm {vm.name}", state="fail", detail=detail, hint=hint))
        if vm.drift:
            fields = ", ".join(each.field for each in vm.drift)
            detail = f"differs from the log on its host: {fields}"
            found.append(Check(check=f"vm {vm.name}", state="warn", detail=detail, hint=hint))
        if vm.active is None and vm.power in ("absent", "crashed") and vm.created_at is not None:
            detail = f"{vm.power}: {vm.power_reason}" if vm.power_reason else str(vm.power)
            found.append(Check(check=f"vm {vm.name}", state="fail", detail=detail, hint=hint))
    return found


def _backups(fleet: Fleet) -> list[Check]:
    """Backups that are of no use, or that nobody gets rid of by waiting."""
    found = []
    running = [vm.operations[vm.active].verb for vm in fleet.vms.values() if vm.active is not None]
    for backup in fleet.backups.values():
        check, state, look = f"backup {backup.name}", backup_resource(fleet, backup).state, backup.verification
        if look is not None and not look.ok:
            detail = f"did not stand its verification: {look.why}"
            hint = f"vmorch vm backup create {backup.vm_name}"
            found.append(Check(check=check, state="fail", detail=detail, hint=hint))
        if state == "unfinished" or (state == "deleting" and DeleteBackup.verb not in running):
            detail = "its operation got stuck" if state == "unfinished" else "could not be deleted"
            hint = f"vmorch backup delete {backup.name}"
            found.append(Check(check=check, state="warn", detail=detail, hint=hint))
    return found


def _undertakings(fleet: Fleet, now: datetime) -> list[Check]:
    """Drains and maintenances that wait for what nobody but an operator may change."""
    found = []
    for drain in fleet.drains.values():
        waits = draining(fleet, drain, now).waits if drain.running else ()
        stuck = [wait for wait in waits if wait.until is not None]
        if stuck:
            detail = f"{stuck[0].name} waits for {stuck[0].on}" + (f", and {len(stuck) - 1} more" if stuck[1:] else "")
            hint = f"vmorch drain describe {drain.id}"
            found.append(Check(check=f"drain {drain.id}", state="warn", detail=detail, hint=hint))
    for maintenance in fleet.maintenances.values():
        for each in maintaining(fleet, maintenance, now).waits if maintenance.running else ():
            hint = f"vmorch host maintenance describe {maintenance.id}"
            detail = f"{fleet.hosts[each.host].name} waits for {each.on}"
            found.append(Check(check=f"maintenance {maintenance.id}", state="ok", detail=detail, hint=hint))
    return found


def _images(services: Services) -> Check:
    free, most = services.images.free(), services.settings.max_image_bytes
    missing = [
        image.name
        for image in services.control.fleet.images.values()
        if image.pin is not None and not image.removed and services.images.path(image.pin.digest) is None
    ]
    if missing:
        detail = f"bytes are not on this server: {', '.join(sorted(missing)[:10])}"
        return Check(check="images", state="fail", detail=detail, hint="bring them in again")
    detail = f"{free // 1024**3} GiB free"
    return Check(check="images", state="ok" if free >= min(most, 10 * 1024**3) else "warn", detail=detail)


def _tokens(call: Call) -> list[Check]:
    now = call.services.now()
    return [
        Check(
            check=f"token {token.name}",
            state="warn",
            detail=f"expires {token.expires:%Y-%m-%d %H:%M} UTC",
            hint="vmorch token create",
        )
        for token in call.fleet.tokens.values()
        if token.valid(now) and token.expires is not None and token.expires - now < EXPIRES_SOON
        # a token that was made for less than that is no surprise
        and token.created_at is not None
        and token.expires - token.created_at > EXPIRES_SOON
    ]
