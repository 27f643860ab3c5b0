"""Rename a VM. Domains are named by VM id, so no host is involved."""

from datetime import datetime

from msgspec.structs import replace

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand, VmEvent
from vmorch.core.errors import Rejected
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change
from vmorch.core.spec import Name


@message("vm.renamed")
class VmRenamed(VmEvent, frozen=True, kw_only=True):
    """The VM is called this; its guest's hostname is the guest's own affair."""

    name: Name

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, name=self.name)


@message("vm.rename")
class RenameVm(VmCommand, frozen=True, kw_only=True):
    """The VM has this name."""

    verb = "rename"
    summary = "Give a VM another name"

    name: Name

    def plan(self, vm: Vm, host: Host) -> Plan:
        if self.name == vm.name:
            raise Rejected("already-so", f"the VM is already called {vm.name}")
        return Plan(opening=(change(stream("vm", vm.id), VmRenamed(name=self.name)),))
