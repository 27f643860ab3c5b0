"""Take orders and withdrawals from the bus: refuse what is not for now, journal the rest, put it in its lane.

Whoever cannot be proven to be the control plane gets no answer. Must not carry anything out.
"""

import asyncio
import sqlite3
import threading
from contextlib import suppress
from functools import partial

import structlog

from hostagent.effects import Effects
from hostagent.execution import Job
from hostagent.journal import Journal
from hostagent.lanes import Lanes
from hostagent.pinning import Pins
from hostagent.scope import OrderScope
from hostagent.session import Party, Session
from hostagent.telemetry import Teller
from vmorch.core.codec import Unreadable, unpack_host_command
from vmorch.core.hostcommands import DomainCommand, Done, Failed
from vmorch.core.ids import CommandId, VmId
from vmorch.core.messages import HostCommand
from vmorch.wire.envelopes import Forged, Order, Receipt, ToAgent, Withdrawal, seal, unseal

TOLD_WITHIN = 0.1
"""Seconds that a job which was answered before its end waits for its answer to arrive."""

_log = structlog.get_logger(__name__)


class Intake:
    """The handler of this host's command subject."""

    def __init__(
        self,
        party: Party,
        journal: Journal,
        session: Session,
        pins: Pins,
        lanes: Lanes[Job],
        teller: Teller,
        effects: Effects,
    ) -> None:
        self._party = party
        self._journal = journal
        self._session = session
        self._pins = pins
        self._lanes = lanes
        self._teller = teller
        self._effects = effects
        self._jobs: dict[CommandId, Job] = {}
        # journaling and queueing of one message must not be split by another one about the same order
        self._one_at_a_time = asyncio.Lock()

    def resume(self) -> None:
        """Queue every order of an earlier process that is not over, to be looked at before all else."""
        for order in self._journal.open_orders():
            try:
                command = unpack_host_command(order.command)
            except Unreadable as error:
                # an older agent than the one that accepted it
                answer = Failed(code="unknown-command", message=str(error))
                self._journal.answer(order.id, order.vm, answer)
                continue
            self._queue(
                order.id, order.lane, order.vm, command, until=float("inf"), interrupted=True, told=order.told
            )

    def answered(self, job: Job) -> None:
        """The job has ended and its answer is in the outbox."""
        del self._jobs[job.id]
        self._session.wake()

    async def handle(self, _subject: str, _reply: str, data: bytes) -> bytes | None:
        """The receipt for one message; None, so no answer at all, if it is not the control plane's."""
        came = self._effects.clock()
        try:
            said: ToAgent = unseal(data, ToAgent, self._party.server)
        except Forged as error:
            _log.error("order is not the control plane's", error=str(error))
            return None
        if said.host != self._party.host:
            _log.error("order for another host", host=said.host)
            return None
        receipt = self._refusal(said)
        if receipt is None:
            async with self._one_at_a_time:
                receipt = await self._take(said, came)
        if not receipt.accepted:
            _log.warning("order refused", order=said.id, code=receipt.code, message=receipt.message)
        return seal(receipt, self._party.keys)

    def _refusal(self, said: ToAgent) -> Receipt | None:
        if not self._lanes.open:
            return _refused("stopping", "the agent is about to end")
        refusal = self._pins.refusal
        if refusal is not None:
            return _refused(*refusal)
        if said.session != self._session.id:
            return _refused("stale-session", f"the session is {self._session.id}, not {said.session}")
        if said.incarnation != self._pins.incarnation:
            return _refused("stale-incarnation", f"the log is {self._pins.incarnation}, not {said.incarnation}")
        return None

    async def _take(self, said: ToAgent, came: float) -> Receipt:
        try:
            if isinstance(said, Withdrawal):
                return await self._withdraw(said)
            return await self._accept(said, came)
        except sqlite3.OperationalError as error:
            # nothing is done that could not be remembered
            return _refused("journal-unwritable", str(error))

    async def _accept(self, order: Order, came: float) -> Receipt:
        try:
            command = unpack_host_command(order.command)
        except Unreadable as error:
            return _refused("unknown-command", str(error))
        if order.deadline <= 0:
            return _refused("expired", "its deadline passed before it came")
        lane = command.lane
        vm = command.vm if isinstance(command, DomainCommand) else None
        at = self._effects.wall()
        admission = await self._effects.blocking.run(lambda: self._journal.accept(order, lane, vm, at))
        match admission:
            case "stale-epoch":
                return _refused("stale-epoch", f"epoch {order.epoch} of {vm} is over")
            case "known":
                self._session.wake()
            case "new":
                self._queue(order.id, lane, vm, command, until=came + order.deadline)
        return Receipt(accepted=True)

    async def _withdraw(self, said: Withdrawal) -> Receipt:
        job = self._jobs.get(said.id)
        if job is None:
            at = self._effects.wall()
            await self._effects.blocking.run(
                lambda: self._journal.withdraw(said.id, said.lane, said.vm, said.session, at)
            )
            self._session.wake()
        elif self._lanes.remove(job.lane, job):
            answer = Failed(code="cancelled", message="withdrawn before it began")
            await self._effects.blocking.run(lambda: self._journal.answer(job.id, job.vm, answer))
            self.answered(job)
        else:
            job.scope.withdraw()
        return Receipt(accepted=True)

    def _queue(
        self,
        id: CommandId,
        lane: str,
        vm: VmId | None,
        command: HostCommand,
        *,
        until: float,
        interrupted: bool = False,
        told: bool = False,
    ) -> None:
        early = partial(self._answer_early, asyncio.get_running_loop(), id, vm)
        scope = OrderScope(self._effects.clock, until, self._teller.of(id, vm), early, answered=told)
        job = Job(id=id, lane=lane, vm=vm, command=command, scope=scope, interrupted=interrupted)
        self._jobs[id] = job
        self._lanes.put(lane, job)

    def _answer_early(self, loop: asyncio.AbstractEventLoop, id: CommandId, vm: VmId | None, done: Done) -> None:
        """In the job's thread: its answer is in the outbox, though the job goes on; once it is told, or soon."""
        try:
            self._journal.answer(id, vm, done, over=False)
        except sqlite3.Error as error:
            # it is answered when it has ended
            _log.error("journal refuses an answer", order=id, error=str(error))
            return
        told = threading.Event()
        # the agent may have stopped meanwhile; its next process tells it
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._session.wake, told.set)
            # what goes on is in nobody's way until then
            told.wait(TOLD_WITHIN)


def _refused(code: str, message: str) -> Receipt:
    return Receipt(accepted=False, code=code, message=message)
