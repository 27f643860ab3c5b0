"""What commands about layers and kept memories do to the model of a libvirt host, and what they refuse.

A target that is reached is left alone; then everything is compared with what the command says of it, and only if all
of it is so, something is done.
"""

from collections.abc import Collection, Iterator

from msgspec.structs import replace

from vmorch.core.hostcommands import (
    Done,
    DropLayers,
    Failed,
    LayerCommand,
    MakeLayers,
    Memory,
    MergeLayers,
    RestoreGuest,
    SaveGuest,
    TakeSnapshot,
)
from vmorch.core.hypervisor_state import (
    Domain,
    Effect,
    File,
    KeptMemory,
    LibvirtHost,
    begun,
    defined,
    disk_key,
    empty_file,
    layers,
    memory_key,
    no_domain,
    observe,
    overfull,
    put,
    refused,
    standing_on,
    stopped,
    unstartable,
    with_files,
)
from vmorch.core.ids import BackupId, VmId
from vmorch.core.layers import Stack
from vmorch.core.migration import HALTED
from vmorch.core.spec import DiskSpec


def take_snapshot(host: LibvirtHost, command: TakeSnapshot) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    if domain is None:
        return no_domain(host, vm)
    stacks = stacks_named(command, [disk.name for disk in command.spec.disks])
    if isinstance(stacks, Failed):
        return host, stacks
    on = {name: each.disk.layer for name, each in stacks.items()}
    if _is_taken(host, command, domain, on):
        return put(host, vm, domain, already=True)
    drifted = drift_of(host, command)
    if drifted is not None:
        return host, drifted
    if command.memory is not None and not domain.active:
        return refused(host, vm, f"the domain is {domain.power} and has no memory to keep")
    if command.freeze is not None and domain.active and (domain.power == "paused" or vm in host.mute):
        return refused(host, vm, "the guest's agent does not answer", "freeze-failed")
    memories = dict(host.memories.get(vm, {}))
    if command.memory is not None:
        memories[memory_key(command.memory)] = _kept(domain, command.memory)
    new = {
        disk_key(disk): replace(empty_file(disk, on[disk.name]), noted=_carried(host, domain, command, disk, on))
        for disk in command.spec.disks
    }
    after = with_files(host, vm, {**host.disks.get(vm, {}), **new}, memories)
    if overfull(after):
        return refused(host, vm, f"no room on {overfull(after)} storage", "disk-full")
    above = replace(defined(domain, command.spec), disks=command.spec.disks if domain.active else ())
    after, answer = put(after, vm, above)
    froze = command.freeze is not None and domain.active
    return after, replace(answer, frozen=0.0) if froze and isinstance(answer, Done) else answer


def make_layers(host: LibvirtHost, command: MakeLayers) -> Effect:
    vm, held = command.vm, host.disks.get(command.vm, {})
    stacks = stacks_named(command, command.on)
    if isinstance(stacks, Failed):
        return host, stacks
    new = {
        disk_key(disk): empty_file(disk, command.on[name])
        for name, each in stacks.items()
        for disk in [replace(each.disk, layer=command.next)]
    }
    if all(held.get(key) == file for key, file in new.items()):
        return host, Done(already=True)
    drifted = drift_of(host, command)
    if drifted is not None:
        return host, drifted
    nowhere = [f"{name} has no layer {on}" for name, on in command.on.items() if on not in stacks[name].tree]
    if nowhere:
        return refused(host, vm, "; ".join(nowhere), "chain-drift")
    after = with_files(host, vm, {**held, **new})
    if overfull(after):
        return refused(host, vm, f"no room on {overfull(after)} storage", "disk-full")
    return after, Done()


def drop_layers(host: LibvirtHost, command: DropLayers) -> Effect:
    vm, held, kept = command.vm, host.disks.get(command.vm, {}), host.memories.get(command.vm, {})
    stacks = stacks_named(command, command.layers)
    if isinstance(stacks, Failed):
        return host, stacks
    going = {
        disk_key(disk): disk
        for name, numbers in command.layers.items()
        for number in numbers
        for disk in [replace(stacks[name].disk, layer=number)]
    }
    memories = set(map(memory_key, command.memory))
    reached = going.keys().isdisjoint(held) and memories.isdisjoint(kept)
    if command.layers and reached:
        return host, Done(already=True)
    # with nothing to drop it is the look at the layers that is wanted
    drifted = drift_of(host, command, going)
    if drifted is not None:
        return host, drifted
    if reached:
        return host, Done(already=True)
    busy = sorted(key for key, disk in going.items() if key in held and _is_needed(host, vm, disk))
    if busy:
        return refused(host, vm, f"{', '.join(busy)} is in use", "busy")
    left = {key: file for key, file in held.items() if key not in going}
    return with_files(host, vm, left, {key: each for key, each in kept.items() if key not in memories}), Done()


