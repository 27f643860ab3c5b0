"""What becomes of the VMs of a host that is given up as lost. Pure.

Must not give up a VM that may run elsewhere: one that was on its way is first said to be where it is.
"""

from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.passage import VmCleared
from vmorch.core.aggregates.vm import Vm, VmDeleted, close_operation
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import stream
from vmorch.core.operation import Change, Finish, change


def give_up(fleet: Fleet, host: Host) -> list[Change]:
    """The VMs that stand on the host end with it, and so do their operations; what it may have held of others is gone.

    Raises Rejected `outcome-unknown` if a VM was on its way from this host or to it.
    """
    travelling = [vm for vm in fleet.vms.values() if _may_be_elsewhere(vm, host)]
    if travelling:
        raise Rejected(
            "outcome-unknown",
            f"{len(travelling)} VMs were on their way when {host.name} was lost; they may run on the other host",
            hint=f"vmorch vm describe {travelling[0].name}, then vmorch vm resolve",
            facts={"vms": sorted(vm.name for vm in travelling)[:20]},
        )
    found: list[Change] = []
    for vm in fleet.vms.values():
        if host.id in vm.traces:
            found.append(change(stream("vm", vm.id), VmCleared(host=host.id)))
        if vm.host != host.id or vm.deleted_at is not None:
            continue
        if vm.active is not None:
            end = Finish("stuck", "host-lost", f"{host.name} was given up as lost")
            found += close_operation(vm, vm.operations[vm.active], end)
        found.append(change(stream("vm", vm.id), VmDeleted()))
    return found


def _may_be_elsewhere(vm: Vm, host: Host) -> bool:
    if vm.frozen is not None:
        return host.id in (vm.frozen.source, vm.frozen.destination)
    running = None if vm.active is None else vm.operations[vm.active]
    return running is not None and any(
        step.judged is not None and host.id in step.judged for step in running.steps[running.progress.done :]
    )
