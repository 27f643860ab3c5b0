"""The one saga runner: asks the pure machine what is next for each operation, and does it.

It keeps no state of its own: what is under way is in the log, so it can stop anywhere and another process can go
on. Must not decide what a step means, nor take silence for an answer.
"""

import asyncio
from functools import partial

import structlog

from vmorch.bus.bus import Bus
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import (
    Operation,
    StepFailed,
    StepTimedOut,
    Vm,
    VmEvent,
    close_operation,
)
from vmorch.core.codec import Fact
from vmorch.core.errors import Rejected
from vmorch.core.ids import OperationId, VmId, split_stream, stream
from vmorch.core.operation import Change, Finish, Look, Send, Settle, Withdraw, change, next_action
from vmorch.engine.looking import Decide, Looking, judged, woken
from vmorch.engine.orders import ASK_AGAIN, FINAL_REFUSALS, GRACE, RETRY, Orders
from vmorch.engine.recorder import Recorder
from vmorch.engine.reports import OrderRef, order_id
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.log.errors import LogError
from vmorch.wire.envelopes import Receipt, Signer

logger = structlog.get_logger()

WITHDRAWAL = 30.0
"""Seconds that an agent has to say what became of an order that was withdrawn."""

JUDGE_AFTER = 20.0
"""Seconds that the host of a judged step may be unreachable until its answer is waited for no longer: what became of
the step is seen at its two ends anyway."""


class Operations:
    """Drives every operation that is not over, each in a task of its own."""

    def __init__(
        self, recorder: Recorder, bus: Bus, cluster: str, signer: Signer, incarnation: str, keys: SubjectKeys
    ) -> None:
        self.recorder = recorder
        self.world = recorder.world
        self.orders = Orders(bus, cluster, signer, incarnation, keys)
        self.looking = Looking(recorder, self.orders)
        self._tasks: dict[OperationId, asyncio.Task[None]] = {}
        self._driving = False

    async def run(self) -> None:
        """Drive what is under way and whatever starts, for ever."""
        ignore = self.world.on_fact(self._note)
        self._driving = True
        for vm in list(self.world.fleet.vms.values()):
            if vm.active is not None:
                self._begin(vm.id, vm.active)
        try:
            await asyncio.Event().wait()
        finally:
            self._driving = False
            ignore()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _note(self, fact: Fact) -> None:
        if isinstance(fact.event, VmEvent):
            vm = self.world.fleet.vms.get(VmId(split_stream(fact.stream)[1]))
            if vm is not None and vm.active is not None:
                self._begin(vm.id, vm.active)

    def _begin(self, vm: VmId, operation: OperationId) -> None:
        if self._driving and operation not in self._tasks:
            task = asyncio.create_task(self._drive(vm, operation), name=f"operation {operation}")
            self._tasks[operation] = task
            task.add_done_callback(partial(self._over, vm, operation))

    def _over(self, vm: VmId, operation: OperationId, task: asyncio.Task[None]) -> None:
        self._tasks.pop(operation, None)
        self.looking.forget(operation)
        if not task.cancelled() and task.exception() is not None:
            logger.error("operation runner failed, it begins anew", operation=operation, exc_info=task.exception())
            asyncio.get_running_loop().call_later(RETRY, self._begin, vm, operation)

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
                        await self.looking.look(vm, operation, look, partial(self._record, vm_id, operation))
                    case Settle() as verdict:
                        await self._record(vm_id, operation, partial(judged, verdict))
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
                    give = self.orders.withdraw if withdraw else self.orders.send
                    receipt = await give(host, vm, packed, id, left)
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
                await woken(moved, min(wait, left))

    async def _tune(self, host: Host, vm: Vm, operation: Operation, index: int, left: float) -> None:
        """Pass on what was asked for while the step is under way; it is asked again until it is answered."""
        progress = operation.progress
        for number in range(progress.tuned, len(progress.tunings)):
            id = OrderRef(operation.id, index, "tune", number).id
            await self.orders.send(host, vm, progress.tunings[number], id, left)

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


def _close(end: Finish, vm: Vm, operation: Operation) -> tuple[Change, ...]:
    return close_operation(vm, operation, end)
