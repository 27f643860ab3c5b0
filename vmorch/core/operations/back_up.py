"""Back a VM up: its host writes to a target what its disks hold at one moment, or only what changed since the last.

One order to one host. What it made is only known by its answer: whether the writes since the last backup were really
noted is seen there, and if they were not, the backup is full.
"""

from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.backup import Backup, BackupAbandoned, BackupBegun, BackupContinued, saved_of
from vmorch.core.aggregates.backup_steps import COPYING
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.layering import stacks_of
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.backup import Target
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import DropBackup, TakeBackup
from vmorch.core.ids import BackupId, stream
from vmorch.core.layers import Quality
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change, step
from vmorch.core.snapshot import Description, Freezing
from vmorch.core.spec import Name


@message("vm.back-up")
class BackUpVm(VmCommand, frozen=True, kw_only=True):
    """The VM's disks as they are at this moment are in a backup, from which a VM can be made again. It holds what
    changed since the last backup if that is known for certain, else everything. Of a running guest the disks are kept
    as after a power cut; with `quiesce` its agent holds its file systems at rest for that moment."""

    verb = "backup"
    summary = "Back a VM up"
    needs = frozenset({"off", "crashed", "running", "paused"})

    name: Annotated[Name, Meta(description="its name; made up if none is given")] | None = None
    to: Annotated[Name, Meta(description="the target, if the host has several")] | None = None
    full: Annotated[bool, Meta(description="everything, whatever is known of the last backup")] = False
    quiesce: Annotated[bool, Meta(description="have the guest's agent hold its file systems at rest")] = False
    freeze_within: Freezing = 10.0
    description: Annotated[Description, Meta(description="what it is for")] = ""


def plan(
    command: BackUpVm,
    vm: Vm,
    host: Host,
    id: BackupId,
    target: Target,
    chain: tuple[Backup, ...],
    full: str,
) -> Plan:
    """How it is taken: on top of `chain`, or as a full one for the reason `full`. Raises Rejected
    `wrong-power-state`."""
    assert vm.spec is not None
    name = command.name or f"{vm.name[:50].rstrip('-')}-{id[-12:]}"
    parent = None if full or not chain else chain[-1].id
    begun = BackupBegun(
        name=name,
        vm=vm.id,
        vm_name=vm.name,
        spec=vm.spec,
        host=host.id,
        target=target,
        quality=_quality(command, vm),
        parent=parent,
        description=command.description,
    )
    order = TakeBackup(
        vm=vm.id,
        stacks=stacks_of(vm),
        next=vm.number + 1,
        backup=id,
        target=target,
        name=name,
        vm_name=vm.name,
        spec=vm.spec,
        chain=saved_of(chain),
        full=full,
        freeze=command.freeze_within if command.quiesce else None,
    )
    at = stream("backup", id)
    # in the parent's stream too, so that nobody can delete that at the same time
    continued = () if parent is None else (change(stream("backup", parent), BackupContinued(by=id)),)
    return Plan(
        opening=(change(at, begun), *continued),
        steps=(step(host.id, order, undo=DropBackup(target=target, backup=id), deadline=COPYING),),
        failure=(change(at, BackupAbandoned()),),
    )


def _quality(command: BackUpVm, vm: Vm) -> Quality:
    if vm.power in ("off", "crashed"):
        if command.quiesce:
            raise Rejected("wrong-power-state", f"{vm.name} is {vm.power}: it has no file systems to freeze")
        return "off"
    if command.quiesce and vm.power != "running":
        raise Rejected("wrong-power-state", f"{vm.name} is {vm.power}: a halted guest cannot freeze its file systems")
    return "frozen" if command.quiesce else "crash-consistent"
