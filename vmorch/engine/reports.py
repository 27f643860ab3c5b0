"""What hosts say, turned into events: answers to orders, observations, sessions.

A report is answered only when all of it is in the log, so the agent may forget it. Must not believe anything
about a host that the host's own key did not sign, nor about VMs that do not stand on it.
"""

from collections.abc import Callable
from datetime import datetime

import structlog

from vmorch.bus.keys import verifier
from vmorch.core.aggregates.host import Host, HostReachable, SessionStarted, UnmanagedSeen
from vmorch.core.aggregates.vm import Drift, StepDone, StepFailed, Vm, VmDrifted, VmObserved
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Done, Failed, Observed
from vmorch.core.ids import CommandId, HostId, OperationId, Position, VmId, stream
from vmorch.core.operation import Change, change
from vmorch.engine.recorder import Recorder
from vmorch.log.errors import LogError
from vmorch.wire import subjects
from vmorch.wire.envelopes import (
    Answered,
    Confirmation,
    Forged,
    Hello,
    Item,
    Report,
    Seen,
    SeenUnmanaged,
    Signer,
    seal,
    unseal,
)

logger = structlog.get_logger()

Renew = Callable[[Host, datetime], str]
"""Makes bus credentials for a host."""

RENEWAL = 600.0
"""Seconds after which a report is answered with new bus credentials."""



def order_id(operation: OperationId, index: int, *, undo: bool, attempt: int) -> CommandId:
    """The id of the order that a step is sent as; the same step and attempt always give the same id."""
    return CommandId(f"{operation}.{index}.{'undo' if undo else 'do'}.{attempt}")


def parse_order_id(id: CommandId) -> tuple[OperationId, int, bool, int] | None:
    """Operation, step, undo and attempt of an order id; None if it is not one."""
    parts = id.split(".")
    if len(parts) != 4 or parts[2] not in ("do", "undo") or not (parts[1] + parts[3]).isdecimal():
        return None
    return OperationId(parts[0]), int(parts[1]), parts[2] == "undo", int(parts[3])


def changes_of(fleet: Fleet, host: Host, report: Report) -> list[Change]:
    """The events that a report adds to what the fleet already knows. Pure; the same report twice adds nothing."""
    found: list[Change] = []
    known: dict[VmId, Vm] = {}
    for item in report.items:
        found += _item(fleet, host, report, item, known)
    return found


def _item(fleet: Fleet, host: Host, report: Report, item: Item, known: dict[VmId, Vm]) -> list[Change]:
    match item:
        case Hello():
            return _hello(fleet, host, report, item)
        case Answered():
            return _answered(fleet, host, item)
        case Seen():
            return _seen(fleet, host, item, known)
        case SeenUnmanaged():
            return _unmanaged(host, item.domains)


def _hello(fleet: Fleet, host: Host, report: Report, hello: Hello) -> list[Change]:
    at = stream("host", host.id)
    found = []
    if host.session != report.session or host.facts != hello.facts:
        found.append(change(at, SessionStarted(session=report.session, facts=hello.facts)))
    elif host.agent != "connected":
        found.append(change(at, HostReachable(session=report.session)))
    found += _unmanaged(host, hello.unmanaged)
    for vm in fleet.vms.values():
        if vm.host != host.id or vm.deleted_at is not None:
            continue
        gone = Observed(power="absent", reason="not on its host")
        seen = hello.domains.get(vm.id, gone)
        if _differs(vm, seen):
            found.append(change(stream("vm", vm.id), VmObserved(host=host.id, observed=seen)))
    return found


def _answered(fleet: Fleet, host: Host, item: Answered) -> list[Change]:
    parsed = parse_order_id(item.id)
    place = None if parsed is None else fleet.operation(parsed[0])
    if parsed is None or place is None:
        return []
    operation_id, index, undo, attempt = parsed
    vm, operation = place
    progress = operation.progress
    over = operation.outcome is not None or index >= len(operation.steps)
    if over or operation.steps[index].host != host.id or attempt != progress.attempt:
        return []
    if undo and (index in progress.undone or progress.failed is None or progress.undo_failed is not None):
        return []
    if not undo and (index != progress.done or progress.failed is not None):
        return []
    match item.answer:
        case Done(observed=observed, already=already):
            event: StepDone | StepFailed = StepDone(
                operation=operation_id,
                index=index,
                step=operation.steps[index].label,
                undo=undo,
                attempt=attempt,
                already=already,
                observed=observed,
            )
        case Failed(code=code, message=message, observed=observed):
            event = StepFailed(
                operation=operation_id,
                index=index,
                step=operation.steps[index].label,
                undo=undo,
                attempt=attempt,
                code=code,
                message=message,
                observed=observed,
            )
    return [change(stream("vm", vm.id), event)]


