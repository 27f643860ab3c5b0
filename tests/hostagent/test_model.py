"""The pure model of a host: whatever is done to it, twice is once, and refusals change nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json
from msgspec.structs import replace

from vmorch.core.codes import OUTCOMES
from vmorch.core.hostcommands import (
    AwaitReady,
    ClaimDomain,
    ClearDomain,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DeleteSeed,
    DomainCommand,
    Done,
    Failed,
    FetchImage,
    MigrateDomain,
    ObserveDomain,
    Passage,
    PrepareArrival,
    ResumeDomain,
    RunHook,
    SetMemory,
    SetVcpus,
    StartDomain,
    StopDomain,
    SuspendDomain,
    TuneMigration,
    UndefineDomain,
    WriteSeed,
)
from vmorch.core.hypervisor import (
    LibvirtHost,
    after_crash,
    after_restart,
    arriving,
    expect,
    half_in,
    observe,
    resolve,
    with_half,
)
from vmorch.core.ids import Digest, GiB, MiB, VmId
from vmorch.core.messages import HOST_COMMANDS, HostCommand
from vmorch.core.migration import HALTED, Cell, cell
from vmorch.core.spec import DiskSpec, ImagePin, NicSpec, ReadySpec, SeedSpec, VmSpec

GOOD, MISSING, CORRUPT = (
    ImagePin(digest=Digest(letter * 64), format="qcow2", size=8 << 20, virtual_size=2 << 30) for letter in "abc"
)
WEB, DISK = VmId("v1"), DiskSpec(name="vda", size=GiB(1))
vms = st.sampled_from([VmId("v1"), VmId("v2"), VmId("deaf"), VmId("mute"), VmId("pet")])
images = st.sampled_from([GOOD, MISSING, CORRUPT])
disks = st.builds(
    DiskSpec,
    name=st.sampled_from(["vda", "vdb"]),
    size=st.sampled_from([GiB(1), GiB(4), GiB(500)]),
    storage=st.sampled_from(["local", "shared"]),
    image=st.none() | images,
)
specs = st.builds(
    VmSpec,
    vcpus=st.just(1),
    max_vcpus=st.sampled_from([2, 4]),
    memory=st.just(MiB(128)),
    max_memory=st.sampled_from([MiB(128), MiB(256)]),
    disks=st.tuples(disks),
)
seeds = st.builds(SeedSpec, hostname=st.sampled_from(["a", "b"]))
commands: st.SearchStrategy[HostCommand] = st.one_of(
    st.builds(lambda image: FetchImage(image=image, path=f"/v1/images/{image.digest}/content"), images),
    st.builds(CreateDisk, vm=vms, disk=disks),
    st.builds(DeleteDisk, vm=vms, disk=disks),
    st.builds(WriteSeed, vm=vms, seed=seeds, nics=st.just(()), instance=st.sampled_from(["1", "2"])),
    st.builds(DeleteSeed, vm=vms),
    st.builds(DefineDomain, vm=vms, spec=specs),
    st.builds(UndefineDomain, vm=vms),
    st.builds(StartDomain, vm=vms, halted=st.booleans()),
    st.builds(StopDomain, vm=vms, grace=st.sampled_from([0.0, 5.0]), force=st.booleans()),
    st.builds(SuspendDomain, vm=vms),
    st.builds(ResumeDomain, vm=vms),
    st.builds(SetVcpus, vm=vms, vcpus=st.integers(1, 5)),
    st.builds(SetMemory, vm=vms, memory=st.sampled_from([MiB(64), MiB(128), MiB(512)])),
    st.builds(AwaitReady, vm=vms, ready=st.just(ReadySpec()), nics=st.just(())),
    st.builds(PrepareArrival, vm=vms, spec=specs, encrypted=st.booleans()),
    st.builds(MigrateDomain, vm=vms, address=st.just("h2"), passage=st.just(Passage(encrypted=True))),
    st.builds(TuneMigration, vm=vms, bandwidth=st.sampled_from([0, 10])),
    st.builds(ObserveDomain, vm=vms),
    st.builds(ClearDomain, vm=vms),
    st.builds(ClaimDomain, vm=vms, spec=specs, run=st.booleans()),
    st.builds(
        RunHook, name=st.sampled_from(["before-maintenance", "after-maintenance"]), run=st.sampled_from(["r1", "r2"])
    ),
)
EMPTY = LibvirtHost(
    free={"local": 600 * 1024},
    foreign=("pet",),
    missing=frozenset({MISSING.digest}),
    corrupt=frozenset({CORRUPT.digest}),
    deaf=frozenset({VmId("deaf")}),
    mute=frozenset({VmId("mute")}),
    failing_hooks=frozenset({"after-maintenance"}),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(commands, max_size=30))
def test_every_command_is_idempotent_refusals_change_nothing_and_looking_tells_the_truth(
    orders: list[HostCommand],
) -> None:
    host = EMPTY
    for command in orders:
        before = resolve(host, command)
        after, answer = expect(host, command)
        if isinstance(answer, Failed):
            assert after == host
            assert answer.code in OUTCOMES
            assert isinstance(before, Failed)
        else:
            again, repeated = expect(after, command)
            assert again == after
            assert isinstance(repeated, Done)
            assert repeated.observed == answer.observed
            assert isinstance(resolve(after, command), Done)
            assert isinstance(before, Done) == (after == host)
            if isinstance(command, DomainCommand) and answer.observed is not None:
                assert answer.observed == observe(after, command.vm)
        host = after
        assert VmId("pet") not in host.domains
        assert all(left >= 0 for left in host.free.values())


@given(st.lists(commands, max_size=30))
def test_a_host_is_the_same_after_it_was_written_down_and_off_after_a_power_cut(orders: list[HostCommand]) -> None:
    host = EMPTY
    for command in orders:
        host, _ = expect(host, command)
    assert json.decode(json.encode(host), type=LibvirtHost) == host
    assert not any(domain.active for domain in after_crash(host).domains.values())


def running() -> LibvirtHost:
    host, spec = EMPTY, VmSpec(vcpus=1, max_vcpus=2, memory=MiB(64), max_memory=MiB(64), disks=(DISK,))
    for command in (CreateDisk(vm=WEB, disk=DISK), DefineDomain(vm=WEB, spec=spec), StartDomain(vm=WEB)):
        host, answer = expect(host, command)
        assert isinstance(answer, Done)
    return host


@pytest.mark.parametrize("reason", sorted(HALTED))
def test_a_guest_that_a_migration_halted_runs_on_only_when_it_is_claimed(reason: str) -> None:
    host = running()
    domain = replace(host.domains[WEB], power="paused", reason=reason)
    host = with_half(host, WEB, domain)
    for command in (StartDomain(vm=WEB), ResumeDomain(vm=WEB)):
        after, answer = expect(host, command)
        assert isinstance(answer, Failed)
        assert after == host
    after, answer = expect(host, ClaimDomain(vm=WEB, spec=domain.spec, run=True))
    assert observe(after, WEB).power == ("running" if reason == "migration" else "off")
    left, answer = expect(host, ClearDomain(vm=WEB))
    # the other half needs the memory of this one
    assert (WEB in left.domains) == isinstance(answer, Failed) == (reason == "postcopy")


def test_a_claim_leaves_a_pause_of_the_users_own() -> None:
    host, _ = expect(running(), SuspendDomain(vm=WEB))
    for run in (True, False):
        after, answer = expect(host, ClaimDomain(vm=WEB, spec=host.domains[WEB].spec, run=run))
        assert after == host
        assert isinstance(answer, Done)


def test_what_runs_is_neither_cleared_nor_in_the_way_by_any_other_name() -> None:
    host = running()
    spec = host.domains[WEB].spec
    for command in (ClearDomain(vm=WEB), PrepareArrival(vm=WEB, spec=spec)):
        after, answer = expect(host, command)
        assert isinstance(answer, Failed)
        assert (answer.code, after) == ("runs-here", host)


def test_an_arrival_is_told_everything_that_stands_in_its_way() -> None:
    host = replace(EMPTY, available=MiB(64), networks=("lab",), machines=("pc-q35-7.2",), encrypts=False)
    shared = replace(DISK, storage="shared")
    nic = NicSpec(mac="52:54:00:00:00:01", network="office")
    spec = VmSpec(vcpus=1, max_vcpus=1, memory=MiB(128), max_memory=MiB(128), disks=(shared,), nics=(nic,))
    after, answer = expect(host, PrepareArrival(vm=WEB, spec=spec, machine="pc-q35-9.2"))
    assert isinstance(answer, Failed)
    assert (answer.code, after) == ("arrival-blocked", host)
    assert len(answer.blockers) == 5
    assert answer.message == "; ".join(answer.blockers)


def test_a_restart_of_libvirt_keeps_guests_that_were_leaving_and_drops_those_that_were_coming() -> None:
    host = running()
    domain = host.domains[WEB]
    leaving = with_half(host, WEB, replace(domain, moving=True))
    coming = with_half(host, WEB, arriving(domain))
    assert observe(coming, WEB).moving
    assert after_restart(leaving) == host
    assert WEB not in after_restart(coming).domains


def test_a_half_can_be_left_in_every_cell() -> None:
    domain = running().domains[WEB]
    cells: tuple[Cell, ...] = ("absent", "off", "paused", "running")
    for left in cells:
        assert cell(observe(with_half(EMPTY, WEB, half_in(left, domain)), WEB)) == left


def test_the_model_knows_every_host_command() -> None:
    known = {
        FetchImage,
        CreateDisk,
        DeleteDisk,
        WriteSeed,
        DeleteSeed,
        DefineDomain,
        UndefineDomain,
        StartDomain,
        StopDomain,
        SuspendDomain,
        ResumeDomain,
        SetVcpus,
        SetMemory,
        AwaitReady,
        PrepareArrival,
        MigrateDomain,
        TuneMigration,
        ObserveDomain,
        ClearDomain,
        ClaimDomain,
        RunHook,
    }
    assert known == set(HOST_COMMANDS.values())
