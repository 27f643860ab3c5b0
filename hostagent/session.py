"""The agent's side of one session after another: say hello, then tell everything in the journal's outbox.

Each connection is a session of its own. Items are told in order, one report at a time, again and again until
the control plane confirms that they are in the log. Must not obey orders.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from msgspec import Struct

from hostagent.effects import Effects
from hostagent.hypervisor import Hypervisor, HypervisorLost
from hostagent.journal import Journal
from hostagent.pinning import Pins, Regressed
from hostagent.watching import Watching
from vmorch.bus.bus import Bus, BusError
from vmorch.core.ids import HostId, SessionId
from vmorch.core.spec import HostFacts
from vmorch.wire import subjects
from vmorch.wire.envelopes import Confirmation, Forged, Heartbeat, Hello, Report, Signer, Verifier, seal, unseal

BATCH_ITEMS = 50
BATCH_BYTES = 256 * 1024
CONFIRMED_WITHIN = 5.0
"""Seconds for one attempt; a report that was recorded twice is recorded once."""
HEARTBEAT_EVERY = 1.0
REPORT_EVERY = 300.0
"""Seconds after which even nothing is reported: confirmations bring the bus credentials of the next hour."""
_FIRST_WAIT, _LONGEST_WAIT, _UNWELCOME_WAIT = 0.1, 5.0, 30.0

_log = structlog.get_logger(__name__)


class Ended(Exception):
    """The session is over; the next one begins with a hello."""


class Party(Struct, frozen=True):
    """Who speaks to whom: this host's id and key, and how to know the control plane."""

    cluster: str
    host: HostId
    keys: Signer
    server: Verifier


