"""The one policy loop: asks pure planners what is to be done now, and does it through the same door as everybody.

Woken by facts and by the clock, but never told anything by them: what to do follows from the fleet alone, so that it
can stop anywhere and another server can go on. Must not decide.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from vmorch.core.aggregates.vm import OperationStarted
from vmorch.core.codec import Fact
from vmorch.core.errors import Rejected
from vmorch.core.ids import OperationId
from vmorch.core.messages import Meta
from vmorch.core.operation import Change
from vmorch.core.planning import draining, maintaining, mending, snapshotting
from vmorch.core.planning.acts import Act, Answer, Later, Policy
from vmorch.engine.effects import Ids
from vmorch.engine.recorder import Recorder
from vmorch.log.errors import LogError

logger = structlog.get_logger()

EVERY = 5.0
"""Seconds between two looks at the fleet when nothing happens in it."""
LEAST, MOST, SHARE = 0.005, 0.05, 9
"""Facts that come close together become one look: after each one there is a pause of at least and at most so many
seconds, between them so many times as long as the look took, so that looking takes a tenth of the time at most."""
REST = 1.0
"""Seconds until an act is tried again that was refused."""

POLICIES: tuple[Policy, ...] = (mending.mend, draining.policy, maintaining.policy, snapshotting.policy)
"""Everything that is done without being asked for, in the order in which it is looked at."""


class Reconcile:
    """Runs where the server leads."""

    def __init__(self, recorder: Recorder, ids: Ids, policies: Sequence[Policy] = POLICIES) -> None:
        self.recorder = recorder
        self.ids = ids
        self.policies = policies
        self._stir = asyncio.Event()
        self._resting: dict[str, float] = {}
        self._rested = float("-inf")

    async def run(self) -> None:
        """Look after each change, when a policy asks for it, and every few seconds, for ever."""
        ignore = self.recorder.world.on_fact(self._note)
        try:
            while True:
                wait = EVERY
                try:
                    wait = await self._round()
                except LogError as error:
                    logger.warning("policies wait for the log", why=str(error))
                await self._woken(wait)
        finally:
            ignore()

    def _note(self, _fact: Fact) -> None:
        self._stir.set()

    async def _woken(self, wait: float) -> None:
        try:
            async with asyncio.timeout(wait):
                await self._stir.wait()
        except TimeoutError:
            return
        await self.recorder.clock.sleep(max(0.0, self._rested - self.recorder.clock.monotonic()))

    async def _round(self) -> float:
        """Do everything that there is to do now; seconds until the next look."""
        self._stir.clear()
        clock = self.recorder.clock
        wait, looking = EVERY, 0.0
        for policy in self.policies:
            now, began = clock.now(), clock.monotonic()
            answers = self._ask(policy, now)
            looking += clock.monotonic() - began
            for answer in answers:
                match answer:
                    case Later(at=at):
                        wait = min(wait, max((at - now).total_seconds(), MOST))
                    case Act():
                        await self._do(answer)
        self._rested = clock.monotonic() + min(MOST, max(LEAST, SHARE * looking))
        return wait

    def _ask(self, policy: Policy, now: datetime) -> Sequence[Answer]:
        try:
            return policy(self.recorder.world.fleet, now)
        except Exception:
            # whatever is wrong with one policy must not keep the others from their work
            logger.exception("a policy failed", policy=policy.__module__)
            return ()

    async def _do(self, act: Act) -> None:
        clock = self.recorder.clock
        if self._resting.get(act.subject, 0.0) > clock.monotonic():
            return
        self._resting.pop(act.subject, None)
        operation = OperationId(self.ids())

        def decide() -> tuple[tuple[Change, ...], bool]:
            changes = act.changes(self.recorder.world.fleet, clock.now(), operation)
            return changes, any(each.event.kind == OperationStarted.kind for each in changes)

        because = act.because(self.recorder.world.fleet)

        def meta(begins: bool) -> Meta:
            return self.recorder.meta(
                actor=because.actor,
                reason=because.reason,
                operation=operation if begins else None,
                correlation=because.correlation,
            )

        try:
            await self.recorder.record(decide, meta)
        except Rejected as error:
            logger.warning("a policy was refused", subject=act.subject, code=error.code, why=error.reason)
            self._resting[act.subject] = clock.monotonic() + REST
            await self._instead(act, error, meta)

    async def _instead(self, act: Act, refusal: Rejected, meta: Callable[[bool], Meta]) -> None:
        """Record what follows from an act that cannot be recorded."""
        fleet, now = self.recorder.world.fleet, self.recorder.clock.now
        try:
            await self.recorder.record(lambda: (act.refused(fleet, now(), refusal), False), meta)
        except Rejected as error:
            logger.error("nor could that be recorded", subject=act.subject, code=error.code, why=error.reason)
