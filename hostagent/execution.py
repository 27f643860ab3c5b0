"""Carry out one accepted order so that a crash at any point leaves either its answer or its open intent.

An effect whose end nobody saw is looked at, never done again. Must not decide whether an order is obeyed.
"""

import asyncio
import sqlite3
from collections.abc import Callable

import msgspec
import structlog

from hostagent.effects import Effects
from hostagent.hypervisor import Expired, Hypervisor, HypervisorLost, Withdrawn
from hostagent.journal import Journal
from hostagent.scope import OrderScope
from hostagent.watching import Watching
from vmorch.core.hostcommands import Answer, Done, Failed, Observed, ObserveDomain
from vmorch.core.ids import CommandId, VmId
from vmorch.core.messages import HostCommand

JOURNAL_RETRY_SECONDS = 1.0
BLIND_SECONDS = 10.0
"""How long a look waits for a daemon that is away before it answers that nothing can be seen."""

_log = structlog.get_logger(__name__)


class Job(msgspec.Struct, kw_only=True, eq=False):
    """An order in its lane. `interrupted`: an earlier process may have begun it, so it is not done again."""

    id: CommandId
    lane: str
    vm: VmId | None
    command: HostCommand
    scope: OrderScope
    interrupted: bool = False


class _Outcome(msgspec.Struct, frozen=True):
    answer: Answer
    remembered: bool


class Execution:
    """Carries out jobs, each in a thread; `answered` is called on the event loop when a job has ended."""

    def __init__(
        self,
        journal: Journal,
        hypervisor: Hypervisor,
        watching: Watching,
        effects: Effects,
        answered: Callable[[Job], None],
    ) -> None:
        self._journal = journal
        self._hypervisor = hypervisor
        self._watching = watching
        # any order may hang for ever; all of them together must not hold up journal and reports
        self._run = effects.blocking.apart().run
        self._answered = answered

    async def carry_out(self, job: Job) -> None:
        """Reach the job's target, or find out why not, and put the answer in the journal's outbox."""
        with self._watching.working_on(job.vm):
            outcome = await self._run(lambda: self._look(job) if job.interrupted else self._reach(job))
            while outcome is None:
                self._watching.lost()
                outcome = await self._look_when_back(job)
            answer = outcome.answer
            while not outcome.remembered:
                await asyncio.sleep(JOURNAL_RETRY_SECONDS)
                outcome = await self._run(lambda: self._remember(job, answer))
        self._answered(job)

    async def _look_when_back(self, job: Job) -> _Outcome | None:
        try:
            # who only wants to see is told soon that there is nothing to see
            async with asyncio.timeout(BLIND_SECONDS if isinstance(job.command, ObserveDomain) else None):
                await self._watching.back()
        except TimeoutError:
            unknown = Observed(power="unknown", reason="hypervisor unreachable")
            return await self._run(lambda: self._remember(job, Done(observed=unknown)))
        return await self._run(lambda: self._look(job))

    def _reach(self, job: Job) -> _Outcome | None:
        """Do it; None if the daemon went away, so that nobody knows whether it was done."""
        try:
            job.scope.check()
            answer = self._hypervisor.execute(job.command, job.scope)
        except (Withdrawn, Expired) as end:
            answer = self._given_up(job, end)
        except HypervisorLost:
            return None
        except Exception as fault:  # a defect in one command must neither end the agent nor hide
            _log.exception("command failed in a way nobody foresaw", order=job.id, kind=job.command.kind)
            return self._look(job, f"{type(fault).__name__}: {fault}")
        return self._remember(job, answer)

    def _look(self, job: Job, fault: str = "") -> _Outcome | None:
        """Find out whether the target is reached; None if the daemon is away."""
        try:
            answer = self._hypervisor.resolve(job.command, job.scope)
        except (Withdrawn, Expired) as end:
            answer = self._given_up(job, end)
        except HypervisorLost:
            return None
        except Exception as blind:  # as above
            _log.exception("looking failed in a way nobody foresaw", order=job.id, kind=job.command.kind)
            answer = Failed(code="fault", message=fault or f"{type(blind).__name__}: {blind}")
        if fault and not isinstance(answer, Done):
            answer = Failed(code="fault", message=fault, observed=answer.observed)
        return self._remember(job, answer)

    def _remember(self, job: Job, answer: Answer) -> _Outcome:
        try:
            self._journal.answer(job.id, job.vm, answer)
        except sqlite3.OperationalError as error:
            _log.error("journal refuses an answer", order=job.id, error=str(error))
            return _Outcome(answer, remembered=False)
        return _Outcome(answer, remembered=True)

    def _given_up(self, job: Job, end: Withdrawn | Expired) -> Failed:
        if isinstance(end, Withdrawn):
            return Failed(code="cancelled", message="withdrawn", observed=self._seen(job))
        return Failed(code="deadline-passed", message="its time was over", observed=self._seen(job))

    def _seen(self, job: Job) -> Observed | None:
        if job.vm is None:
            return None
        try:
            return self._hypervisor.observe(job.vm)
        except HypervisorLost:
            return None
