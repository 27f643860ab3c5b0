"""From a command to everything that is appended when it is accepted. Dry runs stop here.

Must not append: the caller does, at the versions that these decisions were made on.
"""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from vmorch.core.aggregates.backup import Backup
from vmorch.core.aggregates.backup_steps import carrier_name, restored_spec
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand, admit, open_operation
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, OperationId, VmId
from vmorch.core.messages import Command
from vmorch.core.operation import Change, Plan
from vmorch.core.operations import delete_backup, migrate, resolve, restore, take_snapshot, tidy, verify_backup
from vmorch.core.operations.attach_volume import AttachVolume
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.operations.create import CreateVm, plan, spec_of
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.operations.delete_snapshot import ForgetSnapshots
from vmorch.core.operations.detach_volume import DetachVolume
from vmorch.core.operations.grow_disk import GrowVmDisk
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.resolve import ResolveVm
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.operations.verify_backup import ProveBackup
from vmorch.core.planning.backups import check_addresses, condemned, plan_backup, readable, reader, seeing
from vmorch.core.planning.mobility import Choice, choose
from vmorch.core.planning.placement import Placement, place
from vmorch.core.planning.view import view_of
from vmorch.core.planning.volumes import plan_disk
from vmorch.core.spec import VmSpec
from vmorch.core.value import Value


class Admission(Value, frozen=True, kw_only=True):
    """A command that may begin: what to append, and whether an operation runs from then on."""

    vm: VmId
    plan: Plan
    changes: tuple[Change, ...]
    placement: Placement | None = None
    spec: VmSpec | None = None

    @property
    def starts_operation(self) -> bool:
        return bool(self.plan.steps)


class Who(Value, frozen=True, kw_only=True):
    """On whose behalf a command is decided."""

    actor: str
    reason: str = ""


SYSTEM = Who(actor="system")
BY_SCHEDULE = Who(actor="system", reason="by its schedule")


def admit_create(fleet: Fleet, command: CreateVm, *, vm: VmId, operation: OperationId, who: Who) -> Admission:
    """Where a new VM goes and how it is made. Raises Rejected (`no-such-image`, `name-taken`, `no-host-fits` ...)."""
    _check_free(fleet, command.name)
    image = fleet.find_image(command.image)
    assert image.pin is not None
    spec = spec_of(command, vm, image.pin)
    placement = place(view_of(fleet), spec, command.labels)
    made = plan(command, vm, spec, placement.host, placement.summary())
    changes = _open(fleet, vm, operation, made, command, who)
    return Admission(vm=vm, plan=made, changes=changes, placement=placement, spec=spec)


def admit_on_vm(fleet: Fleet, vm: Vm, command: VmCommand, *, operation: OperationId, who: Who) -> Admission:
    """How a command is done on a VM that exists. Raises Rejected."""
    host = None if vm.host is None else fleet.hosts.get(vm.host)
    if host is None:
        raise Rejected("vm-gone", f"{vm.name} stands on no host")
    choice: list[Choice] = []
    match command:
        case MigrateVm():
            made = admit(vm, command, host, lambda: _migrate(fleet, vm, host, command, choice))
        case ResolveVm():
            made = admit(vm, command, host, lambda: _resolve(fleet, vm, command))
        case BackUpVm():
            made = admit(vm, command, host, lambda: plan_backup(fleet, vm, host, command, operation))
        case AttachVolume() | DetachVolume() | GrowVmDisk():
            made = admit(vm, command, host, lambda: plan_disk(fleet, vm, host, command))
        case _:
            made = admit(vm, command, host)
    changes = _open(fleet, vm.id, operation, made, command, who)
    placement = choice[0].placement if choice else None
    return Admission(vm=vm.id, plan=made, changes=changes, spec=vm.spec, placement=placement)


def admit_restore(
    fleet: Fleet, backup: Backup, command: RestoreBackup, *, vm: VmId, operation: OperationId, who: Who
) -> Admission:
    """Where a VM is made from a backup, and how. Raises Rejected (`name-taken`, `backup-broken`, `target-away`,
    `address-taken`, `no-host-fits` ...)."""
    _check_free(fleet, command.name)
    chain = readable(fleet, backup)
    spec = restored_spec(
        backup, vm, command.name, host=command.host, storage=command.storage, isolated=command.isolated
    )
    check_addresses(fleet, spec)
    _check_readable(fleet, backup, spec)
    placement = place(seeing(fleet, backup), spec, {})
    made = restore.plan(command, vm, spec, placement.host, chain, placement.summary())
    changes = _open(fleet, vm, operation, made, command, who, {"backup": backup.id})
    return Admission(vm=vm, plan=made, changes=changes, placement=placement, spec=spec)


def admit_verify(
    fleet: Fleet, backup: Backup, command: ProveBackup, *, vm: VmId, operation: OperationId, who: Who
) -> Admission:
    """Where and how a backup is verified. Raises Rejected (`backup-broken`, `target-away`, `no-host-fits` ...)."""
    chain, name = readable(fleet, backup), carrier_name("verify", backup)
    spec = restored_spec(backup, vm, name, isolated=True)
    _check_free(fleet, name)
    if command.boot:
        _check_readable(fleet, backup, spec)
    placement = place(seeing(fleet, backup), spec, {}) if command.boot else None
    host = reader(fleet, backup) if placement is None else placement.host
    made = verify_backup.plan(command, vm, spec, host, chain)
    changes = _open(fleet, vm, operation, made, command, who, {"backup": backup.id})
    return Admission(vm=vm, plan=made, changes=changes, placement=placement)


