"""The steps on layers that several operations share.

Each is planned on the state that the one before it leaves, because a host is told with each how it must find the disks.
"""

from collections.abc import Iterator

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.layering import ROOT, LayerDropped, LayersMerged, after, reductions, stacks_of, unsettled
from vmorch.core.aggregates.vm import Vm
from vmorch.core.hostcommands import DropLayers, LayerCommand, Memory, MergeLayers
from vmorch.core.ids import stream
from vmorch.core.layers import Drop, Merge
from vmorch.core.messages import Event
from vmorch.core.operation import Step, change, step

MEMORY_DEADLINE = 3600.0
MERGE_DEADLINE = 24 * 3600.0
"""A merge copies data, and the guest goes on meanwhile."""


def memory_file(vm: Vm, number: int) -> Memory:
    """Where the guest's memory is kept: beside the root disk, so that whoever sees that sees both."""
    assert vm.spec is not None
    storage = next(disk.storage for disk in vm.spec.disks if disk.name == ROOT)
    return Memory(number=number, storage=storage)


def left_memories(vm: Vm) -> tuple[Memory, ...]:
    """The memory that a change of the layers may have kept that got stuck."""
    return (memory_file(vm, vm.number + 1),) if unsettled(vm) else ()


def tidying(vm: Vm, host: Host) -> Iterator[Step]:
    """The steps after which no layer is held that no snapshot and no guest needs."""
    at = stream("vm", vm.id)
    for disk, each in list(reductions(vm)):
        assert vm.spec is not None
        stacks, following = stacks_of(vm), after(vm, disk.name, each)
        assert following.spec is not None
        order: LayerCommand
        fact: Event
        match each:
            case Drop(layer=layer):
                order = DropLayers(
                    vm=vm.id, stacks=stacks, next=vm.number + 1, layers={disk.name: (layer,)}
                )
                fact = LayerDropped(disk=disk.name, layer=layer)
            case Merge(top=top, into=into):
                order = MergeLayers(
                    vm=vm.id,
                    stacks=stacks,
                    next=vm.number + 1,
                    spec=following.spec,
                    disk=disk.name,
                    top=top,
                    into=into,
                )
                fact = LayersMerged(disk=disk.name, top=top, into=into)
        deadline = MERGE_DEADLINE if isinstance(each, Merge) else 120.0
        yield step(host.id, order, commits=True, deadline=deadline, then=(change(at, fact),))
        vm = following
