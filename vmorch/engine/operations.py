"""The one saga runner: asks the pure machine what is next for each operation, and does it.

It keeps no state of its own: what is under way is in the log, so it can stop anywhere and another process can go
on. Must not decide what a step means, nor take silence for an answer.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from vmorch.bus.bus import Bus, BusError
from vmorch.bus.keys import verifier
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.passage import LooksEnded, StepJudged
from vmorch.core.aggregates.vm import (
    Operation,
    StepFailed,
    StepTimedOut,
    Vm,
    VmEvent,
    close_operation,
)
from vmorch.core.codec import Fact, Packed, pack, unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import ObserveDomain
from vmorch.core.ids import CommandId, OperationId, VmId, split_stream, stream
from vmorch.core.operation import Change, Finish, Look, Send, Settle, Withdraw, change, next_action
from vmorch.engine.recorder import Recorder
from vmorch.engine.reports import OrderRef, order_id
from vmorch.log.errors import LogError
from vmorch.wire import subjects
from vmorch.wire.envelopes import Forged, Order, Receipt, Signer, Withdrawal, seal, unseal

logger = structlog.get_logger()

RECEIPT = 5.0
"""Seconds to wait for an agent's receipt; it only journals before it gives one."""
ASK_AGAIN = 10.0
"""Seconds after which an accepted order is sent again; the agent then repeats an answer that got lost."""
RETRY = 0.5
"""Seconds between tries while host, bus or log are away."""
GRACE = 15.0
"""Seconds beyond a step's own deadline: the agent gives up by itself first and says so."""

WITHDRAWAL = 30.0
"""Seconds that an agent has to say what became of an order that was withdrawn."""

JUDGE_AFTER = 20.0
"""Seconds that the host of a judged step may be unreachable until its answer is waited for no longer: what became of
the step is seen at its two ends anyway."""
LOOKING = 60.0
"""Seconds in which both ends of a passage must have been seen in a state that says whose the VM is."""
NEXT_LOOK, LATER_LOOK = 0.5, 3.0
"""Seconds before another look, first and at most."""

FINAL_REFUSALS = frozenset({"stale-epoch", "stale-incarnation", "identity-changed", "unknown-command"})
"""Receipts that trying again cannot change."""


Decide = Callable[[Vm, Operation], tuple[Change, ...]]
"""What to append for an operation as it is now."""


