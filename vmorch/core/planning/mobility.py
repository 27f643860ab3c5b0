"""Where a VM that exists can go, and everything that keeps it from there: all blockers at once, host by host.

Must not reserve anything, and must not ask a host: what only libvirt can tell, the destination checks before a move.
"""

from collections.abc import Iterable, Mapping

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm
from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.planning.placement import FITNESS, Placement, Question, Verdict, objections, score
from vmorch.core.planning.view import ClusterView
from vmorch.core.spec import HostFacts
from vmorch.core.value import Value


class Traffic(Value, frozen=True, kw_only=True):
    """How many guests travel now, by the host that they leave and the one that they go to."""

    out: Mapping[HostId, int]
    into: Mapping[HostId, int]

    @property
    def total(self) -> int:
        return sum(self.out.values())


def traffic(view: ClusterView) -> Traffic:
    """The migrations under way."""
    return traffic_of(vm for vms in view.vms_on.values() for vm in vms)


def traffic_of(vms: Iterable[Vm]) -> Traffic:
    """The migrations among these VMs."""
    out: dict[HostId, int] = {}
    into: dict[HostId, int] = {}
    for vm in vms:
        operation = None if vm.active is None else vm.operations[vm.active]
        ends = None if operation is None else next((each.judged for each in operation.steps if each.judged), None)
        if ends is not None:
            out[ends[0]] = out.get(ends[0], 0) + 1
            into[ends[1]] = into.get(ends[1], 0) + 1
    return Traffic(out=out, into=into)


class Choice(Value, frozen=True, kw_only=True):
    """A destination with the verdict on every host that was looked at, and whether the guest travels encrypted."""

    placement: Placement
    encrypted: bool


def choose(view: ClusterView, vm: Vm, command: MigrateVm) -> Choice:
    """The destination of a migration. Raises Rejected: `bad-spec`, `no-such-host`, `too-many-migrations`,
    `cannot-migrate` with every blocker if one host was asked for, `no-host-fits` with those of every host if not."""
    if command.to is not None and command.auto:
        raise Rejected("bad-spec", "a destination and --auto exclude each other")
    source = next((host for host in view.hosts if host.id == vm.host), None)
    if source is None:
        raise Rejected("vm-gone", f"{vm.name} stands on no host")
    _check_limits(view, source)
    if command.to is not None:
        return _named(view, vm, command, source)
    found = [
        (host, blockers(view, vm, source, host, command)) for host in view.hosts if host.id != source.id
    ]
    ranked = sorted(
        ((_verdict(view, vm, host, against), host) for host, against in found),
        key=lambda pair: (bool(pair[0].against), -pair[0].score, pair[0].name),
    )
    if not ranked or ranked[0][0].against:
        raise Rejected(
            "no-host-fits",
            f"none of {len(found)} other hosts can take {vm.name}" if found else "the cluster has no other host",
            hint=f"vmorch vm describe {vm.name}",
            facts={host.name: list(against) for host, against in found},
        )
    best = ranked[0][1]
    _check_limits_in(view, best)
    placement = Placement(host=best, verdicts=tuple(verdict for verdict, _ in ranked))
    return Choice(placement=placement, encrypted=_encrypted(source, best))


def _verdict(view: ClusterView, vm: Vm, host: Host, against: tuple[str, ...]) -> Verdict:
    if against:
        return Verdict(host=host.id, name=host.name, against="; ".join(against))
    found, why = score(_question(view, vm, host))
    return Verdict(host=host.id, name=host.name, score=found, why=why)


def _named(view: ClusterView, vm: Vm, command: MigrateVm, source: Host) -> Choice:
    named = [host for host in view.hosts if command.to in (host.name, host.id)]
    if not named:
        raise Rejected("no-such-host", f"no host is called {command.to!r}", hint="vmorch host list")
    destination = named[0]
    against = blockers(view, vm, source, destination, command)
    if against:
        count = f"{len(against)} reasons" if len(against) > 1 else "1 reason"
        raise Rejected(
            "cannot-migrate",
            f"{vm.name} cannot move to {destination.name} ({count})",
            hint=f"vmorch vm migrate {vm.name} --dry-run shows where it can go",
            facts={destination.name: list(against)},
        )
    _check_limits_in(view, destination)
    placement = Placement(host=destination, verdicts=(_verdict(view, vm, destination, ()),))
    return Choice(placement=placement, encrypted=_encrypted(source, destination))


def blockers(view: ClusterView, vm: Vm, source: Host, destination: Host, command: MigrateVm) -> tuple[str, ...]:
    """Everything that keeps the VM from going there in this way; nothing if it can."""
    if destination.id == source.id:
        return ("it stands there already",)
    question = _question(view, vm, destination)
    return (*objections(question), *_between(view, vm, source, destination, command))


