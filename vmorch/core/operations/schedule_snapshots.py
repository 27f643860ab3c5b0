"""Say by which schedule a VM's snapshots are taken and kept. No host is involved now: the policy loop keeps to it."""

from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.layering import MOST_LAYERS, ScheduleSet
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.errors import Rejected
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change
from vmorch.core.snapshot import Kept, Schedule

SPARE_LAYERS = 8
"""Layers that a schedule leaves to the snapshots that people take."""


@message("vm.set-snapshot-policy")
class SetSnapshotPolicy(VmCommand, frozen=True, kw_only=True):
    """Snapshots of the VM are taken `every` so often, and of those the newest `last` are kept, and the newest one of
    each of the latest `hourly` hours, `daily` days and `weekly` weeks; the others are deleted. Snapshots that somebody
    took, and those of rollbacks, are left alone. With `off` it has no schedule any more."""

    verb = "set-snapshot-policy"
    summary = "Say by which schedule snapshots are taken and kept"

    every: Annotated[float, Meta(ge=60, le=31 * 24 * 3600, description="seconds between two of them")] | None = None
    last: Annotated[Kept, Meta(description="how many of the newest to keep")] = 0
    hourly: Annotated[Kept, Meta(description="for how many hours to keep one")] = 0
    daily: Annotated[Kept, Meta(description="for how many days to keep one")] = 0
    weekly: Annotated[Kept, Meta(description="for how many weeks to keep one")] = 0
    quiesce: Annotated[bool, Meta(description="have the guest's agent hold its file systems at rest")] = False
    off: Annotated[bool, Meta(description="no schedule any more; the snapshots stay")] = False

    def plan(self, vm: Vm, host: Host) -> Plan:
        wanted = self._wanted()
        if wanted == vm.schedule:
            raise Rejected("already-so", f"the snapshots of {vm.name} are taken so already")
        return Plan(opening=(change(stream("vm", vm.id), ScheduleSet(schedule=wanted)),))

    def _wanted(self) -> Schedule | None:
        kept = self.last + self.hourly + self.daily + self.weekly
        if self.off:
            if self.every is not None or kept:
                raise Rejected("bad-spec", "off and a schedule exclude each other")
            return None
        if self.every is None:
            raise Rejected("bad-spec", "say how often: --every 1h, or --off")
        if not kept:
            raise Rejected("bad-spec", "say how many to keep: --last, --hourly, --daily, --weekly")
        if kept > MOST_LAYERS - SPARE_LAYERS:
            raise Rejected(
                "bad-spec", f"it would keep {kept} snapshots; a schedule may keep {MOST_LAYERS - SPARE_LAYERS}"
            )
        return Schedule(
            every=self.every,
            last=self.last,
            hourly=self.hourly,
            daily=self.daily,
            weekly=self.weekly,
            quiesce=self.quiesce,
        )
