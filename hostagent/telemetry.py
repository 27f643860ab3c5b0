"""Show how far passages have come: the newest sample of each, at most twice a second, to whoever may listen.

Nothing is kept or repeated: off the bus a sample is dropped. Must not be relied upon by anything.
"""

import asyncio
from collections.abc import Callable

import structlog

from hostagent.session import Party, Session
from vmorch.bus.bus import Bus, BusError
from vmorch.core.hostcommands import Sample
from vmorch.core.ids import CommandId, VmId
from vmorch.wire import subjects
from vmorch.wire.envelopes import Telemetry, seal

EVERY = 0.5
"""Seconds between two samples of the same order."""

_log = structlog.get_logger(__name__)


class Teller:
    """Takes samples from any thread and publishes them as this host's telemetry."""

    def __init__(self, party: Party, session: Session) -> None:
        self._party = party
        self._session = session
        self._newest: dict[CommandId, tuple[VmId, Sample]] = {}
        self._stir = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def of(self, order: CommandId, vm: VmId | None) -> Callable[[Sample], None]:
        """What takes the samples of one order's passage."""

        def tell(sample: Sample) -> None:
            if vm is None or self._loop is None or self._loop.is_closed():
                return
            self._newest[order] = (vm, sample)
            self._loop.call_soon_threadsafe(self._stir.set)

        return tell

    async def publish_for_ever(self, bus: Bus) -> None:
        """Publish what was told last, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._stir.wait()
            self._stir.clear()
            newest, self._newest = self._newest, {}
            for order, (vm, sample) in newest.items():
                await self._publish(bus, order, vm, sample)
            await asyncio.sleep(EVERY)

    async def _publish(self, bus: Bus, order: CommandId, vm: VmId, sample: Sample) -> None:
        session, party = self._session.id, self._party
        if session is None:
            return
        told = Telemetry(host=party.host, session=session, vm=vm, order=order, sample=sample)
        try:
            await bus.publish(subjects.telemetry(party.cluster, party.host, vm), seal(told, party.keys))
        except BusError as error:
            _log.debug("telemetry not sent", code=error.code)
