"""Say what becomes of a VM whose host is emptied. It is looked at when that happens, so no host is involved now."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.vm import Vm, VmCommand, VmEvent
from vmorch.core.errors import Rejected
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, change
from vmorch.core.spec import Eviction


@message("vm.eviction-set")
class EvictionSet(VmEvent, frozen=True, kw_only=True):
    """This becomes of the VM when its host is emptied."""

    eviction: Eviction

    def apply(self, vm: Vm, at: datetime) -> Vm:
        assert vm.spec is not None
        return replace(vm, spec=replace(vm.spec, eviction=self.eviction))


@message("vm.set-eviction")
class SetEviction(VmCommand, frozen=True, kw_only=True):
    """When its host is emptied the VM is moved while it runs, moved by a restart, stopped, or it blocks."""

    verb = "set-eviction"
    summary = "Say what becomes of a VM when its host is emptied"

    eviction: Annotated[Eviction, Meta(description="live, restart, stop, or never: then it blocks")]

    def plan(self, vm: Vm, host: Host) -> Plan:
        assert vm.spec is not None
        if vm.spec.eviction == self.eviction:
            raise Rejected("already-so", f"the eviction of {vm.name} is {self.eviction} already")
        return Plan(opening=(change(stream("vm", vm.id), EvictionSet(eviction=self.eviction)),))
