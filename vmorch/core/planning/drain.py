"""Plan how hosts are emptied, or how VMs come back to one: destination, way, wave and reason of each VM, and what is
in the way of those that cannot move.

A pure function of the view: the same view gives the same plan, and after a plan was carried out another one has
nothing to add. Must not reserve anything: until a move begins, its place is only meant for it.
"""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from vmorch.core.aggregates.drain import (
    Blocked,
    Cause,
    Drain,
    DrainOptions,
    DrainPlan,
    Entry,
    HostAfter,
    How,
    Move,
    Purpose,
    Survival,
)
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm
from vmorch.core.ids import HostId, VmId
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.planning.estimate import estimate, together, within
from vmorch.core.planning.groups import Groups, Use
from vmorch.core.planning.survival import survival
from vmorch.core.planning.view import ClusterView
from vmorch.core.planning.waves import Assigned, Waves, Wish

ORDER: Mapping[How, int] = {"live": 0, "offline": 1, "restart": 2, "stop": 3, "start": 4}
"""What costs guests least goes first, so that a drain that is cancelled has cost little."""
BEING_DRAINED = "to be drained"


def plan_drain(
    view: ClusterView, hosts: Sequence[HostId], options: DrainOptions, before: DrainPlan | None = None
) -> DrainPlan:
    """How these hosts are emptied together. Moves of the plan `before` are kept where they still hold."""
    leaving = frozenset(hosts)
    closed = _closed(view, leaving)
    kept = {move.vm: move for move in before.moves} if before is not None else {}
    wishes: list[Wish] = []
    stuck: list[tuple[Wish, tuple[Cause, ...]]] = []
    for host in closed.hosts:
        if host.id not in leaving:
            continue
        for vm in view.vms_on.get(host.id, ()):
            if vm.spec is None or _vanishing(vm) or stays_off(vm):
                continue
            wish = _wish(vm, host, options, kept.get(vm.id), leaving)
            causes = _own_causes(vm, host, wish)
            if causes:
                stuck.append((wish, causes))
            else:
                wishes.append(wish)
    return _plan(closed, "drain", tuple(hosts), wishes, stuck, options, kept)


def plan_return(view: ClusterView, host: HostId, drain: Drain, options: DrainOptions) -> DrainPlan:
    """How VMs that a drain took away from a host come back to it: those that are still where the drain left them."""
    opened = replace(
        view, hosts=tuple(replace(each, cordoned=None) if each.id == host else each for each in view.hosts)
    )
    entries = {vm: entry for vm, entry in drain.entries.items() if entry.source == host and entry.operation}
    by_id = {each.id: each for each in opened.hosts}
    wishes: list[Wish] = []
    stuck: list[tuple[Wish, tuple[Cause, ...]]] = []
    for at, vms in opened.vms_on.items():
        for vm in vms:
            entry = entries.get(vm.id)
            if entry is None or entry.host != at or vm.spec is None or _vanishing(vm):
                continue
            wish = _homeward(vm, by_id[at], host, entry, options)
            if wish is None:
                continue
            causes = _own_causes(vm, by_id[at], wish)
            if causes:
                stuck.append((wish, causes))
            else:
                wishes.append(wish)
    return _plan(opened, "return", (host,), wishes, stuck, options, {})


def way_of(vm: Vm, *, returning: bool) -> How:
    """How a VM of this eviction leaves its host as it is now. One that is `returning` is never stopped."""
    assert vm.spec is not None
    if vm.spec.eviction == "stop" and not returning:
        return "stop"
    if not _on(vm):
        return "offline"
    # halted vCPUs hear no request to shut down
    return "restart" if vm.spec.eviction == "restart" and vm.power != "paused" else "live"


def command_of(vm: Vm, how: How, to: str | None, *, copy_disks: bool) -> MigrateVm:
    """The migration that a move is carried out by."""
    seconds = within(estimate(vm, how, copy_disks=copy_disks))
    return MigrateVm(to=to, cold=how == "restart", copy_disks=copy_disks, deadline=seconds)


def obstacles(view: ClusterView, drain: Drain, vm: Vm, how: How, *, copy_disks: bool) -> tuple[Cause, ...]:
    """Everything that keeps a VM from every host now, other moves that are only planned left aside."""
    source = next(host for host in view.hosts if host.id == vm.host)
    returning = drain.plan is not None and drain.plan.purpose == "return"
    only = drain.plan.hosts[0] if returning and drain.plan is not None else None
    command = command_of(vm, how, None, copy_disks=copy_disks)
    wish = Wish(vm=vm, source=source, how=how, command=command, only=only)
    return Waves(replace(view, drains=()), Groups(()), 1).causes(wish)


