"""Snapshots, their tree, schedules and ways back as text. Must not fetch anything."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from msgspec import Struct

from cli.shapes import Operation, Prospect, Schedule, Snapshot, SnapshotDetail, Vm
from cli.units import TimeStyle, show_mib, show_seconds, show_time

HERE = "you are here"
ORIGIN = "(as created)"
"""Stands for what the VM was before its first snapshot, where several branches begin at that."""

MEMORY = 200.0
"""MiB a second of a guest's memory that is written to an ordinary disk or read from it."""
STOP, BOOT = 2.0, 15.0
"""Seconds for everything that does not grow with the memory; and for a guest that boots."""


class Row(Struct, frozen=True):
    """A line of the tree: its branches as drawn, what it says, and the snapshot that it is, if it is one."""

    branch: str
    label: str
    snapshot: Snapshot | None = None

    @property
    def name(self) -> str:
        """The line's first cell."""
        return self.branch + self.label


def tree(snapshots: Sequence[Snapshot]) -> list[Row]:
    """Parents before children, and where the guest is now. What leads there goes straight down, so that a long line of
    snapshots does not wander to the right; other branches stand aside, below what they came from."""
    found = _Tree(snapshots)
    first, *others = found.children[""]
    if others:
        return [Row("", ORIGIN), *found.below("", "")]
    return [found.row(first, ""), *found.below(first, "")]


class _Tree:
    """Snapshots by what they came from; "" is before the first, and HERE comes from the one that is current."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self.known = {each.name: each for each in sorted(snapshots, key=lambda each: each.number)}
        self.children: dict[str, list[str]] = {}
        now = ""
        for each in self.known.values():
            self.children.setdefault(self._parent(each), []).append(each.name)
            now = each.name if each.current else now
        self.children.setdefault(now, []).append(HERE)
        self.leading = {HERE}
        while now:
            self.leading.add(now)
            now = self._parent(self.known[now])
        # whatever came from another has a higher number
        self.sizes: dict[str, int] = {HERE: 1}
        for name in reversed(self.known):
            self.sizes[name] = 1 + sum(self.sizes[child] for child in self.children.get(name, ()))

    def row(self, name: str, branch: str) -> Row:
        """The line of a snapshot, or of where the guest is."""
        return Row(branch, name, self.known.get(name))

    def below(self, name: str, indent: str) -> Iterator[Row]:
        """What came from a snapshot: the branches aside first, then the line that goes on."""
        while after := self.children.get(name):
            straight = max(after, key=lambda each: (each in self.leading, self.sizes[each]))
            for aside in after:
                if aside != straight:
                    yield self.row(aside, f"{indent}|- ")
                    yield from self.below(aside, f"{indent}|  ")
            yield self.row(straight, indent)
            name = straight

    def _parent(self, snapshot: Snapshot) -> str:
        return snapshot.parent if snapshot.parent in self.known else ""


def when(moment: datetime | None, at: datetime, style: TimeStyle) -> str:
    """`41m ago`, or the time."""
    return show_time(moment, at, style) + (" ago" if style == "rel" and moment is not None else "")


def show_schedule(schedule: Schedule | None) -> str:
    """`every 1h, keep the newest 4, 12 hourly, 7 daily`."""
    if schedule is None:
        return "no schedule"
    kept = [
        *([f"the newest {schedule.last}"] if schedule.last else []),
        *([f"{schedule.hourly} hourly"] if schedule.hourly else []),
        *([f"{schedule.daily} daily"] if schedule.daily else []),
        *([f"{schedule.weekly} weekly"] if schedule.weekly else []),
    ]
    rest = ", file systems at rest" if schedule.quiesce else ""
    return f"every {show_seconds(schedule.every)}, keep {', '.join(kept)}{rest}"


def summary(vm: Vm, at: datetime, style: TimeStyle) -> str:
    """All of a VM's snapshots in one line."""
    if not vm.snapshots:
        return "-" if vm.schedule is None else f"none yet; {show_schedule(vm.schedule)}"
    newest = max(vm.snapshots, key=lambda each: each.number)
    parts = [f"{len(vm.snapshots)}, newest {newest.name} {when(newest.taken_at, at, style)}", show_depth(vm)]
    return "; ".join(parts + ([show_schedule(vm.schedule)] if vm.schedule is not None else []))


def show_depth(vm: Vm) -> str:
    """`2 of 32 layers`."""
    return f"{vm.layers_deep} of {vm.layers_most} layers"


def about(found: SnapshotDetail, at: datetime, style: TimeStyle) -> str:
    """`web-1/pre-upgrade (frozen, taken 41m ago)`."""
    return f"{found.vm_name}/{found.name} ({found.quality}, taken {when(found.taken_at, at, style)})"


def downtime(prospect: Prospect) -> str:
    """About how long the guest stands still, and why."""
    whys = [f"up to {show_mib(prospect.memory)} of memory to write and read"] if prospect.memory else []
    whys += ["the guest boots"] if prospect.boots else []
    seconds = STOP + prospect.memory / MEMORY + (BOOT if prospect.boots else 0.0)
    if not prospect.stops:
        return "none, it is off" + (f"; it goes on from its kept memory in about {_round(seconds)}" if whys else "")
    return f"about {_round(seconds)}" + (f": {', '.join(whys)}" if whys else "")


def _round(seconds: float) -> str:
    return show_seconds(float(round(seconds))) if seconds >= 10 else f"{round(seconds)}s"


def prospect_rows(prospect: Prospect) -> list[tuple[str, str]]:
    """What a rollback would do."""
    return [
        *_named("lost", prospect.lost or ["nothing"]),
        *_named("kept", prospect.kept),
        ("downtime", downtime(prospect)),
    ]


def _named(name: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(name if index == 0 else "", text) for index, text in enumerate(texts)]


def taken(vm: Vm, operation: Operation) -> tuple[str, str]:
    """The name of the snapshot that an operation took, and a sentence about it."""
    asked = operation.arguments.get("name")
    found = next((each for each in vm.snapshots if (each.name == asked if asked else each.current)), None)
    if found is None:
        return vm.name, f"{vm.name}: a snapshot was taken"
    how = f"frozen {show_seconds(found.frozen)}" if found.frozen is not None else found.quality
    stood = f"; its guest stood still for {show_seconds(operation.pause)}" if operation.pause else ""
    disks = ", ".join(sorted(found.layers))
    depth = f"Chain depth {vm.layers_deep} of {vm.layers_most}."
    return found.name, f"Snapshot {vm.name}/{found.name} ({disks}; {how}{stood}). {depth}"


def deleted(vm: Vm, operation: Operation) -> tuple[str, str]:
    """The name of the snapshot that an operation deleted, and a sentence about it."""
    name = str(operation.arguments.get("snapshot", ""))
    rest = ", and what came from it," if operation.arguments.get("with_children") else ""
    return name, f"Snapshot {vm.name}/{name}{rest} is deleted. Chain depth {vm.layers_deep} of {vm.layers_most}."


def way_forward(vm: Vm, operation: Operation) -> str:
    """What to say of a VM that was brought back: to where, and how it comes back from there."""
    said = f", as it was at {operation.arguments.get('to', '')}"
    kept = [each for each in vm.snapshots if each.origin == "safety"]
    if not kept or not operation.arguments.get("safety_snapshot", True):
        return said
    return f"{said}. Back: vmorch vm rollback {vm.name} --to {max(kept, key=lambda each: each.number).name}"
