"""One host's agent: bus, journal, lanes and hypervisor joined together.

Everything with an effect is handed in, so that many agents can live in one process under one schedule.
Must not read configuration, and must not know which hypervisor it drives.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from hostagent.effects import Effects
from hostagent.execution import Execution, Job
from hostagent.hypervisor import Hypervisor
from hostagent.intake import Intake
from hostagent.journal import Journal
from hostagent.lanes import Lanes
from hostagent.pinning import Pins
from hostagent.session import Party, Session
from hostagent.telemetry import Teller
from hostagent.watching import Watching
from vmorch.bus.bus import Bus, to_control_plane
from vmorch.wire import subjects

_log = structlog.get_logger(__name__)


class Agent:
    """An agent that has not begun; `run` brings it to life, once."""

    def __init__(
        self,
        party: Party,
        journal: Journal,
        hypervisor: Hypervisor,
        pins: Pins,
        effects: Effects,
        new_credentials: Callable[[str], Awaitable[None]],
    ) -> None:
        self._party = party
        self._watching = Watching(journal, hypervisor, effects, told=self._wake, outdated=self.facts_changed)
        self._session = Session(party, journal, hypervisor, self._watching, pins, effects, new_credentials)
        self._lanes = Lanes(self._carry_out, self._failed)
        self._teller = Teller(party, self._session)
        self._intake = Intake(party, journal, self._session, pins, self._lanes, self._teller, effects)
        self._execution = Execution(journal, hypervisor, self._watching, effects, self._intake.answered)
        self._fault: asyncio.Future[None] | None = None

    def connection_changed(self, connected: bool) -> None:
        """To be told of every connection of the bus, and of every loss. Only on the event loop's thread."""
        self._session.connection_changed(connected)

    def facts_changed(self) -> None:
        """To be told when the host became another than it said, so that it says so. Only on the event loop's thread."""
        self._session.begin_anew()

    async def run(self, bus: Bus) -> None:
        """Take orders and report until cancelled. What an earlier process left open is looked at first."""
        self._fault = asyncio.get_running_loop().create_future()
        self._intake.resume()
        command = subjects.command(self._party.cluster, self._party.host)
        await bus.serve(command, self._intake.handle, reply_allowed=to_control_plane(self._party.cluster))
        self.connection_changed(bus.connected)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watching.run(), name="watching")
            tasks.create_task(self._session.tell_for_ever(bus), name="session")
            tasks.create_task(self._session.beat_for_ever(bus), name="heartbeat")
            tasks.create_task(self._teller.publish_for_ever(bus), name="telemetry")
            await self._fault

    async def close(self, grace: float) -> None:
        """Begin nothing more; wait at most `grace` seconds for what runs. What still runs then stays an open
        intent, which the next process looks at."""
        if not await self._lanes.close(grace):
            _log.warning("orders left open; their effects are looked at when the agent starts again")

    async def _carry_out(self, job: Job) -> None:
        await self._execution.carry_out(job)

    def _wake(self) -> None:
        self._session.wake()

    def _failed(self, fault: BaseException) -> None:
        if self._fault is not None and not self._fault.done():
            self._fault.set_exception(fault)
