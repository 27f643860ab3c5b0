"""From a command to everything that is appended when it is accepted. Dry runs stop here.

Must not append: the caller does, at the versions that these decisions were made on.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand, admit, open_operation
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, OperationId, VmId
from vmorch.core.messages import Command
from vmorch.core.operation import Change, Plan
from vmorch.core.operations import migrate, resolve, tidy
from vmorch.core.operations.create import CreateVm, plan, spec_of
from vmorch.core.operations.migrate import MigrateVm
from vmorch.core.operations.resolve import ResolveVm
from vmorch.core.planning.mobility import Choice, choose
from vmorch.core.planning.placement import Placement, place
from vmorch.core.planning.view import view_of
from vmorch.core.spec import VmSpec


class Admission(Struct, frozen=True, kw_only=True):
    """A command that may begin: what to append, and whether an operation runs from then on."""

    vm: VmId
    plan: Plan
    changes: tuple[Change, ...]
    placement: Placement | None = None
    spec: VmSpec | None = None

    @property
    def starts_operation(self) -> bool:
        return bool(self.plan.steps)


class Who(Struct, frozen=True, kw_only=True):
    """On whose behalf a command is decided."""

    actor: str
    reason: str = ""


SYSTEM = Who(actor="system")


def admit_create(fleet: Fleet, command: CreateVm, *, vm: VmId, operation: OperationId, who: Who) -> Admission:
    """Where a new VM goes and how it is made. Raises Rejected (`no-such-image`, `name-taken`, `no-host-fits` ...)."""
    holder = [each for each in fleet.vms.values() if each.name == command.name and each.deleted_at is None]
    if holder:
        raise Rejected(
            "name-taken", f"a VM called {command.name} exists", hint=f"vmorch vm describe {command.name}"
        )
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
        case _:
            made = admit(vm, command, host)
    changes = _open(fleet, vm.id, operation, made, command, who)
    placement = choice[0].placement if choice else None
    return Admission(vm=vm.id, plan=made, changes=changes, spec=vm.spec, placement=placement)


def admit_settling(fleet: Fleet, vm: Vm, *, operation: OperationId) -> tuple[Change, ...]:
    """What opens another judgement of a frozen VM, now that both ends can be seen."""
    assert vm.frozen is not None
    return _opened(fleet, vm.id, operation, migrate.settling(vm), "settle", {}, SYSTEM)


def admit_tidying(fleet: Fleet, vm: Vm, host: HostId, *, operation: OperationId) -> tuple[Change, ...]:
    """What opens the clearing of a VM's traces on a host that is not its own."""
    return _opened(fleet, vm.id, operation, tidy.plan(vm, host), "tidy", {"host": host}, SYSTEM)


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
    fleet: Fleet, vm: VmId, operation: OperationId, made: Plan, command: Command, who: Who
) -> tuple[Change, ...]:
    return _opened(fleet, vm, operation, made, command.verb, _arguments(command), who)


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
