"""Real hosts keep the contract of all passages; and what only real ones can do: lose daemons, agents and cables."""

import os
import signal
import time
from collections.abc import Iterator
from uuid import uuid4

import libvirt
import pytest
from contract import scope
from libvirt_host import lab_of
from msgspec.structs import replace
from passages import PLAIN, Leaving, PassageContract, arrival, at_home, do, failed, leave, until
from remote import AgentDied, RemoteHypervisor
from travelling_guest import RealTrip, arriving_on, domain_on

from deploy.lab.lab import Lab
from deploy.lab.process import identify, kill_and_wait
from hostagent.hypervisor import HypervisorLost, Withdrawn
from hostagent.scope import OrderScope
from vmorch.core.hostcommands import (
    ClaimDomain,
    ClearDomain,
    CreateDisk,
    DeleteDisk,
    Done,
    Failed,
    Observed,
    ResumeDomain,
    Sample,
    StartDomain,
    SuspendDomain,
    TuneMigration,
)
from vmorch.core.ids import VmId

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_of(2, tmp_path_factory.mktemp("passages")) as lab:
        yield lab


@pytest.fixture(scope="module")
def guest(lab: Lab) -> RealTrip:
    """One guest for all tests, which goes to and fro."""
    return RealTrip(lab, VmId(str(uuid4())), "shared")


@pytest.fixture
def trip(guest: RealTrip) -> Iterator[RealTrip]:
    guest.ready()
    yield guest
    guest.ticked_once_and_goes_on()


class TestLibvirtPassages(PassageContract):
    pass


@pytest.fixture
def going(trip: RealTrip) -> Leaving:
    """A slow passage that is under way."""
    do(trip.there, arrival(trip))
    going = Leaving(trip, trip.slow)
    going.under_way()
    return going


def test_a_source_whose_libvirtd_dies_on_the_way_keeps_the_guest(trip: RealTrip, going: Leaving) -> None:
    trip.here.host.kill("libvirtd")
    assert isinstance(going.end(), HypervisorLost)
    trip.here.host.start("libvirtd")
    trip.here.reconnect()
    failed(trip.here.resolve(going.command, scope()), "interrupted")
    at_home(trip)


def test_a_source_whose_libvirtd_dies_after_the_switch_over_keeps_a_half_that_nobody_resumes(trip: RealTrip) -> None:
    do(trip.there, arrival(trip))
    libvirtd = trip.here.host.pids()["libvirtd"]
    going = Leaving(trip, PLAIN)
    with arriving_on(trip.there.host, trip.vm) as domain:
        until(lambda: domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
        # it has some tens of milliseconds left until it takes its own half away
        os.kill(libvirtd, signal.SIGKILL)
    assert isinstance(going.end(), HypervisorLost)
    until(lambda: "libvirtd" not in trip.here.host.pids())
    trip.here.host.start("libvirtd")
    trip.here.reconnect()
    left = failed(trip.here.resolve(going.command, scope()), "interrupted").observed
    assert left is not None
    assert (left.power, left.reason, left.moving) == ("paused", "migration", False)
    for command in (StartDomain(vm=trip.vm), ResumeDomain(vm=trip.vm)):
        failed(trip.here.execute(command, scope()), "libvirt-refused")
    assert do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True)).power == "running"
    assert do(trip.here, ClearDomain(vm=trip.vm)).power == "absent"


def test_a_destination_whose_libvirtd_dies_on_the_way_gets_nothing(trip: RealTrip, going: Leaving) -> None:
    trip.there.host.kill("libvirtd")
    failed(going.end(), "migration-failed")
    trip.there.host.start("libvirtd")
    trip.there.reconnect()
    at_home(trip)


def test_a_passage_that_outlives_its_agent_is_followed_to_its_end(trip: RealTrip, going: Leaving) -> None:
    trip.here.kill()
    assert isinstance(going.end(), AgentDied)
    told: list[Sample] = []
    order = OrderScope(time.monotonic, float("inf"), told.append)
    answer = trip.here.resolve(going.command, order)
    assert isinstance(answer, Done), answer
    assert answer.observed == Observed(power="absent")
    assert told
    assert do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True)).power == "running"