def unfitness(
    view: ClusterView, vm: Vm, source: Host, destination: Host, command: MigrateVm
) -> tuple[str, ...]:
    """The blockers that have nothing to do with what else stands there, so that they hold for a whole plan."""
    assert vm.spec is not None
    question = Question(
        spec=vm.spec, labels=vm.labels, host=destination, neighbours=(), shared_promised=0.0, moving=vm.id
    )
    return (*objections(question, FITNESS), *_between(view, vm, source, destination, command))


def _between(view: ClusterView, vm: Vm, source: Host, destination: Host, command: MigrateVm) -> list[str]:
    here, there = source.facts, destination.facts
    if here is None or there is None:
        return []
    found = [*_storage(vm, here, there, command), *_machine(vm, here, there, command)]
    if vm.spec is not None and vm.spec.sealed_for in view.erased:
        found.append("its user data was erased and cannot be written there")
    if not _encrypted(source, destination) and not view.policy.clear_migration and _travels(vm, command):
        bare = [host.name for host in (source, destination) if not host.encrypts]
        found.append(f"no certificate on {' and '.join(bare)}, and guests must travel encrypted")
    return found


def _travels(vm: Vm, command: MigrateVm) -> bool:
    """Whether a guest's memory or disks go over the network between the hosts."""
    return command.copy_disks or (vm.power in ("running", "paused") and not command.cold)


def _storage(vm: Vm, here: HostFacts, there: HostFacts, command: MigrateVm) -> list[str]:
    assert vm.spec is not None
    found = []
    local = [disk.name for disk in vm.spec.disks if disk.storage == "local"]
    shared = [disk.name for disk in vm.spec.disks if disk.storage == "shared"]
    if local and not command.copy_disks:
        found.append(f"disk {', '.join(local)} is on the source's local storage (--copy-disks carries it along)")
    lent = [disk.name for disk in vm.spec.disks if disk.storage == "local" and disk.home is not None]
    if lent and command.copy_disks:
        found.append(f"{', '.join(lent)} is a volume on the source's local storage: detach it")
    if local and command.copy_disks and (vm.snapshots or any(len(vm.layers.get(name, ())) > 1 for name in local)):
        found.append("its snapshots are on the source's local storage, and a copy of its disks would be without them")
    if shared and here.shared_id != there.shared_id:
        found.append(f"disk {', '.join(shared)} is on a shared storage that it does not see")
    if (here.local_dir, here.shared_dir) != (there.local_dir, there.shared_dir):
        found.append(f"it keeps VMs in {there.local_dir} and {there.shared_dir or '-'}, the source elsewhere")
    return found


def _machine(vm: Vm, here: HostFacts, there: HostFacts, command: MigrateVm) -> list[str]:
    if not _travels(vm, command):
        return []
    found = []
    if not there.address:
        found.append("its agent says no address for guests to come to")
    if here.accel != there.accel:
        found.append(f"it runs guests with {there.accel}, the source with {here.accel}")
    lacking = [machine for machine in here.machines[-1:] if machine not in there.machines]
    if lacking:
        found.append(f"its QEMU has no machine type {', '.join(lacking)}")
    if _version(there.qemu) < _version(here.qemu):
        found.append(f"its QEMU {there.qemu} is older than the source's {here.qemu}")
    if _version(there.libvirt) < _version(here.libvirt):
        found.append(f"its libvirt {there.libvirt} is older than the source's {here.libvirt}")
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def _encrypted(source: Host, destination: Host) -> bool:
    return source.encrypts and destination.encrypts


def _question(view: ClusterView, vm: Vm, host: Host) -> Question:
    assert vm.spec is not None
    return Question(
        spec=vm.spec,
        labels=vm.labels,
        host=host,
        neighbours=tuple(each for each in view.neighbours(host.id) if each.id != vm.id),
        # its shared disks are promised already, wherever it runs
        shared_promised=0.0,
        moving=vm.id,
    )


def _check_limits(view: ClusterView, source: Host) -> None:
    now = traffic(view)
    if now.out.get(source.id, 0) >= view.policy.migrations_out:
        raise _too_many(f"{now.out[source.id]} guests are leaving {source.name} now", view.policy.migrations_out)
    if now.total >= view.policy.migrations:
        raise _too_many(f"{now.total} guests travel in the cluster now", view.policy.migrations)


def _check_limits_in(view: ClusterView, destination: Host) -> None:
    coming = traffic(view).into.get(destination.id, 0)
    if coming >= view.policy.migrations_in:
        raise _too_many(f"{coming} guests are coming to {destination.name} now", view.policy.migrations_in)


def _too_many(what: str, limit: int) -> Rejected:
    return Rejected(
        "too-many-migrations",
        f"{what}, and {limit} may",
        hint="wait for one (vmorch op list --state running), or vmorch cluster set",
    )
