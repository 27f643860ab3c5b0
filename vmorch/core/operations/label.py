"""Set and remove a VM's labels. Labels steer placement and selection, so no host is involved."""

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
from vmorch.core.spec import LabelKey, Labels


@message("vm.labelled")
class VmLabelled(VmEvent, frozen=True, kw_only=True):
    """The VM's labels are these and no others."""

    labels: Labels

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, labels=self.labels)


@message("vm.label")
class LabelVm(VmCommand, frozen=True, kw_only=True):
    """The VM has the labels in `set` beside its others, and none of those in `remove`."""

    verb = "label"
    summary = "Set or remove a VM's labels"

    set: Labels = {}  # noqa: RUF012  msgspec copies mutable defaults
    remove: Annotated[tuple[LabelKey, ...], Meta(max_length=32)] = ()

    def plan(self, vm: Vm, host: Host) -> Plan:
        labels = {key: value for key, value in {**vm.labels, **self.set}.items() if key not in self.remove}
        if labels == dict(vm.labels):
            raise Rejected("already-so", f"{vm.name} has these labels already")
        return Plan(opening=(change(stream("vm", vm.id), VmLabelled(labels=labels)),))
