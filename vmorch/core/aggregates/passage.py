"""What happens to a VM on its way from host to host: where it is bound for, what was seen at both ends, whose it is.

Ownership changes here and nowhere else, by `vm.migrated`, and with it the epoch. Must not judge: that is
`core.migration`; these events carry the verdict with what it was made from.
"""

from datetime import datetime
from typing import Any

from msgspec.structs import replace

from vmorch.core.aggregates.vm import Frozen, Operation, OperationEvent, Vm, VmEvent, see
from vmorch.core.codec import Packed, pack
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import MigrateDomain, Observed, TuneMigration
from vmorch.core.ids import HostId
from vmorch.core.messages import message
from vmorch.core.migration import Verdict
from vmorch.core.operation import end_seen, settled


@message("vm.departing")
class VmDeparting(VmEvent, frozen=True, kw_only=True):
    """From now on something of the VM may be on that host too, until it is cleared.

    The epoch is a new one: as soon as either host has heard of it, it refuses whatever was ordered before.
    """

    destination: HostId
    epoch: int

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, traces=vm.traces | {self.destination}, epoch=self.epoch)


@message("vm.migrated")
class VmMigrated(VmEvent, frozen=True, kw_only=True):
    """The VM belongs to the destination from now on."""

    source: HostId
    destination: HostId

    def apply(self, vm: Vm, at: datetime) -> Vm:
        traces = (vm.traces - {self.destination}) | {self.source}
        return replace(vm, host=self.destination, traces=traces, drift=())


@message("vm.cleared")
class VmCleared(VmEvent, frozen=True, kw_only=True):
    """Nothing of the VM is left on that host, which is not its own."""

    host: HostId

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, traces=vm.traces - {self.host})


@message("vm.end-seen")
class EndSeen(OperationEvent, frozen=True, kw_only=True):
    """One end of a passage was looked at after it."""

    index: int
    round: int
    host: HostId
    observed: Observed

    def advance(self, operation: Operation, at: datetime) -> Operation:
        return replace(operation, progress=end_seen(operation.progress, self.host, self.round, self.observed))


@message("vm.looks-ended")
class LooksEnded(OperationEvent, frozen=True, kw_only=True):
    """Both ends were looked at for long enough; what was seen so far has to do."""

    index: int
    why: str

    def advance(self, operation: Operation, at: datetime) -> Operation:
        return replace(operation, progress=replace(operation.progress, last_look=True))


@message("vm.step-judged")
class StepJudged(OperationEvent, frozen=True, kw_only=True):
    """Where the VM is after a passage, by what was seen at both ends. With `unknown` the VM is frozen."""

    index: int
    verdict: Verdict
    why: str
    source_seen: Observed | None = None
    destination_seen: Observed | None = None

    def advance(self, operation: Operation, at: datetime) -> Operation:
        return replace(operation, progress=settled(operation.progress, self.index, self.verdict, self.why))

    def apply(self, vm: Vm, at: datetime) -> Vm:
        operation = vm.operations.get(self.operation)
        after = super().apply(vm, at)
        if operation is None or operation.steps[self.index].judged is None:
            return after
        ends = operation.steps[self.index].judged
        assert ends is not None
        match self.verdict:
            case "moved" if self.destination_seen is not None:
                return replace(see(after, self.destination_seen, at), frozen=None)
            case "stayed" if self.source_seen is not None:
                return replace(see(after, self.source_seen, at), frozen=None)
            case _:
                frozen = Frozen(
                    operation=self.operation,
                    source=ends[0],
                    destination=ends[1],
                    why=self.why,
                    source_seen=self.source_seen,
                    destination_seen=self.destination_seen,
                    since=at,
                )
                return replace(after, frozen=frozen)


@message("vm.resolved")
class VmResolved(VmEvent, frozen=True, kw_only=True):
    """Somebody took it on himself to say where a frozen VM is. `evidence` is what had been seen until then."""

    host: HostId
    other: HostId
    epoch: int
    evidence: dict[str, Any] = {}  # noqa: RUF012  msgspec copies mutable defaults

    def apply(self, vm: Vm, at: datetime) -> Vm:
        traces = (vm.traces - {self.host}) | {self.other}
        seen = Observed(power="unknown", reason="resolved by hand")
        if vm.frozen is not None:
            seen = (vm.frozen.source_seen if vm.frozen.source == self.host else vm.frozen.destination_seen) or seen
        return replace(see(vm, seen, at), host=self.host, epoch=self.epoch, traces=traces, frozen=None, drift=())


@message("vm.operation-tuned")
class OperationTuned(OperationEvent, frozen=True, kw_only=True):
    """The step under way shall have these limits."""

    index: int
    tuning: TuneMigration

    def advance(self, operation: Operation, at: datetime) -> Operation:
        progress = operation.progress
        packed: Packed = pack(self.tuning)
        return replace(operation, progress=replace(progress, tunings=(*progress.tunings, packed)))


def tune(vm: Vm, operation: Operation, tuning: TuneMigration) -> list[VmEvent]:
    """Give the passage under way other limits. Raises Rejected `already-over`, `bad-spec`."""
    progress = operation.progress
    moving = operation.outcome is None and progress.done < len(operation.steps) and progress.failed is None
    step = operation.steps[progress.done] if moving else None
    if step is None or step.command.kind != MigrateDomain.kind or progress.over:
        raise Rejected("already-over", f"operation {operation.id} does not carry a guest now")
    if tuning.bandwidth is None and tuning.max_downtime is None and not tuning.postcopy:
        raise Rejected("bad-spec", "nothing was asked to change")
    return [OperationTuned(operation=operation.id, index=progress.done, tuning=tuning)]


@message("vm.tuning-answered")
class TuningAnswered(OperationEvent, frozen=True, kw_only=True):
    """The host took new limits over, or said with this code why it did not."""

    index: int
    number: int
    code: str = ""
    message: str = ""

    def advance(self, operation: Operation, at: datetime) -> Operation:
        progress = operation.progress
        return replace(operation, progress=replace(progress, tuned=max(progress.tuned, self.number + 1)))
