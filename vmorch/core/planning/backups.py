"""Where a backup goes, what it stands on, and which host reads it again. Pure.

A target is one directory that one or more hosts see; it is known by its id, whatever a host calls it. Must not believe
that writes were noted: that is the host's to find out.
"""

from msgspec.structs import replace

from vmorch.core.aggregates.backup import Backup, chain_of, standing_on
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm
from vmorch.core.backup import Target
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import BackupId, OperationId
from vmorch.core.operation import Plan
from vmorch.core.operations import back_up
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.planning.view import ClusterView, view_of
from vmorch.core.spec import VmSpec

MOST_IN_CHAIN = 32
"""How many backups may stand on each other: each is read when the last one is restored, and all are lost with one."""


def plan_backup(fleet: Fleet, vm: Vm, host: Host, command: BackUpVm, operation: OperationId) -> Plan:
    """How a VM is backed up on its host. Raises Rejected `no-such-target`, `name-taken`, `wrong-power-state`."""
    target = _target_of(host, command.to)
    if command.name is not None:
        holder = [each for each in fleet.backups.values() if each.name == command.name]
        if holder:
            hint = f"vmorch backup describe {command.name}"
            raise Rejected("name-taken", f"a backup called {command.name} exists", hint=hint)
    chain, full = _standing(fleet, vm, target, command)
    return back_up.plan(command, vm, host, BackupId(operation), target, chain, full)


def _target_of(host: Host, wanted: str | None) -> Target:
    there = {} if host.facts is None else dict(host.facts.backup_targets)
    named = {name: id for name, id in there.items() if wanted is None or name == wanted}
    if len(named) == 1:
        name, id = next(iter(named.items()))
        return Target(name=name, id=id)
    if not there:
        why = f"{host.name} has no target for backups"
        raise Rejected("no-such-target", why, hint="name a directory under [backups] in the agent's settings")
    names = ", ".join(sorted(there))
    if wanted is None:
        raise Rejected("no-such-target", f"{host.name} has several targets for backups: {names}", hint="--to TARGET")
    raise Rejected("no-such-target", f"{host.name} has no target {wanted} for backups; it has {names}")


def _standing(fleet: Fleet, vm: Vm, target: Target, command: BackUpVm) -> tuple[tuple[Backup, ...], str]:
    """The backups that the next one may stand on, or why it is full."""
    assert vm.spec is not None
    if vm.backup is None:
        return (), "it is the first"
    last = fleet.backups.get(vm.backup)
    if last is None or last.leaving:
        return (), "the last one was deleted"
    assert last.target is not None
    assert last.spec is not None
    try:
        chain = chain_of(fleet.backups, vm.backup)
    except Rejected as broken:
        return (), broken.reason
    # the chain is told all the same: a full one that fails must not cost the next its footing
    if command.full:
        return chain, "it was asked for"
    if vm.unnoted:
        return chain, vm.unnoted
    if last.target.id != target.id:
        return chain, f"the last one is in {last.target.name}"
    if _sizes(last.spec) != _sizes(vm.spec):
        return chain, "the VM has other disks than it had then"
    damaged = [each.name for each in chain if each.verification is not None and not each.verification.ok]
    if damaged:
        return chain, f"{damaged[0]} did not stand its verification"
    if len(chain) >= MOST_IN_CHAIN:
        return chain, f"{len(chain)} stand on each other, and no more may"
    return chain, ""


def _sizes(spec: VmSpec) -> dict[str, int]:
    return {disk.name: disk.size for disk in spec.disks}


def readable(fleet: Fleet, backup: Backup) -> tuple[Backup, ...]:
    """The backup with all that it stands on. Raises Rejected `backup-broken`."""
    if backup.saved is None:
        raise Rejected("backup-broken", f"backup {backup.name} is not whole", hint=f"vmorch op describe {backup.id}")
    return chain_of(fleet.backups, backup.id)


def seeing(fleet: Fleet, backup: Backup) -> ClusterView:
    """The cluster with only those hosts that see the backup. Raises Rejected `target-away` if there are none."""
    view, target = view_of(fleet), backup.target
    assert target is not None
    hosts = tuple(host for host in view.hosts if host.facts and target.id in host.facts.backup_targets.values())
    if not hosts:
        raise Rejected("target-away", f"no host sees the target {target.name} that {backup.name} is in")
    return replace(view, hosts=hosts)


def reader(fleet: Fleet, backup: Backup) -> Host:
    """A host that can work on the backup now: that which made it, if it can. Raises Rejected `target-away`."""
    connected = [host for host in seeing(fleet, backup).hosts if host.agent == "connected"]
    if not connected:
        assert backup.target is not None
        raise Rejected("target-away", f"no host that sees {backup.target.name} is connected", hint="vmorch host list")
    return min(connected, key=lambda host: (host.id != backup.host, host.name))


def condemned(fleet: Fleet, backup: Backup, *, with_children: bool) -> tuple[Backup, ...]:
    """The backups that go when this one is deleted, each before what it stands on. Raises Rejected `backup-needed`,
    `operation-in-flight`."""
    above = standing_on(fleet.backups, backup.id)
    names = [each.name for each in above]
    if above and not with_children:
        raise Rejected(
            "backup-needed",
            f"{len(above)} backups stand on {backup.name}: {', '.join(names)}",
            hint=f"vmorch backup delete {backup.name} --with-children",
            facts={"backups": names},
        )
    going = (*reversed(above), backup)
    for each in going:
        vm = fleet.vms.get(each.vm)
        if each.saved is None and vm is not None and vm.active == OperationId(each.id):
            raise Rejected(
                "operation-in-flight",
                f"backup {each.name} is being taken",
                hint=f"vmorch op wait {each.id}",
                facts={"operation": each.id},
            )
    return going


def check_addresses(fleet: Fleet, spec: VmSpec) -> None:
    """No other VM has one of the fixed addresses. Raises Rejected `address-taken`."""
    wanted = {nic.address.partition("/")[0] for nic in spec.nics if nic.address is not None}
    for vm in fleet.vms.values():
        if vm.deleted_at is not None or vm.spec is None:
            continue
        shared = wanted & {nic.address.partition("/")[0] for nic in vm.spec.nics if nic.address is not None}
        if shared:
            raise Rejected(
                "address-taken",
                f"{vm.name} has the address {', '.join(sorted(shared))} that the backup brings back",
                hint="--isolated restores it without network cards",
            )