def shutdowns(view: ClusterView, plan: DrainPlan) -> tuple[Move, ...]:
    """What `--on-blocked stop` adds to a plan: the shutting down, after all its waves, of blocked VMs that run. Those
    that a budget keeps, and those that nobody can reach, stay blocked."""
    standing = {vm.id: vm for vms in view.vms_on.values() for vm in vms}
    groups = Groups(view.budgets)
    use = Use(groups, standing.values())
    for move in plan.moves:
        if move.how == "stop":
            for budget in groups.of(standing[move.vm]):
                use.down[budget.id].append(move.name)
    connected = {host.id for host in view.hosts if host.agent == "connected"}
    wave = max((move.wave for move in plan.moves), default=0) + 1
    found: list[Move] = []
    for each in plan.blocked:
        vm = standing.get(each.vm)
        if vm is None or vm.power not in ("running", "paused") or vm.frozen or each.source not in connected:
            continue
        budgets = groups.of(vm)
        if any(use.exhausted(budget) for budget in budgets):
            continue
        for budget in budgets:
            use.down[budget.id].append(vm.name)
        found.append(stopping(vm, each.source, wave, "blocked: " + "; ".join(cause.text() for cause in each.causes)))
    return tuple(found)


def stopping(vm: Vm, source: HostId, wave: int, why: str) -> Move:
    """The shutting down of a VM where it is."""
    assert vm.spec is not None
    return Move(
        vm=vm.id,
        name=vm.name,
        source=source,
        how="stop",
        wave=wave,
        on=_on(vm),
        memory=vm.spec.memory,
        estimate=estimate(vm, "stop", copy_disks=False),
        why=why,
    )


def digest_of(host: Host) -> str:
    """What a host says of itself, to be compared later."""
    said = msgspec.json.encode(host.facts, order="deterministic")
    return hashlib.sha256(said).hexdigest()[:12]


def _plan(
    view: ClusterView,
    purpose: Purpose,
    hosts: tuple[HostId, ...],
    wishes: list[Wish],
    stuck: list[tuple[Wish, tuple[Cause, ...]]],
    options: DrainOptions,
    kept: Mapping[VmId, Move],
) -> DrainPlan:
    at_once = min(view.policy.migrations, options.max_parallel or view.policy.migrations)
    waves = Waves(view, Groups(view.budgets), at_once)
    found = waves.run(sorted(wishes, key=lambda wish: _order(wish, kept)))
    moves = tuple(map(_move, found.assigned))
    blocked = sorted((*stuck, *found.blocked), key=lambda pair: (pair[0].source.name, pair[0].vm.name, pair[0].vm.id))
    waves.depart()
    concerned = {*hosts, *(move.destination for move in moves), *(move.source for move in moves)}
    numbers = sorted({move.wave for move in moves})
    return DrainPlan(
        purpose=purpose,
        hosts=hosts,
        position=view.position,
        moves=moves,
        blocked=tuple(
            Blocked(vm=wish.vm.id, name=wish.vm.name, source=wish.source.id, on=_on(wish.vm), causes=causes)
            for wish, causes in blocked
        ),
        after=_after(view, waves, found.assigned),
        survival=_survival(view, waves, purpose, hosts, found.assigned),
        seconds=round(sum(together(move for move in moves if move.wave == number) for number in numbers), 1),
        facts={host.id: digest_of(host) for host in view.hosts if host.id in concerned},
        kept=sum(each.vm in kept and kept[each.vm].destination == each.destination for each in moves),
    )


def _order(wish: Wish, kept: Mapping[VmId, Move]) -> tuple[object, ...]:
    assert wish.vm.spec is not None
    before = kept.get(wish.vm.id)
    # what is busy may take long to be free, and nothing should wait behind it
    busy = wish.vm.active is not None
    return (
        busy,
        before is None,
        0 if before is None else before.wave,
        ORDER[wish.how],
        -wish.vm.spec.memory,
        wish.vm.name,
        wish.vm.id,
    )


def _move(each: Assigned) -> Move:
    wish, vm = each.wish, each.wish.vm
    assert vm.spec is not None
    notes = [each.why] if each.why else []
    if wish.how == "restart":
        notes.append("its eviction is restart")
    elif wish.how == "stop":
        notes.append("its eviction is stop")
    local = sum(disk.size for disk in vm.spec.disks if disk.storage == "local")
    if wish.command.copy_disks and wish.moves:
        notes.append(f"carries {local} GiB of local disks")
    if vm.active is not None:
        notes.append(f"after its {vm.operations[vm.active].verb}")
    return Move(
        vm=vm.id,
        name=vm.name,
        source=wish.source.id,
        destination=each.destination,
        how=wish.how,
        wave=each.wave,
        on=_on(vm),
        copy_disks=wish.command.copy_disks and wish.moves,
        memory=vm.spec.memory,
        estimate=estimate(vm, wish.how, copy_disks=wish.command.copy_disks and wish.moves),
        why="; ".join(notes),
    )


