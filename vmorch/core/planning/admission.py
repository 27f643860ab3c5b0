"""From a command to everything that is appended when it is accepted. Dry runs stop here.

Must not append: the caller does, at the versions that these decisions were made on.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from vmorch.core.aggregates.vm import Vm, VmCommand, admit, open_operation
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import OperationId, VmId
from vmorch.core.messages import Command
from vmorch.core.operation import Change, Plan
from vmorch.core.operations.create import CreateVm, plan, spec_of
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
    made = admit(vm, command, host)
    return Admission(
        vm=vm.id, plan=made, changes=_open(fleet, vm.id, operation, made, command, who), spec=vm.spec
    )


def _open(
    fleet: Fleet, vm: VmId, operation: OperationId, made: Plan, command: Command, who: Who
) -> tuple[Change, ...]:
    return open_operation(
        vm,
        operation,
        made,
        verb=command.verb,
        arguments=_arguments(command),
        actor=who.actor,
        reason=who.reason,
        position=fleet.position,
    )


def _arguments(command: Command) -> Mapping[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(command)
    return fields
