"""Move a VM to another host: while it runs, or by a restart there.

Prepared on the destination, carried over by the source, and then judged by what both hosts show; only the verdict
changes whose the VM is. Must not choose the destination: that is planning's, and so are the blockers.
"""

from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.host import CapacityReleased, CapacityReserved, Host, Reservation
from vmorch.core.aggregates.passage import VmCleared, VmDeparting, VmMigrated
from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.codec import pack
from vmorch.core.hostcommands import (
    AwaitReady,
    ClaimDomain,
    ClearDomain,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DeleteSeed,
    FetchImage,
    MigrateDomain,
    ObserveDomain,
    Passage,
    PrepareArrival,
    StartDomain,
    StopDomain,
    WriteSeed,
)
from vmorch.core.ids import stream
from vmorch.core.messages import message
from vmorch.core.operation import Change, Plan, Step, change, step
from vmorch.core.spec import DiskSpec, Graceful, Name, VmSpec

SETTLING = 60.0
"""Seconds that a source has beyond the passage's own limit to end it and say so."""

Bandwidth = Annotated[int, Meta(ge=0, le=1_000_000, description="MiB/s at most; 0 for as much as there is")]
Downtime = Annotated[float, Meta(ge=0.001, le=60, description="seconds of pause allowed at the switch-over")]
Stall = Annotated[float, Meta(ge=5, le=24 * 3600, description="seconds without progress until it is given up")]
Within = Annotated[float, Meta(ge=5, le=7 * 24 * 3600, description="seconds")]


@message("vm.migrate")
class MigrateVm(VmCommand, frozen=True, kw_only=True):
    """The VM is on another host, `to` or the one that suits best. A running one goes on running on the way, unless it
    is moved `cold`: then it is shut down here and started there."""

    verb = "migrate"
    summary = "Move a VM to another host"
    needs = frozenset({"running", "paused", "off", "crashed"})

    to: Annotated[Name, Meta(description="the destination")] | None = None
    cold: Annotated[bool, Meta(description="shut the guest down here and start it there")] = False
    copy_disks: Annotated[bool, Meta(description="carry disks along that the destination does not see")] = False
    auto: Annotated[bool, Meta(description="take the host that suits best, as without --to")] = False
    bandwidth: Bandwidth = 0
    max_downtime: Downtime = 0.3
    autoconverge: Annotated[bool, Meta(description="slow the guest down while it does not converge")] = True
    postcopy: Annotated[
        Literal["never", "on-stall"],
        Meta(description="switch a guest over that does not converge, so that it cannot go back"),
    ] = "never"
    parallel_connections: Annotated[int, Meta(ge=0, le=16, description="connections side by side; 0 or 1 for one")] = 0
    deadline: Within = 3600.0
    stall: Stall = 120.0
    grace: Graceful = 60.0
    force: Annotated[bool, Meta(description="cold: cut the power when the guest has not stopped in time")] = False


def plan(command: MigrateVm, vm: Vm, source: Host, destination: Host, *, encrypted: bool) -> Plan:
    """How the VM comes from its host to that one, and how it stays if that fails."""
    assert vm.spec is not None
    at = stream("vm", vm.id)
    moved = change(at, VmMigrated(source=source.id, destination=destination.id))
    reserved = CapacityReserved(vm=vm.id, reservation=Reservation.of(vm.spec))
    on = vm.power in ("running", "paused")
    trip = _Trip(command, vm, vm.spec, source, destination, moved, encrypted)
    steps = trip.live() if on and not command.cold else trip.cold(on=on)
    return Plan(
        opening=(
            change(at, VmDeparting(destination=destination.id, epoch=vm.epoch + 1)),
            change(stream("host", destination.id), reserved),
        ),
        steps=tuple(steps),
        success=(
            change(at, VmCleared(host=source.id)),
            change(stream("host", source.id), CapacityReleased(vm=vm.id)),
        ),
        failure=(
            change(at, VmCleared(host=destination.id)),
            change(stream("host", destination.id), CapacityReleased(vm=vm.id)),
        ),
    )


