"""What hosts say, turned into events: answers to orders, observations, sessions.

A report is answered only when all of it is in the log, so the agent may forget it. Must not believe anything
about a host that the host's own key did not sign, nor about VMs that do not stand on it.
"""

from collections.abc import Callable, Container
from datetime import datetime
from typing import Literal

import structlog
from msgspec import Struct

from vmorch.bus.keys import verifier
from vmorch.core.aggregates import backup, volume
from vmorch.core.aggregates.host import Host, HostReachable, SessionStarted, UnmanagedSeen
from vmorch.core.aggregates.passage import EndSeen, TuningAnswered
from vmorch.core.aggregates.vm import (
    Drift,
    Operation,
    StepDone,
    StepFailed,
    Vm,
    VmDrifted,
    VmEvent,
    VmObserved,
    close_operation,
)
from vmorch.core.codec import unpack_event
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet, names_touched
from vmorch.core.hostcommands import Answer, Done, Failed, Observed
from vmorch.core.ids import CommandId, HostId, OperationId, Position, Stream, VmId, stream
from vmorch.core.operation import Change, Finish, change, next_action
from vmorch.core.planning import errands
from vmorch.engine.recorder import Recorder
from vmorch.log.errors import LogError
from vmorch.wire import subjects
from vmorch.wire.envelopes import (
    Answered,
    Confirmation,
    Forged,
    Hello,
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



Purpose = Literal["do", "undo", "look", "tune"]


class OrderRef(Struct, frozen=True):
    """What an order is for: a step (or its undo) in its n-th attempt, the n-th look after it, its n-th tuning."""

    operation: OperationId
    index: int
    purpose: Purpose
    number: int

    @property
    def id(self) -> CommandId:
        """The order's id: always the same for the same purpose."""
        return CommandId(f"{self.operation}.{self.index}.{self.purpose}.{self.number}")


def order_id(operation: OperationId, index: int, *, undo: bool, attempt: int) -> CommandId:
    """The id of the order that a step is sent as; the same step and attempt always give the same id."""
    return OrderRef(operation, index, "undo" if undo else "do", attempt).id


def parse_order_id(id: CommandId) -> OrderRef | None:
    """What an order was for; None if the id is not one of ours."""
    parts = id.split(".")
    if len(parts) != 4 or not (parts[1].isdecimal() and parts[3].isdecimal()):
        return None
    match parts[2]:
        case "do" | "undo" | "look" | "tune" as purpose:
            return OrderRef(OperationId(parts[0]), int(parts[1]), purpose, int(parts[3]))
    return None


def changes_of(
    fleet: Fleet, host: Host, report: Report, halted: Container[Stream] = frozenset()
) -> list[Change]:
    """The events that a report adds to what the fleet already knows. Pure; the same report twice adds nothing.

    An operation ends with the answer to its last order, unless its end concerns a stream that is `halted`.
    """
    seen = Sightings(fleet, halted)
    found: list[Change] = []
    for item in report.items:
        match item:
            case Hello():
                found += _hello(seen, host, report, item)
            case Answered():
                found += _answered(seen, host, item)
            case Seen():
                found += _seen(seen, host, item)
            case SeenUnmanaged():
                found += _unmanaged(host, item.domains)
    return found


class Sightings:
    """VMs as they are after the items of a report so far: each item is judged against what came before it."""

    def __init__(self, fleet: Fleet, halted: Container[Stream]) -> None:
        self.fleet = fleet
        self.halted = halted
        self._after: dict[VmId, Vm] = {}

    def vm(self, id: VmId) -> Vm | None:
        """The VM as of now in the report."""
        return self._after.get(id) or self.fleet.vms.get(id)

    def add(self, vm: Vm, event: VmEvent) -> Change:
        """The change for an event, which counts for the items after it."""
        self.take(vm, event)
        return change(stream("vm", vm.id), event)

    def take(self, vm: Vm, event: VmEvent) -> Vm:
        """The VM after an event, which counts for the items after it."""
        at = self.fleet.recorded_at or vm.observed_at
        assert at is not None
        after = self._after[vm.id] = event.apply(vm, at)
        return after


def _hello(seen: Sightings, host: Host, report: Report, hello: Hello) -> list[Change]:
    at = stream("host", host.id)
    found = []
    if host.session != report.session or host.facts != hello.facts:
        found.append(change(at, SessionStarted(session=report.session, facts=hello.facts, number=hello.number)))
    elif host.agent != "connected":
        found.append(change(at, HostReachable(session=report.session)))
    strays = [f"vm/{id}" for id, there in hello.domains.items() if not _accounted_for(seen.vm(id), host, there)]
    found += _unmanaged(host, (*hello.unmanaged, *strays))
    gone = Observed(power="absent", reason="not on its host")
    for vm in list(seen.fleet.vms.values()):
        observed = hello.domains.get(vm.id, gone)
        if _stands_on(vm, host) and _differs(vm, observed):
            found.append(seen.add(vm, VmObserved(host=host.id, observed=observed)))
    return found


def _stands_on(vm: Vm | None, host: Host) -> bool:
    return vm is not None and vm.host == host.id and vm.deleted_at is None


def _accounted_for(vm: Vm | None, host: Host, there: Observed) -> bool:
    """Whether a domain on the host is known to be there: its own, on its way, or left behind and halted."""
    if vm is None or _stands_on(vm, host):
        return vm is not None
    on_its_way = vm.active is not None or vm.frozen is not None
    return host.id in vm.traces and (on_its_way or there.power != "running")


def _answered(seen: Sightings, host: Host, item: Answered) -> list[Change]:
    ref = parse_order_id(item.id)
    place = None if ref is None else seen.fleet.operation(ref.operation)
    if ref is None or place is None:
        return errands.answered(seen.fleet, host.id, item.id, item.answer)
    vm = seen.vm(place[0].id)
    operation = None if vm is None else vm.operations.get(ref.operation)
    if vm is None or operation is None or ref.index >= len(operation.steps):
        return []
    match ref.purpose:
        case "look":
            return _looked(seen, host, vm, operation, ref, item)
        case "tune":
            return _tuned(seen, vm, operation, ref, item)
        case _:
            return _step_answered(seen, host, vm, operation, ref, item)


def _looked(
    seen: Sightings, host: Host, vm: Vm, operation: Operation, ref: OrderRef, item: Answered
) -> list[Change]:
    ends = operation.steps[ref.index].judged
    progress = operation.progress
    known = progress.sights.get(host.id)
    awaited = operation.outcome is None and bool(progress.over) and ref.index == progress.done
    if not awaited or ends is None or host.id not in ends or (known is not None and known.round >= ref.number):
        return []
    blind = Observed(power="unknown", reason=item.answer.code if isinstance(item.answer, Failed) else "")
    observed = item.answer.observed or blind
    end = EndSeen(operation=operation.id, index=ref.index, round=ref.number, host=host.id, observed=observed)
    return [seen.add(vm, end)]


def _tuned(seen: Sightings, vm: Vm, operation: Operation, ref: OrderRef, item: Answered) -> list[Change]:
    progress = operation.progress
    if operation.outcome is not None or ref.index != progress.done or ref.number < progress.tuned:
        return []
    code, message = (item.answer.code, item.answer.message) if isinstance(item.answer, Failed) else ("", "")
    answered = TuningAnswered(
        operation=operation.id, index=ref.index, number=ref.number, code=code, message=message
    )
    return [seen.add(vm, answered)]


def _step_answered(
    seen: Sightings, host: Host, vm: Vm, operation: Operation, ref: OrderRef, item: Answered
) -> list[Change]:
    id, index, undo, attempt = operation.id, ref.index, ref.purpose == "undo", ref.number
    if not _awaited(operation, host, index, undo=undo, attempt=attempt):
        return _late(seen, host, vm, operation, index, item)
    step = operation.steps[index]
    label, answer = step.label, item.answer if undo else backup.heard(step, item.answer)
    more = () if undo else _consequences(vm, operation, index, answer)
    match answer:
        case Done(observed=observed, already=already, pause=pause, frozen=frozen):
            event: VmEvent = StepDone(
                operation=id,
                index=index,
                step=label,
                undo=undo,
                attempt=attempt,
                already=already,
                observed=observed,
                pause=pause,
                frozen=frozen,
            )
            then = step.then if not undo and step.judged is None else ()
            return [seen.add(vm, event), *then, *more, *_end(seen, vm.id, id)]
        case Failed(code=code, message=message, observed=observed, blockers=blockers):
            event = StepFailed(
                operation=id,
                index=index,
                step=label,
                undo=undo,
                attempt=attempt,
                code=code,
                message=message,
                observed=observed,
                blockers=blockers,
            )
            return [seen.add(vm, event), *more, *_end(seen, vm.id, id)]


def _end(seen: Sightings, vm_id: VmId, id: OperationId) -> tuple[Change, ...]:
    """What an operation ends with, if nothing is left to do in it."""
    vm = seen.vm(vm_id)
    assert vm is not None
    operation = vm.operations[id]
    action = next_action(operation.steps, operation.progress)
    end = close_operation(vm, operation, action) if isinstance(action, Finish) else ()
    names, _ = names_touched(seen.fleet, end)
    if names or any(each.stream in seen.halted for each in end):
        # what the log might refuse must not keep the answer out of it
        return ()
    for each in end:
        event = unpack_event(each.event)
        if each.stream == stream("vm", vm_id) and isinstance(event, VmEvent):
            vm = seen.take(vm, event)
    return end


def _consequences(vm: Vm, operation: Operation, index: int, answer: Answer) -> tuple[Change, ...]:
    """What an answer says about other things than the VM."""
    said = backup.consequences(vm.id, operation, index, answer)
    return (*said, *volume.found(operation.steps[index], answer))


def _late(
    seen: Sightings, host: Host, vm: Vm, operation: Operation, index: int, item: Answered
) -> list[Change]:
    """What an answer shows that came after its operation had given up waiting; the operation stays as it ended."""
    observed = item.answer.observed
    waited_for = operation.outcome == "stuck" and index == operation.progress.done
    if not waited_for or not _stands_on(vm, host):
        return []
    step = operation.steps[index]
    answer = backup.heard(step, item.answer)
    happened = isinstance(answer, Done) and step.host == host.id and operation.progress.failed is None
    then = (*step.then, *_consequences(vm, operation, index, answer)) if happened else ()
    if then and step.judged is None:
        # what was waited for was done after all, and what follows from it is so
        done = StepDone(operation=operation.id, index=index, step=step.label, observed=observed)
        return [seen.add(vm, done), *then]
    if observed is None or not _differs(vm, observed):
        return []
    return [seen.add(vm, VmObserved(host=host.id, observed=observed))]


def _awaited(operation: Operation, host: Host, index: int, *, undo: bool, attempt: int) -> bool:
    """Whether this answer is the one that the operation waits for."""
    progress = operation.progress
    if operation.outcome is not None or progress.over:
        return False
    if operation.steps[index].host != host.id or attempt != progress.attempt:
        return False
    if undo:
        return progress.failed is not None and progress.undo_failed is None and index not in progress.undone
    return progress.failed is None and index == progress.done


def _seen(seen: Sightings, host: Host, item: Seen) -> list[Change]:
    vm = seen.vm(item.vm)
    if vm is None or not _stands_on(vm, host):
        return []
    found = []
    if _differs(vm, item.observed):
        found.append(seen.add(vm, VmObserved(host=host.id, observed=item.observed)))
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
        if hello is not None and host.session != report.session and hello.number <= host.session_number:
            return Confirmation(code="stale-session", message="a later session began", incarnation=self.incarnation)
        if hello is not None and hello.facts.machine_id != host.machine_id:
            return Confirmation(code="identity-changed", message="the machine id is not the one that enrolled")
        meta = self.recorder.meta(actor=f"host:{host.name}", session=report.session)
        halted = self.recorder.world.poisoned
        try:
            facts, _ = await self.recorder.record(
                lambda: (self._readable(changes_of(fleet, fleet.hosts[id], report, halted)), None), lambda _: meta
            )
        except (LogError, Rejected) as error:
            return Confirmation(code="busy", message=str(error), incarnation=self.incarnation)
        return Confirmation(
            through=report.through,
            position=facts[-1].position if facts else Position(fleet.position),
            incarnation=self.incarnation,
            credentials=self._credentials(fleet.hosts[id], fresh=hello is not None),
        )

    def _readable(self, changes: list[Change]) -> list[Change]:
        """Without those for streams that stand still at an event nobody can read: only such a stream may stop."""
        poisoned = self.recorder.world.poisoned
        dropped = [each.stream for each in changes if each.stream in poisoned]
        if dropped:
            logger.error("not recorded, the stream stands still", streams=sorted(set(dropped)))
        return [each for each in changes if each.stream not in poisoned]

    def _credentials(self, host: Host, *, fresh: bool) -> str:
        """New bus credentials at each hello and then every few minutes, long before the old ones expire."""
        now = self.recorder.clock.monotonic()
        if not fresh and now - self._renewed.get(host.id, now - RENEWAL) < RENEWAL:
            return ""
        self._renewed[host.id] = now
        return self.renew(host, self.recorder.clock.now())

    def _answer(self, confirmation: Confirmation) -> bytes:
        return seal(confirmation, self.signer)
