"""Resize a VM's vCPUs and memory: live within the running domain's maximum, else at its next start.

The persistent configuration is always brought to the target; what the running domain can follow it follows at
once, the rest is pending and shown. vCPUs are never taken from a running guest.
"""

from datetime import datetime

from msgspec.structs import replace

from vmorch.core.aggregates.host import CapacityReserved, Host, Reservation, larger, reserve
from vmorch.core.aggregates.vm import Vm, VmCommand, VmEvent
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import DefineDomain, SetMemory, SetVcpus
from vmorch.core.ids import MiB, stream
from vmorch.core.messages import message
from vmorch.core.operation import Plan, Step, change, step
from vmorch.core.spec import MemoryMiB, Vcpus, VmSpec


@message("vm.resized")
class VmResized(VmEvent, frozen=True, kw_only=True):
    """The VM is asked to have these figures from now on, at the latest from its next start."""

    vcpus: int
    max_vcpus: int
    memory: MiB
    max_memory: MiB

    def apply(self, vm: Vm, at: datetime) -> Vm:
        assert vm.spec is not None
        spec = replace(
            vm.spec,
            vcpus=self.vcpus,
            max_vcpus=self.max_vcpus,
            memory=self.memory,
            max_memory=self.max_memory,
        )
        return replace(vm, spec=spec)


@message("vm.resize")
class ResizeVm(VmCommand, frozen=True, kw_only=True):
    """The VM has this many vCPUs and this much memory."""

    verb = "resize"
    summary = "Change a VM's vCPUs and memory"
    needs = frozenset({"off", "running", "paused", "crashed"})

    vcpus: Vcpus | None = None
    memory: MemoryMiB | None = None

    def plan(self, vm: Vm, host: Host) -> Plan:
        old = vm.spec
        assert old is not None
        new = self._target(old)
        # after a resize that got stuck, the promise tells of it though the spec does not
        held = host.reservations.get(vm.id, Reservation.of(old))
        wanted = Reservation.of(new)
        if new == old and held == wanted:
            raise Rejected("already-so", f"{vm.name} already has {old.vcpus} vCPUs and {old.memory} MiB")
        resized = VmResized(
            vcpus=new.vcpus, max_vcpus=new.max_vcpus, memory=new.memory, max_memory=new.max_memory
        )
        define = step(host.id, DefineDomain(vm=vm.id, spec=new), undo=DefineDomain(vm=vm.id, spec=old))
        most = larger(held, wanted)
        promise = () if most == held else tuple(
            change(stream("host", host.id), event) for event in reserve(host, vm.id, most)
        )
        at = stream("host", host.id)
        settled = () if wanted == most else (change(at, CapacityReserved(vm=vm.id, reservation=wanted)),)
        back = () if most == held else (change(at, CapacityReserved(vm=vm.id, reservation=held)),)
        return Plan(
            opening=promise,
            steps=(define, *self._live(vm, old, new, host)),
            success=(change(stream("vm", vm.id), resized), *settled),
            failure=back,
        )

    def _target(self, old: VmSpec) -> VmSpec:
        vcpus, memory = self.vcpus or old.vcpus, self.memory or old.memory
        return replace(
            old,
            vcpus=vcpus,
            max_vcpus=max(vcpus, old.max_vcpus),
            memory=memory,
            max_memory=max(memory, old.max_memory),
        )

    def _live(self, vm: Vm, old: VmSpec, new: VmSpec, host: Host) -> list[Step]:
        if vm.power != "running":
            return []
        steps: list[Step] = []
        if vm.live_vcpus < new.vcpus <= vm.live_max_vcpus:
            steps.append(step(host.id, SetVcpus(vm=vm.id, vcpus=new.vcpus), commits=True))
        if vm.live_memory != new.memory <= vm.live_max_memory:
            undo = SetMemory(vm=vm.id, memory=vm.live_memory or old.memory)
            steps.append(step(host.id, SetMemory(vm=vm.id, memory=new.memory), undo=undo))
        # a vCPU that was added cannot be taken back, so it goes last
        return sorted(steps, key=lambda each: each.commits)