class _Trip:
    """The steps of one migration."""

    def __init__(
        self,
        command: MigrateVm,
        vm: Vm,
        spec: VmSpec,
        source: Host,
        destination: Host,
        moved: Change,
        encrypted: bool,
    ) -> None:
        self.command = command
        self.vm = vm
        self.spec = spec
        self.source = source
        self.destination = destination
        self.moved = moved
        self.encrypted = encrypted

    @property
    def carried(self) -> tuple[DiskSpec, ...]:
        """The disks that the destination does not see and gets a copy of."""
        return tuple(disk for disk in self.spec.disks if disk.storage == "local") if self.command.copy_disks else ()

    def live(self) -> list[Step]:
        runs = self.vm.power == "running"
        carried = [*self._arrival(), self._passage(run=runs), *self._arrived(run=runs), *self._left()]
        return [*carried, *self._up(runs, known=self.vm.addresses)]

    def cold(self, *, on: bool) -> list[Step]:
        vm, source, destination = self.vm.id, self.source.id, self.destination.id
        steps = self._arrival()
        if on:
            stop = StopDomain(vm=vm, grace=self.command.grace, force=self.command.force)
            steps.append(step(source, stop, undo=StartDomain(vm=vm), deadline=self.command.grace + 60))
        if self.carried:
            # a halted guest that never ran carries its disks by the same way as a running one
            halted = StartDomain(vm=vm, halted=True)
            cut = StopDomain(vm=vm, grace=0, force=True)
            steps.append(step(source, halted, undo=cut, deadline=120))
            steps += [self._passage(run=False), *self._arrived(run=False), step(destination, cut), *self._left()]
        else:
            define = DefineDomain(vm=vm, spec=self.spec)
            steps.append(step(destination, define))
            # with nothing running anywhere, whose configuration is left says whose the VM is
            steps.append(self._judged(ClearDomain(vm=vm), undo=ClaimDomain(vm=vm, spec=self.spec, run=False)))
            steps += self._left(cleared=True)
        if on:
            steps.append(step(destination, StartDomain(vm=vm), keep=True, deadline=120))
        return [*steps, *self._up(on)]

    def _arrival(self) -> list[Step]:
        """Everything that the destination must have before the guest comes. The check comes first: it costs least."""
        vm, destination = self.vm.id, self.destination.id
        facts = self.source.facts
        check = PrepareArrival(
            vm=vm,
            spec=self.spec,
            cpu="" if facts is None else facts.cpu,
            machine="" if facts is None or not facts.machines else facts.machines[-1],
            encrypted=self.encrypted,
        )
        steps = [step(destination, check, undo=ClearDomain(vm=vm))]
        pins = {disk.image.digest: disk.image for disk in self.carried if disk.image}
        for pin in pins.values():
            fetch = FetchImage(image=pin, path=f"/v1/images/{pin.digest}/content")
            steps.append(step(destination, fetch, deadline=3600))
        for disk in self.carried:
            made = CreateDisk(vm=vm, disk=disk)
            steps.append(step(destination, made, undo=DeleteDisk(vm=vm, disk=disk), deadline=300))
        if self.spec.seed is not None:
            seed = WriteSeed(vm=vm, seed=self.spec.seed, nics=self.spec.nics, instance=vm)
            steps.append(step(destination, seed, undo=DeleteSeed(vm=vm)))
        return steps

    def _passage(self, *, run: bool) -> Step:
        command = self.command
        assert self.destination.facts is not None
        passage = Passage(
            encrypted=self.encrypted,
            bandwidth=command.bandwidth,
            max_downtime=command.max_downtime,
            slow_down=command.autoconverge,
            connections=command.parallel_connections,
            within=command.deadline,
            stall=command.stall,
            on_stall="postcopy" if command.postcopy == "on-stall" else "abort",
        )
        leave = MigrateDomain(
            vm=self.vm.id,
            address=self.destination.facts.address,
            passage=passage,
            copy=tuple(disk.name for disk in self.carried),
        )
        back = ClaimDomain(vm=self.vm.id, spec=self.spec, run=run)
        return self._judged(leave, undo=back, deadline=command.deadline + SETTLING)

    def _judged(
        self, command: MigrateDomain | ClearDomain, *, undo: ClaimDomain, deadline: float = 60.0
    ) -> Step:
        return step(
            self.source.id,
            command,
            undo=undo,
            commits=True,
            deadline=deadline,
            then=(self.moved,),
            judged=(self.source.id, self.destination.id),
        )

    def _arrived(self, *, run: bool) -> list[Step]:
        claim = ClaimDomain(vm=self.vm.id, spec=self.spec, run=run)
        return [step(self.destination.id, claim)]

    def _left(self, *, cleared: bool = False) -> list[Step]:
        """What makes the source forget the VM."""
        vm, source = self.vm.id, self.source.id
        steps = [] if cleared else [step(source, ClearDomain(vm=vm))]
        steps += [step(source, DeleteDisk(vm=vm, disk=disk), deadline=120) for disk in self.carried]
        if self.spec.seed is not None:
            steps.append(step(source, DeleteSeed(vm=vm)))
        return steps

    def _up(self, runs: bool, known: tuple[str, ...] = ()) -> list[Step]:
        ready = self.spec.ready
        if not runs or ready.by == "none":
            return []
        await_ready = AwaitReady(vm=self.vm.id, ready=ready, nics=self.spec.nics, known=known)
        return [step(self.destination.id, await_ready, keep=True, deadline=ready.within + 15)]


def settling(vm: Vm) -> Plan:
    """How a frozen VM is settled once both ends can be seen: the migration is judged anew, then carried through or
    taken back as it would have been."""
    assert vm.frozen is not None
    unsettled = vm.operations[vm.frozen.operation]
    index = next(at for at, each in enumerate(unsettled.steps) if each.judged)
    looked = replace(unsettled.steps[index], command=pack(ObserveDomain(vm=vm.id)), deadline=60.0)
    steps = (*unsettled.steps[:index], looked, *unsettled.steps[index + 1 :])
    return Plan(steps=steps, success=unsettled.success, failure=unsettled.failure, done=index)
