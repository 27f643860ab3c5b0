"""Whether hosts are heard. Silence becomes a recorded fact about the agent, never one about its VMs.

Must not count silence that is ours: while the control plane's own link is down nobody is judged.
"""

import structlog

from vmorch.bus.bus import Bus
from vmorch.bus.keys import verifier
from vmorch.core.aggregates.host import HostEvent, HostReachable, HostUnreachable
from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId, SessionId, stream
from vmorch.core.operation import Change, change
from vmorch.engine.recorder import Recorder
from vmorch.log.errors import LogError
from vmorch.wire import subjects
from vmorch.wire.envelopes import Forged, Heartbeat, unseal

logger = structlog.get_logger()

SILENT = 8.0
"""Seconds without a heartbeat until a host counts as unreachable; agents beat each second."""


class Liveness:
    """Listens to heartbeats and records when a host falls silent or is heard again."""

    def __init__(self, recorder: Recorder, bus: Bus) -> None:
        self.recorder = recorder
        self.bus = bus
        self._heard: dict[HostId, float] = {}
        self._known: dict[HostId, tuple[SessionId | None, str]] = {}
        """Session and agent's state as of the last judgement."""

    async def handle(self, subject: str, _reply: str, data: bytes) -> bytes | None:
        """Note a heartbeat; one of an earlier session or with a wrong signature is not noted."""
        host = self.recorder.world.fleet.hosts.get(subjects.host_of(subject))
        if host is None or not host.key:
            return None
        try:
            beat: Heartbeat = unseal(data, Heartbeat, verifier(host.key))
        except Forged as error:
            logger.warning("forged heartbeat", host=host.name, why=str(error))
            return None
        if beat.host == host.id and beat.session == host.session:
            self._heard[host.id] = self.recorder.clock.monotonic()
        return None

    async def run(self) -> None:
        """Judge once a second, for ever."""
        clock = self.recorder.clock
        since = clock.monotonic()
        while True:
            await clock.sleep(1.0)
            now = clock.monotonic()
            if not self.bus.connected:
                since = now
                continue
            try:
                await self._judge(now, since)
            except (LogError, Rejected) as error:
                logger.warning("liveness could not be recorded", why=str(error))

    async def _judge(self, now: float, since: float) -> None:
        fleet = self.recorder.world.fleet
        for host in list(fleet.hosts.values()):
            known = (host.session, host.agent)
            if host.agent == "connected" and self._known.get(host.id) != known:
                # whoever has just said hello is heard, although its first heartbeat is still to come
                self._heard[host.id] = now
            self._known[host.id] = known
            silent = now - max(self._heard.get(host.id, since), since)
            verdict: HostEvent | None = None
            if host.agent == "connected" and silent > SILENT:
                verdict = HostUnreachable(session=host.session, silent=round(silent, 1))
            elif host.agent == "unreachable" and host.session and self._heard.get(host.id, -SILENT) > now - 2.5:
                verdict = HostReachable(session=host.session)
            if verdict is not None:
                await self._record(host.id, host.agent, verdict)

    async def _record(self, id: HostId, agent: str, verdict: HostEvent) -> None:
        def changes() -> tuple[tuple[Change, ...], None]:
            same = self.recorder.world.fleet.hosts[id].agent == agent
            return ((change(stream("host", id), verdict),) if same else ()), None

        await self.recorder.record(changes, lambda _: self.recorder.meta(actor="system"))
