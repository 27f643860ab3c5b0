"""Simulated hosts keep the contract of all passages, and leave a guest in any pair of states on demand."""

import itertools
from collections.abc import Callable

import pytest
from contract import DISK, SPEC, scope
from msgspec.structs import replace
from passages import PLAIN, Leaving, PassageContract, arrival, do, failed, leave
from scripted import FACTS, new_vm

from hostagent.hypervisor import HypervisorLost, Withdrawn
from hostagent.simulated_hypervisor import SimulatedHypervisor
from hostagent.simulated_passage import Leftover
from hostagent.simulated_site import Site
from vmorch.core.hostcommands import (
    ClaimDomain,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    Done,
    Failed,
    MakeLayers,
    Memory,
    MigrateDomain,
    ObserveDomain,
    Passage,
    PrepareArrival,
    RestoreGuest,
    StartDomain,
    StopDomain,
    TakeSnapshot,
)
from vmorch.core.hypervisor import LibvirtHost, content, remembering, written
from vmorch.core.layers import stack
from vmorch.core.messages import HostCommand
from vmorch.core.migration import TABLE, cell

SHARED = replace(DISK, storage="shared")


class SimulatedTrip:
    """A guest on one of two simulated hosts that share a storage."""

    slow = endless = PLAIN

    def __init__(self, seconds: float = 1.0) -> None:
        self.site = Site()
        self.here, self.there = (_host(name, self.site, seconds) for name in ("h1", "h2"))
        self.vm, self.spec = new_vm(), replace(SPEC, disks=(SHARED,))
        start = (CreateDisk(vm=self.vm, disk=SHARED), DefineDomain(vm=self.vm, spec=self.spec), StartDomain(vm=self.vm))
        for command in start:
            do(self.here, command)

    def restless(self) -> None:
        self.here.starve_next_passage()


def _host(name: str, site: Site, seconds: float) -> SimulatedHypervisor:
    facts = replace(FACTS, hostname=name, address=name, shared_id="s")
    host = LibvirtHost(free={"local": 100 * 1024, "shared": 100 * 1024}, machines=facts.machines)
    return SimulatedHypervisor(facts, host, seconds=_passages_take(seconds), site=site)


def _passages_take(seconds: float) -> Callable[[HostCommand], float]:
    return lambda command: seconds if isinstance(command, MigrateDomain) else 0.0


@pytest.fixture
def trip() -> SimulatedTrip:
    return SimulatedTrip()


class TestSimulatedPassages(PassageContract):
    pass


@pytest.mark.parametrize(("ends", "call"), [*itertools.product(TABLE, ["done", "failed", "lost"])])
def test_a_passage_leaves_its_halves_as_it_is_told(ends: tuple[str, str], call: str) -> None:
    trip = SimulatedTrip(seconds=0)
    do(trip.there, arrival(trip))
    trip.here.leave_next_passage(Leftover(*ends, call))  # type: ignore[arg-type]  # the table's own words
    answer = Leaving(trip, PLAIN).end()
    match call:
        case "done":
            assert isinstance(answer, Done)
        case "failed":
            failed(answer, "migration-failed")
        case "lost":
            assert isinstance(answer, HypervisorLost)
            trip.here.come_back()
    seen = tuple(cell(do(each, ObserveDomain(vm=trip.vm))) for each in (trip.here, trip.there))
    assert seen == ends
    resolved = trip.here.resolve(leave(trip, PLAIN), scope())
    assert isinstance(resolved, Done) == (ends[0] == "absent")


@pytest.mark.parametrize("when", ["lost-before", "lost-during"])
def test_a_daemon_that_ends_before_the_switch_over_leaves_the_guest_at_home(trip: SimulatedTrip, when: str) -> None:
    do(trip.there, arrival(trip))
    trip.here.vanish_at_next(when, MigrateDomain.kind)  # type: ignore[arg-type]
    going = Leaving(trip, PLAIN)
    assert isinstance(going.end(), HypervisorLost)
    trip.here.come_back()
    interrupted = failed(trip.here.resolve(going.command, scope()), "interrupted")
    assert interrupted.observed is not None
    assert (interrupted.observed.power, interrupted.observed.moving) == ("running", False)
    assert do(trip.there, ObserveDomain(vm=trip.vm)).power == "absent"


def test_a_destination_that_ends_on_the_way_leaves_the_guest_at_home(trip: SimulatedTrip) -> None:
    do(trip.there, arrival(trip))
    going = Leaving(trip, PLAIN)
    going.under_way()
    trip.there.vanish()
    failed(going.end(), "migration-failed")
    trip.there.come_back()
    assert do(trip.here, ObserveDomain(vm=trip.vm)).power == "running"
    assert do(trip.there, ObserveDomain(vm=trip.vm)).power == "absent"


def test_a_passage_that_outlives_its_agent_is_followed_and_can_be_withdrawn(trip: SimulatedTrip) -> None:
    do(trip.there, arrival(trip))
    going = Leaving(trip, PLAIN)
    going.under_way()
    followed = trip.here.resolve(going.command, scope())
    assert isinstance(followed, Done)
    assert isinstance(going.end(), Done)
    back = Leaving(_reversed(trip), PLAIN)
    back.under_way()
    order = scope()
    order.withdraw()
    with pytest.raises(Withdrawn):
        trip.there.resolve(back.command, order)
    failed(back.end(), "migration-failed")
    assert do(trip.there, ObserveDomain(vm=trip.vm)).power == "running"


