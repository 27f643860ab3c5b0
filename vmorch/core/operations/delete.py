"""Delete a VM: its domain with what was kept for it, its disks unless they shall stay; then its promise of capacity."""

from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.host import CapacityReleased, Host
from vmorch.core.aggregates.vm import Vm, VmCommand, VmDeleted
from vmorch.core.hostcommands import DeleteDisk, StopDomain, UndefineDomain
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change, step


@message("vm.delete")
class DeleteVm(VmCommand, frozen=True, kw_only=True):
    """The VM is gone from its host, a running one included. With `keep_disks` its disks stay there."""

    verb = "delete"
    summary = "Delete a VM and its disks"

    keep_disks: Annotated[bool, Meta(description="leave the disks on the host")] = False

    def plan(self, vm: Vm, host: Host) -> Plan:
        assert vm.spec is not None
        cut = StopDomain(vm=vm.id, grace=0, force=True)
        disks = () if self.keep_disks else vm.spec.disks
        kept = tuple(disk.name for disk in vm.spec.disks) if self.keep_disks else ()
        return Plan(
            steps=(
                step(host.id, cut, commits=True),
                step(host.id, UndefineDomain(vm=vm.id)),
                *(step(host.id, DeleteDisk(vm=vm.id, disk=disk), deadline=120) for disk in disks),
            ),
            success=(
                change(stream("vm", vm.id), VmDeleted(kept_disks=kept)),
                change(stream("host", host.id), CapacityReleased(vm=vm.id)),
            ),
        )
