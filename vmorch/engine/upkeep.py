"""Maintenances as callers ask for them: decide on the world, append, answer.

Everything that a maintenance causes carries its id as correlation, its drains' moves included. Must not wait for
anything: its policy drives it from the log.
"""

from collections.abc import Callable, Iterable

import msgspec

from vmorch.core.aggregates.maintenance import CancelMaintenance, Maintenance, MaintenanceEvent, StartMaintenance
from vmorch.core.codec import Unreadable, decode
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, split_stream, stream
from vmorch.core.operation import Change
from vmorch.core.planning.admission import Who
from vmorch.core.planning.upkeep import Foresight, admit_maintenance, admit_undoing, admit_work_done, foresee
from vmorch.engine.caller import Accepted, Caller
from vmorch.engine.effects import Ids
from vmorch.engine.recorder import Recorder, fingerprint


class Upkeep:
    """What callers may ask about maintenance. Every method raises Rejected or LogUnavailable."""

    def __init__(self, recorder: Recorder, ids: Ids) -> None:
        self.recorder = recorder
        self.ids = ids

    @property
    def fleet(self) -> Fleet:
        """The live state; read only."""
        return self.recorder.world.fleet

    def foresee(self, command: StartMaintenance, fleet: Fleet | None = None) -> tuple[Foresight, ...]:
        """The groups that `start` would make now, or in a fleet of the past; nothing is recorded."""
        return foresee(fleet or self.fleet, command)

    async def start(self, command: StartMaintenance, caller: Caller) -> Accepted:
        """Begin a maintenance of hosts."""
        id, now = self.ids(), self.recorder.clock.now
        print = fingerprint(caller.actor, "maintenance", " ".join(command.hosts), command)
        return await self._record(
            lambda: admit_maintenance(self.fleet, command, id, _who(caller), now()), caller, print, id
        )

    async def work_done(self, ref: str, caller: Caller) -> Accepted:
        """Take the operator's word that a host can return."""
        found = self.fleet.maintained(self.fleet.find_host(ref).id)
        print = fingerprint(caller.actor, "maintenance-done", ref, None)
        id = None if found is None else found.id
        return await self._record(lambda: admit_work_done(self.fleet, ref), caller, print, id)

    async def cancel(self, ref: str, command: CancelMaintenance, caller: Caller) -> Accepted:
        """Return every host that is out of service, and take no other out."""
        id = self.fleet.find_maintenance(ref).id
        print = fingerprint(caller.actor, "cancel-maintenance", ref, command)
        now = self.recorder.clock.now
        return await self._record(
            lambda: admit_undoing(self.fleet, self.fleet.maintenances[id], command, now()), caller, print, id
        )

    async def past(self, id: str, until: Position | None = None) -> Maintenance | None:
        """A maintenance that the state no longer remembers, from its stream up to a position."""
        found = Maintenance(id=id)
        try:
            for record in await self.recorder.world.log.read_stream(stream("maintenance", id), until=until):
                fact = decode(record)
                assert isinstance(fact.event, MaintenanceEvent)
                found = msgspec.structs.replace(fact.event.apply(found, fact.recorded_at), version=fact.version)
        except Unreadable as error:
            raise Rejected("internal-error", f"maintenance {id} holds an unreadable event: {error}") from error
        return found if found.started_at is not None else None

    async def _record(
        self, decide: Callable[[], Iterable[Change]], caller: Caller, print: str, correlation: str | None
    ) -> Accepted:
        meta = self.recorder.meta_of(caller, print=print, correlation=correlation)
        facts = await self.recorder.once(lambda: (decide(), None), lambda _: meta, caller, print)
        subject = next(id for kind, id in (split_stream(fact.stream) for fact in facts) if kind == "maintenance")
        return Accepted(subject=subject, name="maintenance", position=facts[-1].position)


def _who(caller: Caller) -> Who:
    return Who(actor=caller.actor, reason=caller.reason)