class Session:
    """The session now, if any; `id` is None while the control plane was not greeted on this connection."""

    def __init__(
        self,
        party: Party,
        journal: Journal,
        hypervisor: Hypervisor,
        watching: Watching,
        pins: Pins,
        effects: Effects,
        new_credentials: Callable[[str], Awaitable[None]],
    ) -> None:
        self._party = party
        self._journal = journal
        self._hypervisor = hypervisor
        self._watching = watching
        self._pins = pins
        self._effects = effects
        self._new_credentials = new_credentials
        self._wake = asyncio.Event()
        self._awaiting: list[Callable[[], None]] = []
        self._link_up = asyncio.Event()
        self._renew = False
        self._greeted = False
        self._beats = 0
        self.id: SessionId | None = None

    def connection_changed(self, connected: bool) -> None:
        """The bus has a new connection, or lost the one it had."""
        if connected:
            self._link_up.set()
        else:
            self._link_up.clear()
        self._renew = True
        self._wake.set()

    def begin_anew(self) -> None:
        """What was said about this host in the hello holds no more."""
        self._renew = True
        self._wake.set()

    def wake(self, told: Callable[[], None] | None = None) -> None:
        """There is something new in the outbox. `told` is called once all of it is confirmed, unless the session
        ends."""
        if told is not None:
            self._awaiting.append(told)
        self._wake.set()

    async def tell_for_ever(self, bus: Bus) -> None:
        """Hold one session after another until cancelled."""
        while True:
            await self._link_up.wait()
            self._renew = self._greeted = False
            self.id = SessionId(self._effects.new_id())
            number = await self._effects.blocking.run(self._journal.next_session)
            try:
                await self._greet(bus, self.id, number)
                while True:
                    await self._tell_next(bus, self.id)
            except Ended as end:
                _log.info("session ended", session=self.id, reason=str(end))
            finally:
                self.id = None

    async def beat_for_ever(self, bus: Bus) -> None:
        """Show each second that the session is alive."""
        party = self._party
        while True:
            if self.id is not None and self._greeted:
                self._beats += 1
                beat = Heartbeat(host=party.host, session=self.id, sequence=self._beats)
                try:
                    await bus.publish(subjects.heartbeat(party.cluster, party.host), seal(beat, party.keys))
                except BusError as error:
                    _log.debug("heartbeat not sent", code=error.code)
            await asyncio.sleep(HEARTBEAT_EVERY)

    async def _greet(self, bus: Bus, session: SessionId, number: int) -> None:
        facts = await self._facts()
        await self._effects.blocking.run(lambda: self._pins.check_machine(facts.machine_id))
        look = await self._watching.ask_inventory()
        hello = Hello(
            number=number,
            facts=facts,
            domains=look.domains,
            unmanaged=tuple(sorted(look.unmanaged)),
        )
        report = Report(host=self._party.host, session=session, through=0, items=(hello,))
        confirmation = await self._confirmed(bus, report)
        await self._effects.blocking.run(lambda: self._pins.greeted(confirmation.incarnation, confirmation.position))
        await self._effects.blocking.run(lambda: self._journal.greeted(hello.domains, hello.unmanaged))
        self._greeted = True
        self._watching.begin(facts)
        _log.info("session begun", session=session, domains=len(hello.domains), position=confirmation.position)

    async def _facts(self) -> HostFacts:
        while True:
            await self._watching.back()
            try:
                return await self._effects.blocking.run(self._hypervisor.facts)
            except HypervisorLost:
                self._watching.lost()

    async def _tell_next(self, bus: Bus, session: SessionId) -> None:
        self._wake.clear()
        awaiting = tuple(self._awaiting)
        entries = await self._effects.blocking.run(lambda: self._journal.unconfirmed(BATCH_ITEMS, BATCH_BYTES))
        if not entries:
            for told in awaiting:
                told()
            self._awaiting = self._awaiting[len(awaiting) :]
            if self._renew:
                raise Ended("new connection")
            if await self._woken(REPORT_EVERY):
                return
        through = entries[-1].seq if entries else 0
        items = tuple(entry.item for entry in entries)
        report = Report(host=self._party.host, session=session, through=through, items=items)
        confirmation = await self._confirmed(bus, report)
        await self._effects.blocking.run(lambda: self._journal.confirm(through, confirmation.position))
        if confirmation.incarnation not in ("", self._pins.incarnation):
            raise Ended("the log was restored")

    async def _confirmed(self, bus: Bus, report: Report) -> Confirmation:
        """The confirmation that all of it is in the log, however long that takes. Raises Ended."""
        wait, longest = _FIRST_WAIT, _LONGEST_WAIT
        data = seal(report, self._party.keys)
        while True:
            if self._renew:
                raise Ended("new connection")
            confirmation = await self._attempt(bus, data, report)
            if confirmation is not None:
                match confirmation.code:
                    case "":
                        await self._take_credentials(confirmation)
                        return confirmation
                    case "stale-session":
                        # a hello that counts as stale was overtaken by a newer one; either way begin anew
                        await asyncio.sleep(wait * self._effects.chance())
                        raise Ended("the control plane knows another session")
                    case "busy":
                        _log.info("control plane is busy", message=confirmation.message)
                    case code:
                        _log.error("control plane refuses this host", code=code, message=confirmation.message)
                        longest = _UNWELCOME_WAIT
            await self._pause(wait * (0.5 + self._effects.chance() / 2))
            wait = min(wait * 2, longest)

    async def _attempt(self, bus: Bus, data: bytes, report: Report) -> Confirmation | None:
        subject = subjects.report(self._party.cluster, self._party.host)
        try:
            answer = await bus.request(subject, data, CONFIRMED_WITHIN)
            confirmation: Confirmation = unseal(answer, Confirmation, self._party.server)
        except BusError as error:
            _log.info("report not confirmed", code=error.code, error=str(error))
            return None
        except Forged as error:
            _log.error("confirmation is not the control plane's", error=str(error))
            return None
        if confirmation.code:
            return confirmation
        if confirmation.through != report.through:
            _log.error("confirmation of another report", expected=report.through, got=confirmation.through)
            return None
        try:
            await self._effects.blocking.run(lambda: self._pins.check_incarnation(confirmation.incarnation))
        except Regressed as error:
            _log.error("control plane has an older log", error=str(error))
            return None
        return confirmation

    async def _take_credentials(self, confirmation: Confirmation) -> None:
        if confirmation.credentials:
            await self._new_credentials(confirmation.credentials)

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than this connection lasts."""
        until = self._effects.clock() + seconds
        while not self._renew and (left := until - self._effects.clock()) > 0:
            self._wake.clear()
            await self._woken(left)

    async def _woken(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True
