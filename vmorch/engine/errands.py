"""Has hosts in maintenance do what they were asked for: sends each errand until it is answered.

Like the runner of operations it keeps no state of its own. Must not judge an answer, nor give an errand up: the policy
does, when its time is over.
"""

import asyncio
from functools import partial

import structlog

from vmorch.core.aggregates.maintenance import ErrandFailed, Maintenance, Station
from vmorch.core.codec import Fact
from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId, stream
from vmorch.core.operation import Change, change
from vmorch.core.planning.errands import errand_id, order_of, time_left
from vmorch.engine.looking import woken
from vmorch.engine.orders import ASK_AGAIN, FINAL_REFUSALS, RETRY, Orders
from vmorch.engine.recorder import Recorder
from vmorch.log.errors import LogError
from vmorch.wire.envelopes import Receipt

logger = structlog.get_logger()

Key = tuple[str, HostId, str, int]
"""Maintenance, host, errand and attempt."""


class Errands:
    """Runs where the server leads."""

    def __init__(self, recorder: Recorder, orders: Orders) -> None:
        self.recorder = recorder
        self.orders = orders
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._stir = asyncio.Event()

    async def run(self) -> None:
        """Have every errand done that is open or will be, for ever."""
        ignore = self.recorder.world.on_fact(self._note)
        self._stir.set()
        try:
            while True:
                await self._stir.wait()
                self._stir.clear()
                for key in self._open():
                    if key not in self._tasks:
                        task = asyncio.create_task(self._drive(key), name=f"errand {key}")
                        self._tasks[key] = task
                        task.add_done_callback(partial(self._over, key))
        finally:
            ignore()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _note(self, fact: Fact) -> None:
        if fact.stream.startswith("maintenance/"):
            self._stir.set()

    def _over(self, key: Key, task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("errand runner failed, it begins anew", errand=key, exc_info=task.exception())
            asyncio.get_running_loop().call_later(RETRY, self._stir.set)

    def _open(self) -> list[Key]:
        return [
            (found.id, host, station.errand, station.attempt)
            for found in self.recorder.world.fleet.maintenances.values()
            if found.running
            for host, station in found.stations.items()
            if station.errand is not None
        ]

    def _current(self, key: Key) -> tuple[Maintenance, Station] | None:
        found = self.recorder.world.fleet.maintenances.get(key[0])
        station = None if found is None else found.stations[key[1]]
        if found is None or station is None or not found.running or (station.errand, station.attempt) != key[2:]:
            return None
        return found, station

    async def _drive(self, key: Key) -> None:
        world, clock, id = self.recorder.world, self.recorder.clock, key[1]
        with world.watch(stream("maintenance", key[0]), stream("host", id)) as moved:
            while True:
                moved.clear()
                current = self._current(key)
                if current is None:
                    return
                found, station = current
                left = time_left(station, clock.now())
                if left <= 0 or station.errand is None:
                    return  # the policy ends it
                host, wait = world.fleet.hosts[id], RETRY
                if host.session is not None and host.agent == "connected":
                    packed, order = order_of(found, station.errand), errand_id(found, id)
                    receipt = await self.orders.send(host, None, packed, order, left)
                    if isinstance(receipt, Receipt) and receipt.accepted:
                        wait = ASK_AGAIN
                    elif isinstance(receipt, Receipt) and receipt.code in FINAL_REFUSALS:
                        await self._refused(key, receipt)
                        return
                else:
                    wait = left
                await woken(moved, min(wait, left))

    async def _refused(self, key: Key, receipt: Receipt) -> None:
        def decide() -> tuple[tuple[Change, ...], None]:
            current = self._current(key)
            if current is None or current[1].errand is None:
                return (), None
            failed = ErrandFailed(
                host=key[1], errand=current[1].errand, code=receipt.code, message=receipt.message or "refused"
            )
            return (change(stream("maintenance", key[0]), failed),), None

        meta = self.recorder.meta(actor="system", correlation=key[0])
        try:
            await self.recorder.record(decide, lambda _: meta)
        except (LogError, Rejected) as error:
            logger.warning("errand could not be recorded", errand=key, why=str(error))
            await self.recorder.clock.sleep(RETRY)
