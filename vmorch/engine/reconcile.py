"""The one policy loop: asks pure planners what is to be done now, and does it through the same door as everybody.

Woken by facts and by the clock, but never told anything by them: what to do follows from the fleet alone, so that it
can stop anywhere and another server can go on. Must not decide.
"""

import asyncio

import structlog

from vmorch.core.codec import Fact
from vmorch.core.errors import Rejected
from vmorch.core.ids import OperationId
from vmorch.core.operation import Change
from vmorch.core.planning.admission import admit_settling, admit_tidying
from vmorch.core.planning.mending import Mending, SettleVm, TidyVm, mend
from vmorch.engine.effects import Ids
from vmorch.engine.recorder import Recorder
from vmorch.log.errors import LogError

logger = structlog.get_logger()

EVERY = 5.0
"""Seconds between two looks at the fleet when nothing happens in it."""
GATHER = 0.05
"""Seconds in which facts that come close together become one look."""


class Reconcile:
    """Runs where the server leads."""

    def __init__(self, recorder: Recorder, ids: Ids) -> None:
        self.recorder = recorder
        self.ids = ids
        self._stir = asyncio.Event()

    async def run(self) -> None:
        """Look after each change and every few seconds, for ever."""
        ignore = self.recorder.world.on_fact(self._note)
        try:
            while True:
                try:
                    await self._round()
                except (LogError, Rejected) as error:
                    logger.warning("policies could not be carried out", why=str(error))
                await self._woken()
        finally:
            ignore()

    def _note(self, _fact: Fact) -> None:
        self._stir.set()

    async def _woken(self) -> None:
        try:
            async with asyncio.timeout(EVERY):
                await self._stir.wait()
        except TimeoutError:
            return
        await self.recorder.clock.sleep(GATHER)
        self._stir.clear()

    async def _round(self) -> None:
        for mending in mend(self.recorder.world.fleet, self.recorder.clock.now()):
            await self._mend(mending)

    async def _mend(self, mending: Mending) -> None:
        operation = OperationId(self.ids())

        def decide() -> tuple[tuple[Change, ...], None]:
            fleet = self.recorder.world.fleet
            if mending not in mend(fleet, self.recorder.clock.now()):
                return (), None
            vm = fleet.vms[mending.vm]
            match mending:
                case SettleVm():
                    return admit_settling(fleet, vm, operation=operation), None
                case TidyVm(host=host):
                    return admit_tidying(fleet, vm, host, operation=operation), None

        meta = self.recorder.meta(actor="system", reason="after a migration", operation=operation)
        await self.recorder.record(decide, lambda _: meta)