def test_a_passage_that_outlives_its_agent_can_still_be_withdrawn(trip: RealTrip, going: Leaving) -> None:
    trip.here.kill()
    assert isinstance(going.end(), AgentDied)
    order = scope()
    order.withdraw()
    began = time.monotonic()
    with pytest.raises(Withdrawn):
        trip.here.resolve(going.command, order)
    assert time.monotonic() - began < 6, "two seconds, a new process and a loaded machine"
    at_home(trip)


def test_a_passage_that_outlives_its_agent_is_still_held_to_its_limits(trip: RealTrip) -> None:
    trip.restless()
    do(trip.there, arrival(trip))
    going = Leaving(trip, replace(trip.endless, within=8))
    going.under_way()
    trip.here.kill()
    going.end()
    stalled = failed(trip.here.resolve(going.command, scope()), "migration-stalled")
    assert "not over within 8 s" in stalled.message
    at_home(trip)


def test_a_cable_pulled_in_the_switch_over_costs_a_pause_and_nothing_else(trip: RealTrip) -> None:
    """QEMU hangs in the kernel, monitor and all, when the line dies in this moment."""
    trip.restless()
    do(trip.there, arrival(trip))
    going, logged = Leaving(trip, replace(trip.endless, max_downtime=20)), len(trip.here.log())
    until(lambda: trip.here.observe(trip.vm).power == "paused")
    trip.there.host.cut_link()
    try:
        going.scope.withdraw()
        assert isinstance(going.end(90), Withdrawn | Failed)
        assert until(lambda: not trip.here.observe(trip.vm).moving)
        until(lambda: trip.here.observe(trip.vm).power == "running")
    finally:
        trip.there.host.restore_link()
    assert "connections cut" in trip.here.log()[logged:]
    at_home(trip)


def _switch_over(trip: RealTrip, going: Leaving) -> None:
    going.under_way()
    do(trip.here, TuneMigration(vm=trip.vm, postcopy=True))
    # in the first moment libvirt does not notice that a line breaks, and hangs for ever at both ends
    until(lambda: len([each for each in going.samples if each.postcopy]) > 3)
    there = trip.there.observe(trip.vm)
    assert (there.reason, trip.here.observe(trip.vm).reason) == ("postcopy", "postcopy")


def test_a_switched_over_guest_outlives_a_break_of_its_line(guest: RealTrip) -> None:
    guest.ready()
    do(guest.there, arrival(guest))
    going = Leaving(guest, replace(guest.endless, on_stall="postcopy"))
    _switch_over(guest, going)
    with domain_on(guest.here.host, guest.vm) as domain:
        domain.abortJobFlags(libvirt.VIR_DOMAIN_ABORT_JOB_POSTCOPY)
    _outlived(guest, going, 120)


def test_a_switched_over_guest_outlives_a_pulled_cable(guest: RealTrip) -> None:
    guest.ready()
    do(guest.there, arrival(guest))
    going = Leaving(guest, replace(guest.endless, on_stall="postcopy"))
    _switch_over(guest, going)
    guest.there.host.cut_link()
    try:
        until(lambda: guest.here.observe(guest.vm).reason == "postcopy failed")
    finally:
        guest.there.host.restore_link()
    _outlived(guest, going, 140)


def _outlived(trip: RealTrip, going: Leaving, within: float) -> None:
    assert isinstance(going.end(within), Done)
    claimed = do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True))
    assert (claimed.power, claimed.reason) == ("running", "")
    trip.ticked_once_and_goes_on()