def merge_layers(host: LibvirtHost, command: MergeLayers) -> Effect:
    vm, domain, top, into = command.vm, host.domains.get(command.vm), command.top, command.into
    if domain is None:
        return no_domain(host, vm)
    stacks = stacks_named(command, [command.disk])
    if isinstance(stacks, Failed):
        return host, stacks
    stack = stacks[command.disk]
    upper, lower = replace(stack.disk, layer=top), replace(stack.disk, layer=into)
    if _is_merged(host, command, domain, stack):
        return put(host, vm, domain, already=True)
    drifted = drift_of(host, command)
    if drifted is not None:
        return host, drifted
    if stack.tree.get(top) != into:
        return refused(host, vm, f"layer {top} of {command.disk} does not stand on {into}", "bad-request")
    found = layers(host, vm, stack.disk)
    merged = {disk_key(lower): _merged(found[top], found[into], live=domain.active)}
    moved = {disk_key(file): replace(file, on=into) for file in found.values() if file.on == top}
    held = {key: file for key, file in host.disks[vm].items() if key != disk_key(upper)}
    after = with_files(host, vm, {**held, **merged, **moved})
    used = tuple(
        replace(disk, layer=into) if disk_key(disk) == disk_key(upper) else disk for disk in domain.disks
    )
    return put(after, vm, replace(defined(domain, command.spec), disks=used))


def save_guest(host: LibvirtHost, command: SaveGuest) -> Effect:
    vm, domain, kept = command.vm, host.domains.get(command.vm), host.memories.get(command.vm, {})
    if domain is None or not domain.active:
        if memory_key(command.memory) in kept:
            return put(host, vm, domain, already=True)
        return no_domain(host, vm) if domain is None else refused(host, vm, f"the domain is {domain.power}")
    if domain.power == "paused" and domain.reason in HALTED:
        return refused(host, vm, f"the domain is paused for {domain.reason}; it may run on another host")
    memory = _kept(domain, command.memory)
    after = with_files(host, vm, memories={**kept, memory_key(memory): memory})
    if overfull(after):
        return refused(host, vm, f"no room on {overfull(after)} storage", "disk-full")
    return put(after, vm, stopped(domain, "saved") if domain.persistent else None)


def restore_guest(host: LibvirtHost, command: RestoreGuest) -> Effect:
    vm, domain, kept = command.vm, host.domains.get(command.vm), host.memories.get(command.vm, {})
    if domain is None:
        return no_domain(host, vm)
    key = memory_key(command.memory)
    spent = {each: other for each, other in kept.items() if each != key} if command.spend else kept
    if domain.power == "paused" and domain.reason in HALTED:
        return refused(host, vm, f"the domain is paused for {domain.reason}; it may run on another host")
    if domain.active:
        if not _places(command.spec.disks) == _places(domain.disks) == _places(domain.found.disks):
            return refused(host, vm, "the guest runs over other layers", "chain-drift")
        defined_so = defined(domain, command.spec)
        if domain.power == "paused" and not command.halted:
            defined_so = replace(defined_so, power="running", reason="")
        already = spent == kept and defined_so == domain
        return put(with_files(host, vm, memories=spent), vm, defined_so, already=already)
    memory = kept.get(key)
    if memory is None:
        return refused(host, vm, f"the memory {key} is not there", "memory-damaged")
    hindered = unstartable(host, vm, command.spec.disks)
    if hindered is not None:
        return host, hindered
    files = host.disks.get(vm, {})
    touched = [key for disk in command.spec.disks if files[key := disk_key(disk)].written]
    if touched and not command.spend:
        return refused(host, vm, f"{', '.join(touched)} was written to: the memory does not fit it", "chain-drift")
    on = begun(defined(domain, command.spec), command.spec.disks, halted=command.halted)
    on = replace(on, vcpus=memory.vcpus, memory=memory.memory, ram=memory.ram)
    return put(with_files(host, vm, memories=spent), vm, on)


def _carried(
    host: LibvirtHost, domain: Domain, command: TakeSnapshot, disk: DiskSpec, on: dict[str, int]
) -> dict[BackupId, frozenset[int]]:
    """A running QEMU notes in the new layer what it noted in the one before; nobody else does."""
    below = layers(host, command.vm, disk)[on[disk.name]]
    return dict.fromkeys(below.noted, frozenset()) if domain.active else {}


