"""Have both ends of a passage looked at after it, and word the verdict. Must not judge: that is the core's."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from vmorch.core.aggregates.passage import LooksEnded, StepJudged
from vmorch.core.aggregates.vm import Operation, Vm
from vmorch.core.codec import pack
from vmorch.core.hostcommands import Observed, ObserveDomain
from vmorch.core.ids import OperationId, stream
from vmorch.core.operation import Change, Look, Settle, change
from vmorch.engine.orders import ASK_AGAIN, RETRY, Orders
from vmorch.engine.recorder import Recorder
from vmorch.engine.reports import OrderRef
from vmorch.wire.envelopes import Receipt

LOOKING = 60.0
"""Seconds in which both ends of a passage must have been seen in a state that says whose the VM is."""
UNSEEN = 15.0
"""The same while one of them cannot be reached at all: it is then settled when that host is back, and nothing is lost
by saying so early."""
SWITCHING = 15.0
"""The same while the guest is halted for its switch-over: whoever was to end that has had its time before."""
NEXT_LOOK, LATER_LOOK = 0.5, 3.0
"""Seconds before another look, first and at most."""

Decide = Callable[[Vm, Operation], tuple[Change, ...]]
"""What to append for an operation as it is now."""
Record = Callable[[Decide], Awaitable[None]]


class Looking:
    """Asks hosts for what they see, in rounds, for a bounded time of each operation."""

    def __init__(self, recorder: Recorder, orders: Orders) -> None:
        self.recorder = recorder
        self.world = recorder.world
        self.orders = orders
        self._since: dict[OperationId, float] = {}

    def forget(self, operation: OperationId) -> None:
        """The operation is over."""
        self._since.pop(operation, None)

    async def look(self, vm: Vm, operation: Operation, look: Look, record: Record) -> None:
        """Have hosts asked what they see, until they have told it or it has taken too long; that is recorded."""
        clock = self.recorder.clock
        since = self._since.setdefault(operation.id, clock.monotonic())
        if look.round > 1:
            await clock.sleep(min(NEXT_LOOK * look.round, LATER_LOOK))
        step = operation.steps[look.index]
        assert step.judged is not None
        source = operation.progress.sights.get(step.judged[0])
        limit = LOOKING if source is None else _patience(source.observed, step.deadline)
        packed = pack(ObserveDomain(vm=vm.id))
        id = OrderRef(operation.id, look.index, "look", look.round).id
        with self.world.watch(stream("vm", vm.id), *(stream("host", each) for each in look.hosts)) as moved:
            while True:
                moved.clear()
                current = self.world.fleet.vms[vm.id].operations.get(operation.id)
                if current is None or current.progress != operation.progress or current.outcome is not None:
                    return
                hosts = [self.world.fleet.hosts[each] for each in look.hosts]
                here = [host for host in hosts if host.session is not None and host.agent == "connected"]
                allowed = limit if len(here) == len(hosts) else UNSEEN
                left = since + allowed - clock.monotonic()
                if left <= 0:
                    await record(partial(_end_looks, look.index, allowed))
                    return
                receipts = await asyncio.gather(*(self.orders.send(host, vm, packed, id, left) for host in here))
                heard = len(here) == len(hosts) and all(
                    isinstance(receipt, Receipt) and receipt.accepted for receipt in receipts
                )
                await woken(moved, min(ASK_AGAIN if heard else RETRY, left))


def _patience(source: Observed, deadline: float) -> float:
    if not source.moving:
        return LOOKING
    # a passage that is still seen to be under way has the time that it was given
    return SWITCHING if source.reason == "migration" else max(LOOKING, deadline)


def _end_looks(index: int, seconds: float, vm: Vm, operation: Operation) -> tuple[Change, ...]:
    ended = LooksEnded(operation=operation.id, index=index, why=f"not seen clearly within {seconds:g} s")
    return (change(stream("vm", vm.id), ended),)


def judged(verdict: Settle, vm: Vm, operation: Operation) -> tuple[Change, ...]:
    """The verdict with what it was made from, and the facts that follow from a step that is done."""
    step = operation.steps[verdict.index]
    assert step.judged is not None
    source, destination = (operation.progress.sights.get(end) for end in step.judged)
    event = StepJudged(
        operation=operation.id,
        index=verdict.index,
        verdict=verdict.verdict,
        why=verdict.why,
        source_seen=None if source is None else source.observed,
        destination_seen=None if destination is None else destination.observed,
    )
    then = step.then if verdict.verdict == "moved" else ()
    return (change(stream("vm", vm.id), event), *then)


async def woken(moved: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await moved.wait()
    except TimeoutError:
        return
