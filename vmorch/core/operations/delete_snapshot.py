"""Delete snapshots of a VM: what only they held goes, what later ones stand on is merged into its place.

Each merge or drop is a step of its own, and the log has the tree as it is on disk after each of them: one that is
interrupted leaves a shorter tree, never a torn one.
"""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.layer_steps import tidying
from vmorch.core.aggregates.layering import SnapshotsDeleted, descendants, find_snapshot, foreseen, stacks_of
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.hostcommands import DropLayers
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, Step, change, step
from vmorch.core.spec import Name


@message("vm.delete-snapshot")
class DeleteSnapshot(VmCommand, frozen=True, kw_only=True):
    """The VM can no longer be brought back to that snapshot. What came after it stays as it is, unless it goes
    `with_children`: then the snapshots that came from it go too. The VM itself is as it was in any case."""

    verb = "delete-snapshot"
    summary = "Delete a snapshot of a VM"
    needs = frozenset({"off", "crashed", "running", "paused"})

    snapshot: Annotated[Name, Meta(description="the snapshot")]
    with_children: Annotated[bool, Meta(description="also every snapshot that came from it")] = False

    def plan(self, vm: Vm, host: Host) -> Plan:
        find_snapshot(vm, self.snapshot)
        children = descendants(vm, self.snapshot) if self.with_children else []
        return Plan(steps=tuple(forgetting(vm, host, (self.snapshot, *children))))


class ForgetSnapshots(VmCommand, frozen=True, kw_only=True):
    """None of these snapshots can be come back to, and nothing is held for nobody, whatever an earlier operation left.
    Only the control plane itself asks for it, so it is no message."""

    verb = DeleteSnapshot.verb
    needs = DeleteSnapshot.needs

    snapshots: tuple[Name, ...] = ()

    def plan(self, vm: Vm, host: Host) -> Plan:
        for name in self.snapshots:
            find_snapshot(vm, name)
        return Plan(steps=tuple(forgetting(vm, host, self.snapshots)))


def forgetting(vm: Vm, host: Host, names: tuple[str, ...]) -> Iterator[Step]:
    """The steps after which these snapshots are no more, and nothing is held for nobody."""
    at = stream("vm", vm.id)
    memory = tuple(each.memory for name in names if (each := vm.snapshots[name]).memory is not None)
    # the way back is closed before anything is touched that it needs
    closed = DropLayers(
        vm=vm.id, stacks=stacks_of(vm), next=vm.number + 1, memory=tuple(filter(None, memory))
    )
    fact = SnapshotsDeleted(names=names)
    yield step(host.id, closed, commits=True, then=(change(at, fact),))
    yield from tidying(foreseen(vm, fact), host)