def admit_delete_backup(
    fleet: Fleet, backup: Backup, command: DeleteBackup, *, vm: VmId, operation: OperationId, who: Who
) -> Admission:
    """How a backup is deleted. Raises Rejected `backup-needed`, `operation-in-flight`, `target-away`."""
    going, name = condemned(fleet, backup, with_children=command.with_children), carrier_name("delete", backup)
    _check_free(fleet, name)
    made = delete_backup.plan(vm, restored_spec(backup, vm, name, isolated=True), reader(fleet, backup), going)
    changes = _open(fleet, vm, operation, made, command, who, {"backup": backup.id})
    return Admission(vm=vm, plan=made, changes=changes)


def admit_volume(
    fleet: Fleet,
    made: Plan,
    command: Command,
    *,
    vm: VmId,
    operation: OperationId,
    who: Who,
    on: Mapping[str, object],
) -> Admission:
    """What opens the work on a volume that no VM uses, carried by the VM `vm`; `on` names what it is done to."""
    return Admission(vm=vm, plan=made, changes=_open(fleet, vm, operation, made, command, who, on))


def admit_settling(fleet: Fleet, vm: Vm, *, operation: OperationId) -> tuple[Change, ...]:
    """What opens another judgement of a frozen VM, now that both ends can be seen."""
    assert vm.frozen is not None
    return _opened(fleet, vm.id, operation, migrate.settling(vm), "settle", {}, SYSTEM)


def admit_tidying(fleet: Fleet, vm: Vm, host: HostId, *, operation: OperationId) -> tuple[Change, ...]:
    """What opens the clearing of a VM's traces on a host that is not its own."""
    return _opened(fleet, vm.id, operation, tidy.plan(vm, host), "tidy", {"host": host}, SYSTEM)


def admit_scheduled(
    fleet: Fleet,
    vm: Vm,
    command: SnapshotVm | ForgetSnapshots,
    *,
    operation: OperationId,
    who: Who = BY_SCHEDULE,
    at: datetime | None = None,
) -> tuple[Change, ...]:
    """What opens the taking or the deleting of snapshots that nobody asked for but a policy. `at` is the time by which
    it is due: by the same clock the next one will be. Raises Rejected."""
    host = None if vm.host is None else fleet.hosts.get(vm.host)
    if host is None:
        raise Rejected("vm-gone", f"{vm.name} stands on no host")
    match command:
        case SnapshotVm():
            made = admit(vm, command, host, lambda: take_snapshot.plan(command, vm, host, "schedule", at))
        case ForgetSnapshots():
            made = admit(vm, command, host)
    due: dict[str, object] = {} if at is None else {"due": at.isoformat()}
    return _open(fleet, vm.id, operation, made, command, who, due)


def _check_free(fleet: Fleet, name: str) -> None:
    if any(each.name == name and each.deleted_at is None for each in fleet.vms.values()):
        raise Rejected("name-taken", f"a VM called {name} exists", hint=f"vmorch vm describe {name}")


def _check_readable(fleet: Fleet, backup: Backup, spec: VmSpec) -> None:
    if spec.sealed_for in fleet.erasures.subjects:
        raise Rejected("erased", f"the user data of the VM in {backup.name} was erased, and no VM is made without it")


def _migrate(fleet: Fleet, vm: Vm, source: Host, command: MigrateVm, choice: list[Choice]) -> Plan:
    choice.append(choose(view_of(fleet), vm, command))
    return migrate.plan(command, vm, source, choice[0].placement.host, encrypted=choice[0].encrypted)


def _resolve(fleet: Fleet, vm: Vm, command: ResolveVm) -> Plan:
    assert vm.frozen is not None
    ends = [fleet.hosts[end] for end in (vm.frozen.source, vm.frozen.destination) if end in fleet.hosts]
    chosen = [host for host in ends if command.on in (host.name, host.id)]
    if not chosen:
        names = " or ".join(host.name for host in ends)
        raise Rejected("bad-spec", f"{vm.name} can only be on {names}", hint=f"vmorch vm describe {vm.name}")
    return resolve.plan(vm, chosen[0].id)


def _open(
    fleet: Fleet,
    vm: VmId,
    operation: OperationId,
    made: Plan,
    command: Command,
    who: Who,
    on: Mapping[str, object] | None = None,
) -> tuple[Change, ...]:
    """`on` tells what else was decided on: with it the same command gives the same plan on the same state."""
    arguments = {**_arguments(command), **(on or {})}
    return _opened(fleet, vm, operation, made, command.verb, arguments, who)


def _opened(
    fleet: Fleet, vm: VmId, operation: OperationId, made: Plan, verb: str, arguments: Mapping[str, object], who: Who
) -> tuple[Change, ...]:
    return open_operation(
        vm,
        operation,
        made,
        verb=verb,
        arguments=arguments,
        actor=who.actor,
        reason=who.reason,
        position=fleet.position,
    )


def _arguments(command: Command) -> Mapping[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(command)
    return fields
