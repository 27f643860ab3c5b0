"""Clear what a migration may have left of a VM on a host that is not its own, once that host can be asked again.

Asked for by the control plane itself. What runs there is never touched: the host refuses that.
"""

from vmorch.core.aggregates.host import CapacityReleased
from vmorch.core.aggregates.passage import VmCleared
from vmorch.core.aggregates.vm import Vm
from vmorch.core.hostcommands import ClearDomain, DeleteDisk, DeleteSeed
from vmorch.core.ids import HostId, stream
from vmorch.core.operation import Plan, change, step


def plan(vm: Vm, host: HostId) -> Plan:
    """How the host comes to hold nothing of the VM, which stands on another one."""
    assert host != vm.host
    assert vm.spec is not None
    local = [disk for disk in vm.spec.disks if disk.storage == "local"]
    return Plan(
        steps=(
            step(host, ClearDomain(vm=vm.id)),
            *(step(host, DeleteDisk(vm=vm.id, disk=disk), deadline=120) for disk in local),
            step(host, DeleteSeed(vm=vm.id)),
        ),
        success=(
            change(stream("vm", vm.id), VmCleared(host=host)),
            change(stream("host", host), CapacityReleased(vm=vm.id)),
        ),
    )