def _merged(top: File, into: File, *, live: bool) -> File:
    """What is written to the lower layer is noted there; what was noted in the upper one only QEMU carries down."""
    noted = {name: clusters | frozenset(top.written) for name, clusters in into.noted.items()}
    return replace(into, written={**into.written, **top.written}, noted={**top.noted, **noted} if live else noted)


def _is_taken(host: LibvirtHost, command: TakeSnapshot, domain: Domain, on: dict[str, int]) -> bool:
    held, disks = host.disks.get(command.vm, {}), command.spec.disks
    above = all((file := held.get(disk_key(disk))) is not None and file.on == on[disk.name] for disk in disks)
    used = not domain.active or _places(domain.disks) == _places(disks)
    return above and used and domain == defined(domain, command.spec)


def _is_merged(host: LibvirtHost, command: MergeLayers, domain: Domain, stack: Stack) -> bool:
    found = layers(host, command.vm, stack.disk)
    stood = [number for number, on in stack.tree.items() if on == command.top]
    return (
        command.top not in found
        and command.into in found
        and all(number in found and found[number].on == command.into for number in stood)
        and disk_key(replace(stack.disk, layer=command.top)) not in _places(domain.disks)
        and domain == defined(domain, command.spec)
    )


def _is_needed(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> bool:
    domain = host.domains.get(vm)
    used = domain is not None and disk_key(disk) in _places((*domain.found.disks, *domain.disks))
    return used or bool(standing_on(host, vm, disk))


def stacks_named(command: LayerCommand, disks: Collection[str]) -> dict[str, Stack] | Failed:
    """The stacks of these disks: without them nobody knows where their layers are. All must be whole."""
    stacks = {each.disk.name: each for each in command.stacks}
    torn = [name for name, each in stacks.items() if not {each.disk.layer, *each.tree.values()} <= {None, *each.tree}]
    if torn:
        return Failed(code="bad-request", message=f"the layers of {', '.join(torn)} stand on none that is told")
    unknown = [name for name in disks if name not in stacks]
    if unknown:
        return Failed(code="bad-request", message=f"nothing is said of the layers of {', '.join(unknown)}")
    return {name: stacks[name] for name in disks}


def drift_of(host: LibvirtHost, command: LayerCommand, going: Collection[str] = ()) -> Failed | None:
    """What of the layers is not as the command says."""
    found = tuple(_differences(host, command, going))
    if not found:
        return None
    seen = observe(host, command.vm)
    return Failed(code="chain-drift", message="; ".join(found), observed=seen, blockers=found)


def _differences(host: LibvirtHost, command: LayerCommand, going: Collection[str]) -> Iterator[str]:
    for stack in command.stacks:
        yield from _in_files(host, command, stack, going)
        yield from _in_use(host.domains.get(command.vm), command, stack)


def _in_files(host: LibvirtHost, command: LayerCommand, stack: Stack, going: Collection[str]) -> Iterator[str]:
    name, tree, found = stack.disk.name, stack.tree, layers(host, command.vm, stack.disk)
    for number, on in tree.items():
        if number not in found:
            if disk_key(replace(stack.disk, layer=number)) not in going:
                yield f"layer {number} of {name} is gone"
        elif found[number].on != on:
            yield f"layer {number} of {name} stands on {_layer(found[number].on)} and not on {_layer(on)}"
    for number, file in sorted(found.items()):
        if number in tree or disk_key(file) in going:
            continue
        # what an attempt left that came to nothing holds nothing, and nothing stands on it
        if number != command.next or file.written or standing_on(host, command.vm, file):
            yield f"layer {number} of {name} was recorded by nobody"


def _in_use(domain: Domain | None, command: LayerCommand, stack: Stack) -> Iterator[str]:
    if domain is None:
        return
    name, wanted = stack.disk.name, disk_key(stack.disk)
    left = disk_key(replace(stack.disk, layer=command.next))
    configured = _places(domain.found.disks)
    # a domain that is off may still be on the empty layer of an attempt that came to nothing
    if wanted not in configured and (domain.active or left not in configured):
        yield f"the domain's configuration has {name} not on layer {stack.disk.layer}"
    if domain.active and wanted not in _places(domain.disks):
        yield f"the guest does not write to layer {stack.disk.layer} of {name}"


def _layer(on: int | None) -> str:
    return "none" if on is None else f"layer {on}"


def _places(disks: Collection[DiskSpec]) -> set[str]:
    return set(map(disk_key, disks))


def _kept(domain: Domain, memory: Memory) -> KeptMemory:
    return KeptMemory(
        number=memory.number,
        storage=memory.storage,
        vcpus=domain.vcpus,
        memory=domain.memory,
        ram=domain.ram,
    )
