"""What a snapshot is, and what a schedule of them asks for: values only."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from vmorch.core.hostcommands import Memory, Power
from vmorch.core.layers import Quality
from vmorch.core.spec import DiskName, LayerNumber, Name, VmSpec
from vmorch.core.value import Value

Origin = Literal["operator", "safety", "schedule"]
"""Who wanted it: somebody, a rollback that keeps the way back open, or the VM's schedule."""

Freezing = Annotated[float, Meta(ge=1, le=300, description="seconds that the guest may take to come to rest")]
Description = Annotated[str, Meta(max_length=500)]


class Snapshot(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A moment of a VM that it can be brought back to: the layers that hold its disks, and its guest's memory if it
    was taken along. `number` counts the VM's snapshots and rollbacks and is never used again."""

    name: Name
    number: LayerNumber
    layers: Mapping[DiskName, LayerNumber]
    spec: VmSpec
    power: Power
    quality: Quality
    memory: Memory | None = None
    origin: Origin = "operator"
    description: str = ""
    taken_at: datetime | None = None
    frozen: float | None = None
    """Seconds that the guest's file systems were held at rest for it."""


Kept = Annotated[int, Meta(ge=0, le=100)]


class Schedule(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Take a snapshot `every` so many seconds, and keep of them the newest `last`, and the newest one of each of the
    latest `hourly` hours, `daily` days and `weekly` weeks (of UTC) in which there is one."""

    every: float
    last: Kept = 0
    hourly: Kept = 0
    daily: Kept = 0
    weekly: Kept = 0
    quiesce: bool = False

    @property
    def most(self) -> int:
        """How many it keeps at most."""
        return self.last + self.hourly + self.daily + self.weekly