def _reversed(trip: SimulatedTrip) -> SimulatedTrip:
    trip.here, trip.there = trip.there, trip.here
    do(trip.there, arrival(trip))
    back = SimulatedTrip.__new__(SimulatedTrip)
    back.here, back.there, back.vm, back.spec = trip.here, trip.there, trip.vm, trip.spec
    trip.here, trip.there = trip.there, trip.here
    return back


def test_a_local_disk_goes_along_only_when_it_is_carried(trip: SimulatedTrip) -> None:
    vm, disk = new_vm(), DISK
    spec = replace(SPEC, disks=(disk,))
    for command in (CreateDisk(vm=vm, disk=disk), DefineDomain(vm=vm, spec=spec), StartDomain(vm=vm)):
        do(trip.here, command)
    order = MigrateDomain(vm=vm, address="h2", passage=Passage(encrypted=True))
    assert "stay behind" in failed(trip.here.execute(order, scope()), "migration-failed").message
    carried = replace(order, copy=("vda",))
    assert "cannot access" in failed(trip.here.execute(carried, scope()), "migration-failed").message
    do(trip.there, CreateDisk(vm=vm, disk=disk))
    assert do(trip.here, carried).power == "absent"
    do(trip.here, DeleteDisk(vm=vm, disk=disk))
    assert do(trip.there, ObserveDomain(vm=vm)).power == "running"


def test_what_lies_on_shared_storage_is_seen_by_all_who_share_it(trip: SimulatedTrip) -> None:
    alone = SimulatedHypervisor(replace(FACTS, hostname="h3", address="h3"), LibvirtHost(), site=trip.site)
    refused = alone.execute(arrival(trip), scope())
    assert isinstance(refused, Failed)
    assert "shared storage" in refused.message
    do(trip.there, arrival(trip))
    free = trip.here.host.free["shared"]
    other = new_vm()
    do(trip.there, CreateDisk(vm=other, disk=SHARED))
    assert trip.here.host.free["shared"] == free - 1
    do(trip.here, DeleteDisk(vm=other, disk=SHARED))
    assert other not in trip.there.host.disks
    assert trip.there.host.free == trip.here.host.free


def test_layers_and_kept_memory_on_shared_storage_are_at_the_destination_too() -> None:
    trip = SimulatedTrip(seconds=0)
    vm, memory = trip.vm, Memory(number=1, storage="shared")
    trip.here.tamper(lambda host: remembering(written(host, vm, "vda", 0, 1), vm, "then"))
    above = replace(trip.spec, disks=(replace(SHARED, layer=1),))
    told = {"vm": vm, "stacks": (stack(SHARED, {0: None}),), "next": 1}
    do(trip.here, TakeSnapshot(spec=above, memory=memory, **told))
    trip.here.tamper(lambda host: remembering(written(host, vm, "vda", 0, 2), vm, "now"))
    lacking = replace(above, disks=(replace(SHARED, layer=2),))
    failed(trip.there.execute(PrepareArrival(vm=vm, spec=lacking, encrypted=False), scope()), "arrival-blocked")
    do(trip.there, PrepareArrival(vm=vm, spec=above, encrypted=False))
    do(trip.here, leave(trip, PLAIN))
    do(trip.there, ClaimDomain(vm=vm, spec=above, run=True))
    domain = trip.there.host.domains[vm]
    assert (domain.power, domain.ram) == ("running", "now")
    assert content(trip.there.host, vm, domain.disks[0]) == {0: 2}

    back = replace(above, disks=(replace(SHARED, layer=2),))
    told = {"vm": vm, "stacks": (stack(above.disks[0], {0: None, 1: 0}),), "next": 2}
    do(trip.there, MakeLayers(on={"vda": 0}, **told))
    do(trip.there, StopDomain(vm=vm, grace=0, force=True))
    do(trip.there, DefineDomain(vm=vm, spec=back))
    do(trip.there, RestoreGuest(vm=vm, spec=back, memory=memory, spend=True))
    domain = trip.there.host.domains[vm]
    assert (domain.power, domain.ram) == ("running", "then")
    for host in (trip.here.host, trip.there.host):
        assert content(host, vm, back.disks[0]) == {0: 1}
        assert vm not in host.memories
    assert trip.there.host.free == trip.here.host.free


def test_a_copied_disk_brings_what_was_written_to_it_and_nothing_from_below() -> None:
    """Which is why a disk of several layers must not be carried so."""
    trip, vm = SimulatedTrip(seconds=0), new_vm()
    spec = replace(SPEC, disks=(DISK,))
    for command in (CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=spec), StartDomain(vm=vm)):
        do(trip.here, command)
    trip.here.tamper(lambda host: written(host, vm, "vda", 0, 1))
    do(trip.there, CreateDisk(vm=vm, disk=DISK))
    do(trip.here, MigrateDomain(vm=vm, address="h2", passage=PLAIN, copy=("vda",)))
    assert content(trip.there.host, vm, DISK) == {0: 1}

    above = replace(spec, disks=(replace(DISK, layer=1),))
    do(trip.there, TakeSnapshot(vm=vm, stacks=(stack(DISK, {0: None}),), next=1, spec=above))
    trip.there.tamper(lambda host: written(host, vm, "vda", 1, 2))
    do(trip.here, DeleteDisk(vm=vm, disk=DISK))
    do(trip.here, CreateDisk(vm=vm, disk=above.disks[0]))
    do(trip.there, MigrateDomain(vm=vm, address="h1", passage=PLAIN, copy=("vda",)))
    assert content(trip.here.host, vm, above.disks[0]) == {1: 2}