def test_a_half_whose_other_half_died_is_cut_off_and_never_resumed(guest: RealTrip) -> None:
    guest.ready()
    do(guest.there, arrival(guest))
    going = Leaving(guest, replace(PLAIN, bandwidth=4, on_stall="postcopy"))
    _switch_over(guest, going)
    failed(guest.here.execute(ClearDomain(vm=guest.vm), scope()), "busy")
    qemu = identify(guest.there.host.qemus()[guest.vm])
    assert qemu is not None
    kill_and_wait(qemu)
    failed(going.end(120), "migration-failed")
    left = guest.here.observe(guest.vm)
    assert (left.power, left.reason, left.moving) == ("paused", "postcopy failed", False)
    for command in (StartDomain(vm=guest.vm), ResumeDomain(vm=guest.vm)):
        failed(guest.here.execute(command, scope()), "libvirt-refused")
    assert do(guest.here, ClaimDomain(vm=guest.vm, spec=guest.spec, run=True)).power == "off"


def test_a_guest_that_came_paused_is_not_lost_by_leaving_paused(trip: RealTrip) -> None:
    """QEMU before 10 dies of it."""
    do(trip.here, SuspendDomain(vm=trip.vm))
    do(trip.there, arrival(trip))
    assert isinstance(Leaving(trip, PLAIN).end(), Done)
    do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=False))
    trip.here, trip.there = trip.there, trip.here
    do(trip.there, arrival(trip))
    refused = failed(Leaving(trip, PLAIN).end(), "migration-failed")
    assert "resume it" in refused.message
    do(trip.here, ResumeDomain(vm=trip.vm))
    do(trip.here, SuspendDomain(vm=trip.vm))
    assert isinstance(Leaving(trip, PLAIN).end(), Done)
    do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=False))
    do(trip.there, ResumeDomain(vm=trip.vm))


def test_what_libvirt_knows_of_snapshots_and_checkpoints_goes_along(trip: RealTrip) -> None:
    with domain_on(trip.here.host, trip.vm) as domain:
        for name in ("first", "second"):
            domain.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")
        domain.checkpointCreateXML("<domaincheckpoint><name>point</name></domaincheckpoint>")
    do(trip.there, arrival(trip))
    going = Leaving(trip, trip.slow)
    going.under_way()
    going.scope.withdraw()
    assert isinstance(going.end(), Withdrawn)
    assert _known(trip.here, trip.vm) == (["first", "second"], "second", ["point"])
    at_home(trip)
    do(trip.there, arrival(trip))
    going = Leaving(trip, trip.slow)
    going.under_way()
    trip.here.kill()
    going.end()
    order = scope()
    order.withdraw()
    with pytest.raises(Withdrawn):
        trip.here.resolve(going.command, order)
    assert _known(trip.here, trip.vm) == (["first", "second"], "second", ["point"])
    at_home(trip)
    do(trip.there, arrival(trip))
    assert isinstance(Leaving(trip, PLAIN).end(), Done)
    do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True))
    assert _known(trip.there, trip.vm) == (["first", "second"], "second", ["point"])
    with domain_on(trip.there.host, trip.vm) as domain:
        assert "luggage" not in domain.XMLDesc()
        domain.checkpointLookupByName("point").delete()
        for name in ("second", "first"):
            domain.snapshotLookupByName(name).delete()


def _known(end: RemoteHypervisor, vm: VmId) -> tuple[list[str], str, list[str]]:
    with domain_on(end.host, vm) as domain:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL
        snapshots = [each.getName() for each in domain.listAllSnapshots(flags)]
        return snapshots, domain.snapshotCurrent().getName(), [each.getName() for each in domain.listAllCheckpoints()]


def test_local_disks_go_along_when_they_are_carried(lab: Lab) -> None:
    trip = RealTrip(lab, VmId(str(uuid4())), "local")
    try:
        trip.ready()
        do(trip.there, arrival(trip))
        refused = failed(trip.here.execute(leave(trip, PLAIN), scope()), "migration-failed")
        assert "stay behind" in refused.message
        do(trip.there, CreateDisk(vm=trip.vm, disk=trip.disk))
        carried = leave(trip, replace(PLAIN, connections=2, on_stall="postcopy"), "vda")
        assert do(trip.here, carried).power == "absent"
        do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True))
        do(trip.here, DeleteDisk(vm=trip.vm, disk=trip.disk))
        trip.ticked_once_and_goes_on()
    finally:
        trip.remove()
