"""How far long work has come, for those who watch it: the newest sample of each operation, kept in memory alone.

Must not be decided upon, nor stored: a server that starts knows nothing of what was told before.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from vmorch.bus.keys import verifier
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Sample
from vmorch.core.ids import HostId, OperationId
from vmorch.engine.reports import parse_order_id
from vmorch.wire import subjects
from vmorch.wire.envelopes import Forged, Telemetry, unseal

logger = structlog.get_logger()

KEPT = 1000
"""How many operations samples are kept of."""


class Samples:
    """The newest sample of each operation that told one."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._newest: dict[OperationId, Sample] = {}
        self._watchers: dict[OperationId, set[asyncio.Event]] = {}

    async def handle(self, subject: str, _reply: str, data: bytes) -> bytes | None:
        """Note a sample, if the host whose step is under way signed it."""
        host = self.fleet.hosts.get(HostId(subjects.host_of(subject)))
        if host is None or not host.key:
            return None
        try:
            told: Telemetry = unseal(data, Telemetry, verifier(host.key))
        except Forged as error:
            logger.warning("forged telemetry", host=host.name, why=str(error))
            return None
        ref = parse_order_id(told.order)
        found = None if ref is None else self.fleet.operation(ref.operation)
        if ref is None or found is None or told.host != host.id or found[1].outcome is not None:
            return None
        steps = found[1].steps
        if ref.index >= len(steps) or steps[ref.index].host != host.id:
            return None
        self._newest.pop(ref.operation, None)
        self._newest[ref.operation] = told.sample
        while len(self._newest) > KEPT:
            self._newest.pop(next(iter(self._newest)))
        for event in self._watchers.get(ref.operation, ()):
            event.set()
        return None

    def newest(self, operation: OperationId) -> Sample | None:
        """The newest sample of an operation, if any was told to this server."""
        return self._newest.get(operation)

    @contextmanager
    def watch(self, operation: OperationId) -> Iterator[asyncio.Event]:
        """An event that is set at each new sample; the watcher clears it."""
        event = asyncio.Event()
        self._watchers.setdefault(operation, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[operation]
            watchers.discard(event)
            if not watchers:
                del self._watchers[operation]