class Operations:
    """Drives every operation that is not over, each in a task of its own."""

    def __init__(self, recorder: Recorder, bus: Bus, cluster: str, signer: Signer, incarnation: str) -> None:
        self.recorder = recorder
        self.world = recorder.world
        self.bus = bus
        self.cluster = cluster
        self.signer = signer
        self.incarnation = incarnation
        self._tasks: dict[OperationId, asyncio.Task[None]] = {}
        self._looking_since: dict[OperationId, float] = {}
        self._new: asyncio.Queue[tuple[VmId, OperationId]] = asyncio.Queue()

    async def run(self) -> None:
        """Drive what is under way and whatever starts, for ever."""
        ignore = self.world.on_fact(self._note)
        for vm in list(self.world.fleet.vms.values()):
            if vm.active is not None:
                self._new.put_nowait((vm.id, vm.active))
        try:
            while True:
                vm_id, operation = await self._new.get()
                if operation not in self._tasks:
                    task = asyncio.create_task(self._drive(vm_id, operation), name=f"operation {operation}")
                    self._tasks[operation] = task
                    task.add_done_callback(partial(self._over, vm_id, operation))
        finally:
            ignore()
            self._new = asyncio.Queue()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _note(self, fact: Fact) -> None:
        if isinstance(fact.event, VmEvent):
            vm = self.world.fleet.vms.get(VmId(split_stream(fact.stream)[1]))
            if vm is not None and vm.active is not None and vm.active not in self._tasks:
                self._new.put_nowait((vm.id, vm.active))

    def _over(self, vm: VmId, operation: OperationId, task: asyncio.Task[None]) -> None:
        self._tasks.pop(operation, None)
        self._looking_since.pop(operation, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("operation runner failed, it begins anew", operation=operation, exc_info=task.exception())
            asyncio.get_running_loop().call_later(RETRY, self._new.put_nowait, (vm, operation))

    async def _drive(self, vm_id: VmId, operation_id: OperationId) -> None:
        while True:
            vm = self.world.fleet.vms.get(vm_id)
            operation = None if vm is None else vm.operations.get(operation_id)
            if vm is None or operation is None or operation.outcome is not None:
                return
            try:
                match next_action(operation.steps, operation.progress):
                    case Finish() as end:
                        await self._record(vm_id, operation, partial(_close, end))
                    case Send(index=index, undo=undo):
                        await self._step(vm, operation, index, undo=undo, withdraw=False)
                    case Withdraw(index=index):
                        await self._step(vm, operation, index, undo=False, withdraw=True)
                    case Look() as look:
                        await self._look(vm, operation, look)
                    case Settle() as verdict:
                        await self._record(vm_id, operation, partial(_judge, verdict))
            except LogError as error:
                logger.warning("log away, operation waits", operation=operation_id, why=str(error))
                await self.recorder.clock.sleep(RETRY)

    async def _step(self, vm: Vm, operation: Operation, index: int, *, undo: bool, withdraw: bool) -> None:
        """Have one step done (or withdrawn) and return when the operation has moved on."""
        step = operation.steps[index]
        attempt = operation.progress.attempt
        id = order_id(operation.id, index, undo=undo, attempt=attempt)
        clock = self.recorder.clock
        ends = clock.monotonic() + (min(step.deadline, WITHDRAWAL) if withdraw else step.deadline) + GRACE
        trouble = "no answer"
        gone_since: float | None = None
        with self.world.watch(stream("vm", vm.id), stream("host", step.host)) as moved:
            while True:
                moved.clear()
                current = self.world.fleet.vms[vm.id].operations.get(operation.id)
                if current is None or current.progress != operation.progress or current.outcome is not None:
                    return
                left = ends - clock.monotonic()
                if left <= 0:
                    await self._time_out(vm.id, operation, index, trouble)
                    return
                host = self.world.fleet.hosts[step.host]
                wait = RETRY
                if host.session is None or host.agent != "connected":
                    trouble, wait = f"{host.name} is unreachable", left
                    if step.judged and not undo:
                        gone_since = clock.monotonic() if gone_since is None else gone_since
                        wait = gone_since + JUDGE_AFTER - clock.monotonic()
                        if wait <= 0:
                            await self._time_out(vm.id, operation, index, trouble)
                            return
                else:
                    gone_since = None
                    packed = step.undo if undo else step.command
                    assert packed is not None
                    receipt = await self._send(host, vm, packed, id, left, withdraw=withdraw)
                    await self._tune(host, vm, operation, index, left)
                    if isinstance(receipt, str):
                        trouble = receipt
                    elif receipt.accepted:
                        wait = ASK_AGAIN
                    elif receipt.code in FINAL_REFUSALS:
                        await self._refused(vm.id, operation, index, undo, receipt)
                        return
                    else:
                        trouble = f"{host.name}: {receipt.code} {receipt.message}".strip()
                await _wait(moved, min(wait, left))

    async def _tune(self, host: Host, vm: Vm, operation: Operation, index: int, left: float) -> None:
        """Pass on what was asked for while the step is under way; it is asked again until it is answered."""
        progress = operation.progress
        for number in range(progress.tuned, len(progress.tunings)):
            id = OrderRef(operation.id, index, "tune", number).id
            await self._send(host, vm, progress.tunings[number], id, left, withdraw=False)

    async def _look(self, vm: Vm, operation: Operation, look: Look) -> None:
        """Have both ends of a judged step looked at, until they were or it has taken too long."""
        clock = self.recorder.clock
        since = self._looking_since.setdefault(operation.id, clock.monotonic())
        if look.round > 1:
            await clock.sleep(min(NEXT_LOOK * look.round, LATER_LOOK))
        step = operation.steps[look.index]
        assert step.judged is not None
        source = operation.progress.sights.get(step.judged[0])
        # a passage that is still seen to be under way has the time that it was given
        limit = max(LOOKING, step.deadline) if source is not None and source.observed.moving else LOOKING
        packed = pack(ObserveDomain(vm=vm.id))
        id = OrderRef(operation.id, look.index, "look", look.round).id
        with self.world.watch(stream("vm", vm.id), *(stream("host", each) for each in look.hosts)) as moved:
            while True:
                moved.clear()
                current = self.world.fleet.vms[vm.id].operations.get(operation.id)
                if current is None or current.progress != operation.progress or current.outcome is not None:
                    return
                left = since + limit - clock.monotonic()
                if left <= 0:
                    await self._record(vm.id, operation, partial(_end_looks, look.index))
                    return
                hosts = [self.world.fleet.hosts[each] for each in look.hosts]
                here = [host for host in hosts if host.session is not None and host.agent == "connected"]
                sent = [self._send(host, vm, packed, id, left, withdraw=False) for host in here]
                receipts = await asyncio.gather(*sent)
                heard = len(here) == len(hosts) and all(
                    isinstance(receipt, Receipt) and receipt.accepted for receipt in receipts
                )
                await _wait(moved, min(ASK_AGAIN if heard else RETRY, left))

    async def _send(
        self, host: Host, vm: Vm, packed: Packed, id: CommandId, left: float, *, withdraw: bool
    ) -> Receipt | str:
        assert host.session is not None
        if withdraw:
            body: Order | Withdrawal = Withdrawal(
                id=id,
                host=host.id,
                session=host.session,
                incarnation=self.incarnation,
                lane=unpack_host_command(packed).lane,
                vm=vm.id,
            )
        else:
            body = Order(
                id=id,
                host=host.id,
                session=host.session,
                incarnation=self.incarnation,
                epoch=vm.epoch,
                deadline=max(1.0, left - GRACE),
                command=packed,
            )
        try:
            data = await self.bus.request(
                subjects.command(self.cluster, host.id), seal(body, self.signer), timeout=min(RECEIPT, left)
            )
            receipt: Receipt = unseal(data, Receipt, verifier(host.key))
            return receipt
        except (BusError, Forged) as error:
            return f"{host.name}: {error}"

    async def _time_out(self, vm: VmId, operation: Operation, index: int, trouble: str) -> None:
        label = operation.steps[index].label
        event = StepTimedOut(
            operation=operation.id,
            index=index,
            step=label,
            message=f"step {label} got no answer in time: {trouble}",
        )
        await self._record(vm, operation, lambda v, o: (change(stream("vm", v.id), event),))

    async def _refused(self, vm: VmId, operation: Operation, index: int, undo: bool, receipt: Receipt) -> None:
        event = StepFailed(
            operation=operation.id,
            index=index,
            step=operation.steps[index].label,
            undo=undo,
            attempt=operation.progress.attempt,
            code=receipt.code,
            message=receipt.message or "the agent refused the order",
        )
        await self._record(vm, operation, lambda v, o: (change(stream("vm", v.id), event),))

    async def _record(self, vm_id: VmId, seen: Operation, decide: Decide) -> None:
        """Append what was decided on the operation as `seen`; nothing if it has moved on since."""

        def changes() -> tuple[tuple[Change, ...], None]:
            vm = self.world.fleet.vms.get(vm_id)
            operation = None if vm is None else vm.operations.get(seen.id)
            if vm is None or operation is None or operation.outcome is not None or operation.progress != seen.progress:
                return (), None
            return decide(vm, operation), None

        meta = self.recorder.meta(actor=seen.actor, reason=seen.reason, operation=seen.id)
        try:
            await self.recorder.record(changes, lambda _: meta)
        except Rejected as error:
            logger.error("operation could not be recorded", operation=seen.id, why=error.reason)
            await self.recorder.clock.sleep(RETRY)


def _end_looks(index: int, vm: Vm, operation: Operation) -> tuple[Change, ...]:
    ended = LooksEnded(operation=operation.id, index=index, why=f"not seen clearly within {LOOKING:g} s")
    return (change(stream("vm", vm.id), ended),)


def _judge(verdict: Settle, vm: Vm, operation: Operation) -> tuple[Change, ...]:
    """The verdict with what it was made from, and the facts that follow from a step that is done."""
    step = operation.steps[verdict.index]
    assert step.judged is not None
    source, destination = (operation.progress.sights.get(end) for end in step.judged)
    judged = StepJudged(
        operation=operation.id,
        index=verdict.index,
        verdict=verdict.verdict,
        why=verdict.why,
        source_seen=None if source is None else source.observed,
        destination_seen=None if destination is None else destination.observed,
    )
    then = step.then if verdict.verdict == "moved" else ()
    return (change(stream("vm", vm.id), judged), *then)


def _close(end: Finish, vm: Vm, operation: Operation) -> tuple[Change, ...]:
    return close_operation(vm, operation, end)


async def _wait(moved: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await moved.wait()
    except TimeoutError:
        return