def _wish(
    vm: Vm, host: Host, options: DrainOptions, kept: Move | None, leaving: frozenset[HostId]
) -> Wish:
    assert vm.spec is not None
    how = way_of(vm, returning=False)
    prefer = None if kept is None else kept.destination
    if prefer is None:
        prefer = next((end for end in _bound_for(vm) if end not in leaving), None)
    command = command_of(vm, how, None, copy_disks=options.copy_disks and _local(vm))
    return Wish(vm=vm, source=host, how=how, command=command, prefer=prefer)


def _homeward(vm: Vm, source: Host, host: HostId, entry: Entry, options: DrainOptions) -> Wish | None:
    if source.id == host:
        if entry.result != "stopped" or _on(vm):
            return None
        return Wish(vm=vm, source=source, how="start", command=MigrateVm())
    how = way_of(vm, returning=True)
    command = command_of(vm, how, None, copy_disks=options.copy_disks and _local(vm))
    return Wish(vm=vm, source=source, how=how, command=command, only=host)


def _own_causes(vm: Vm, host: Host, wish: Wish) -> tuple[Cause, ...]:
    """What keeps the VM where it is, wherever it would go."""
    assert vm.spec is not None
    found: list[str] = []
    if vm.spec.eviction == "never":
        found.append("its eviction is never")
    if vm.frozen is not None:
        found.append(f"nobody can tell where it is: {vm.frozen.why}")
    elif vm.power in ("absent", "unknown") and vm.active is None:
        reason = f" ({vm.power_reason})" if vm.power_reason else ""
        found.append(f"its host shows it as {vm.power}{reason}")
    if host.agent != "connected":
        found.append(f"{host.name} is unreachable")
    return tuple(Cause(why=why) for why in found)


def _after(view: ClusterView, waves: Waves, assigned: Sequence[Assigned]) -> tuple[HostAfter, ...]:
    room, arrivals = waves.room, dict[HostId, int]()
    for each in assigned:
        if each.destination is not None:
            arrivals[each.destination] = arrivals.get(each.destination, 0) + 1
    found = []
    for id in sorted(arrivals, key=lambda id: (room.hosts[room.index[id]].name, id)):
        at = room.index[id]
        host = room.hosts[at]
        total, promised = host.total().memory, host.promised().memory
        found.append(
            HostAfter(
                host=id,
                name=host.name,
                vms=len(view.vms_on.get(id, ())) + arrivals[id],
                memory=round(room.used("memory", at), 3),
                vcpus=round(room.used("vcpus", at), 3),
                disk=round(room.used("local_gib", at), 3),
                memory_before=round(promised / total, 3) if total else 0.0,
            )
        )
    return tuple(found)


def _survival(
    view: ClusterView, waves: Waves, purpose: Purpose, hosts: tuple[HostId, ...], assigned: Sequence[Assigned]
) -> Survival:
    room = waves.room
    gone = {each.wish.vm.id for each in assigned if each.destination is not None}
    standing: dict[int, list[Vm]] = {
        room.index[id]: [vm for vm in vms if vm.id not in gone and vm.spec is not None]
        for id, vms in view.vms_on.items()
        if id in room.index
    }
    for each in assigned:
        if each.destination is not None:
            standing.setdefault(room.index[each.destination], []).append(each.wish.vm)
    drained = {room.index[id] for id in hosts if id in room.index} if purpose == "drain" else set()
    spare = drained | {at for at, host in enumerate(room.hosts) if host.agent != "connected"}
    return survival(room, waves.apartness, standing, frozenset(spare))


def _closed(view: ClusterView, leaving: frozenset[HostId]) -> ClusterView:
    """The view with the hosts that are to be emptied closed to new VMs."""
    hosts = (
        replace(host, cordoned=BEING_DRAINED) if host.id in leaving and host.cordoned is None else host
        for host in view.hosts
    )
    return replace(view, hosts=tuple(hosts))


def _on(vm: Vm) -> bool:
    """Whether the VM runs, or will when what is under way is over."""
    if vm.active is not None and vm.operations[vm.active].verb in ("create", "start", "reboot"):
        return True
    return vm.power in ("running", "paused")


def stays_off(vm: Vm) -> bool:
    """Whether there is nothing to be done with the VM: it is off, and would only be stopped."""
    off = vm.power in ("off", "crashed") and vm.active is None and vm.frozen is None
    return off and vm.spec is not None and vm.spec.eviction == "stop"


def _vanishing(vm: Vm) -> bool:
    return vm.active is not None and vm.operations[vm.active].verb == "delete"


def _local(vm: Vm) -> bool:
    assert vm.spec is not None
    return any(disk.storage == "local" for disk in vm.spec.disks)


def _bound_for(vm: Vm) -> tuple[HostId, ...]:
    """Where an operation under way takes the VM."""
    if vm.active is None:
        return ()
    ends = next((each.judged for each in vm.operations[vm.active].steps if each.judged), None)
    return () if ends is None else ends[1:]