def _seen(fleet: Fleet, host: Host, item: Seen, known: dict[VmId, Vm]) -> list[Change]:
    vm = known.get(item.vm) or fleet.vms.get(item.vm)
    if vm is None or vm.host != host.id or vm.deleted_at is not None:
        return []
    found = []
    if _differs(vm, item.observed):
        observed = VmObserved(host=host.id, observed=item.observed)
        known[vm.id] = observed.apply(vm, vm.observed_at or vm.created_at or datetime.min)
        found.append(change(stream("vm", vm.id), observed))
    if item.configuration is not None:
        drift = tuple(
            Drift(field=field, recorded=recorded, seen=seen)
            for field, (recorded, seen) in sorted(item.configuration.items())
        )
        if drift != vm.drift:
            found.append(change(stream("vm", vm.id), VmDrifted(host=host.id, drift=drift)))
    return found


def _unmanaged(host: Host, domains: tuple[str, ...]) -> list[Change]:
    if tuple(sorted(domains)) == host.unmanaged:
        return []
    return [change(stream("host", host.id), UnmanagedSeen(domains=tuple(sorted(domains))))]


def _differs(vm: Vm, seen: Observed) -> bool:
    if seen.power != vm.power:
        return True
    if seen.power not in ("running", "paused"):
        return False
    return (
        (seen.vcpus or vm.live_vcpus) != vm.live_vcpus
        or (seen.memory or vm.live_memory) != vm.live_memory
        or (seen.addresses or vm.addresses) != vm.addresses
    )


class Reports:
    """Takes hosts' reports from the bus, records them and confirms."""

    def __init__(self, recorder: Recorder, cluster: str, signer: Signer, incarnation: str, renew: Renew) -> None:
        self.recorder = recorder
        self.cluster = cluster
        self.signer = signer
        self.incarnation = incarnation
        self.renew = renew
        self._renewed: dict[HostId, float] = {}

    async def handle(self, subject: str, _reply: str, data: bytes) -> bytes | None:
        """The sealed confirmation of a report, or nothing for what nobody honest would send."""
        id = subjects.host_of(subject)
        host = self.recorder.world.fleet.hosts.get(id)
        if host is None or host.retired or not host.key:
            return self._answer(Confirmation(code="unknown-host", message="this host is not enrolled"))
        try:
            report: Report = unseal(data, Report, verifier(host.key))
        except Forged as error:
            logger.warning("forged report", host=host.name, why=str(error))
            return None
        if report.host != id:
            logger.warning("report for another host", host=host.name, claimed=report.host)
            return None
        return self._answer(await self._take(host.id, report))

    async def _take(self, id: HostId, report: Report) -> Confirmation:
        fleet = self.recorder.world.fleet
        host = fleet.hosts[id]
        hello = next((item for item in report.items if isinstance(item, Hello)), None)
        if hello is None and host.session != report.session:
            return Confirmation(code="stale-session", message="say hello first", incarnation=self.incarnation)
        if hello is not None and hello.facts.machine_id != host.machine_id:
            return Confirmation(code="identity-changed", message="the machine id is not the one that enrolled")
        meta = self.recorder.meta(actor=f"host:{host.name}", session=report.session)
        try:
            facts, _ = await self.recorder.record(
                lambda: (changes_of(fleet, fleet.hosts[id], report), None), lambda _: meta
            )
        except (LogError, Rejected) as error:
            return Confirmation(code="busy", message=str(error), incarnation=self.incarnation)
        return Confirmation(
            through=report.through,
            position=facts[-1].position if facts else Position(fleet.position),
            incarnation=self.incarnation,
            credentials=self._credentials(fleet.hosts[id], fresh=hello is not None),
        )

    def _credentials(self, host: Host, *, fresh: bool) -> str:
        """New bus credentials at each hello and then every few minutes, long before the old ones expire."""
        now = self.recorder.clock.monotonic()
        if not fresh and now - self._renewed.get(host.id, now - RENEWAL) < RENEWAL:
            return ""
        self._renewed[host.id] = now
        return self.renew(host, self.recorder.clock.now())

    def _answer(self, confirmation: Confirmation) -> bytes:
        return seal(confirmation, self.signer)
