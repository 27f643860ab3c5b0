"""The pure model of a host: whatever is done to it, twice is once, and refusals change nothing."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json
from msgspec.structs import replace

from vmorch.core.codes import CODES
from vmorch.core.hostcommands import (
    AttachDisk,
    AwaitReady,
    BringBack,
    ClaimDomain,
    ClearDomain,
    CopyDisk,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DeleteSeed,
    DetachDisk,
    DomainCommand,
    Done,
    DropBackup,
    DropLayers,
    Failed,
    FetchImage,
    FindStrays,
    GrowDisk,
    MakeLayers,
    Memory,
    MergeLayers,
    MigrateDomain,
    ObserveDomain,
    Passage,
    PrepareArrival,
    Purge,
    RestoreDisk,
    RestoreGuest,
    ResumeDomain,
    RunHook,
    SaveGuest,
    SetAside,
    SetMemory,
    SetVcpus,
    StartDomain,
    StopDomain,
    SuspendDomain,
    TakeBackup,
    TakeSnapshot,
    TuneMigration,
    UndefineDomain,
    VerifyBackup,
    WriteSeed,
)
from vmorch.core.hypervisor import (
    LibvirtHost,
    after_crash,
    after_restart,
    arriving,
    expect,
    half_in,
    layers,
    observe,
    resolve,
    with_half,
)
from vmorch.core.hypervisor_state import with_files
from vmorch.core.ids import Digest, GiB, MiB, VmId
from vmorch.core.layers import stack
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
memories = st.builds(Memory, number=st.integers(1, 3), storage=st.sampled_from(["local", "shared"]))
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
    st.builds(SaveGuest, vm=vms, memory=memories),
    st.builds(RestoreGuest, vm=vms, spec=specs, memory=memories, halted=st.booleans(), spend=st.booleans()),
    st.builds(
        RunHook, name=st.sampled_from(["before-maintenance", "after-maintenance"]), run=st.sampled_from(["r1", "r2"])
    ),
)
Order = Callable[[LibvirtHost], HostCommand]


def told(
    kind: str, vm: VmId, at: int, below: int, memory: Memory, keep: bool, freeze: float | None, wrong: bool
) -> Order:
    """A command about layers as the host has them, or, if so told, as it does not."""

    def order(host: LibvirtHost) -> HostCommand:
        domain = host.domains.get(vm)
        spec = VmSpec(vcpus=1, max_vcpus=2, memory=MiB(128), max_memory=MiB(128), disks=(DISK,))
        spec = spec if domain is None else domain.found
        trees = {disk.name: {number: file.on for number, file in layers(host, vm, disk).items()} for disk in spec.disks}
        if wrong:
            trees = {name: {**tree, 9: 0} for name, tree in trees.items()}
        common = {
            "vm": vm,
            "stacks": tuple(stack(disk, trees[disk.name]) for disk in spec.disks),
            "next": 1 + max(number for tree in trees.values() for number in (0, *tree)),
        }
        above = replace(spec, disks=tuple(replace(disk, layer=common["next"]) for disk in spec.disks))
        name = spec.disks[0].name
        there = sorted(trees[name]) or [0]
        which = there[at % len(there)]
        match kind:
            case "take":
                return TakeSnapshot(spec=above, memory=memory if keep else None, freeze=freeze, **common)
            case "make":
                return MakeLayers(on={name: below}, **common)
            case "drop":
                return DropLayers(layers={name: (which,)}, memory=(memory,) if keep else (), **common)
            case "use":
                return DefineDomain(vm=vm, spec=replace(spec, disks=(replace(spec.disks[0], layer=which),)))
            case "restore":
                return RestoreGuest(vm=vm, spec=spec, memory=memory, halted=wrong, spend=keep)
        into = trees[name].get(which) or 0
        disks = tuple(replace(disk, layer=into) if disk.layer == which else disk for disk in spec.disks)
        return MergeLayers(spec=replace(spec, disks=disks), disk=name, top=which, into=into, **common)

    return order


def tellings(
    vms: st.SearchStrategy[VmId], memories: st.SearchStrategy[Memory] = memories
) -> st.SearchStrategy[Order]:
    return st.builds(
        told,
        kind=st.sampled_from(["take", "take", "make", "drop", "merge", "use", "restore"]),
        vm=vms,
        at=st.integers(0, 4),
        below=st.integers(0, 3),
        memory=memories,
        keep=st.booleans(),
        freeze=st.sampled_from([None, None, 5.0]),
        wrong=st.sampled_from([False, False, False, True]),
    )


orders: st.SearchStrategy[Order] = st.one_of(commands.map(lambda command: lambda host: command), tellings(vms))
kept = st.builds(Memory, number=st.integers(1, 2), storage=st.just("local"))
of_layers: st.SearchStrategy[Order] = st.one_of(
    tellings(st.just(WEB), kept),
    tellings(st.just(WEB), kept),
    st.one_of(
        st.builds(StartDomain, vm=st.just(WEB), halted=st.booleans()),
        st.just(StopDomain(vm=WEB, grace=0, force=True)),
        st.builds(SaveGuest, vm=st.just(WEB), memory=kept),
    ).map(lambda command: lambda host: command),
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


def carried_out(host: LibvirtHost, command: HostCommand) -> LibvirtHost:
    """The host after the command, with everything tried that holds for every one of them."""
    before = resolve(host, command)
    after, answer = expect(host, command)
    if isinstance(answer, Failed):
        assert after == host
        assert answer.code in CODES
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
    assert VmId("pet") not in after.domains
    assert all(left >= 0 for left in after.free.values())
    return after


@settings(max_examples=400, deadline=None)
@given(st.lists(orders, max_size=30))
def test_every_command_is_idempotent_refusals_change_nothing_and_looking_tells_the_truth(asked: list[Order]) -> None:
    host = EMPTY
    for order in asked:
        host = carried_out(host, order(host))


@settings(max_examples=400, deadline=None)
@given(st.lists(of_layers, min_size=3, max_size=30))
def test_so_it_is_with_layers_and_memory_and_every_layer_stands_on_one(asked: list[Order]) -> None:
    host = running()
    for order in asked:
        host = carried_out(host, order(host))
        found = layers(host, WEB, DISK)
        assert all(file.on is None or file.on in found for file in found.values())
        assert all(disk.layer in found for disk in host.domains[WEB].disks)


@given(st.lists(orders, max_size=30))
def test_a_host_is_the_same_after_it_was_written_down_and_off_after_a_power_cut(asked: list[Order]) -> None:
    host = EMPTY
    for order in asked:
        host, _ = expect(host, order(host))
    assert json.decode(json.encode(host), type=LibvirtHost) == host
    assert not any(domain.active for domain in after_crash(host).domains.values())


@given(st.lists(orders, max_size=30))
def test_space_comes_back_when_the_last_file_is_gone(asked: list[Order]) -> None:
    host = EMPTY
    for order in asked:
        host, _ = expect(host, order(host))
    for vm in host.disks.keys() | host.memories.keys():
        host = with_files(host, vm, {}, {})
    assert (host.disks, host.memories) == ({}, {})
    images = sum(max(1, image.size >> 20) for image in host.images.values())
    assert host.free["local"] == EMPTY.free["local"] - images


def running() -> LibvirtHost:
    host, spec = EMPTY, VmSpec(vcpus=1, max_vcpus=2, memory=MiB(64), max_memory=MiB(64), disks=(DISK,))
    for command in (CreateDisk(vm=WEB, disk=DISK), DefineDomain(vm=WEB, spec=spec), StartDomain(vm=WEB)):
        host, answer = expect(host, command)
        assert isinstance(answer, Done)
    return host


def test_a_guest_says_for_how_long_it_was_frozen_and_a_mute_one_is_not_kept() -> None:
    host = running()
    freezing = told("take", WEB, 0, 0, Memory(number=1, storage="local"), False, 5.0, False)(host)
    _, answer = expect(host, freezing)
    assert isinstance(answer, Done)
    assert answer.frozen is not None
    for silent in (replace(host, mute=frozenset({WEB})), expect(host, SuspendDomain(vm=WEB))[0]):
        after, answer = expect(silent, freezing)
        assert isinstance(answer, Failed)
        assert (answer.code, after) == ("freeze-failed", silent)


@pytest.mark.parametrize("reason", sorted(HALTED))
def test_a_guest_that_a_migration_halted_is_neither_saved_nor_restored(reason: str) -> None:
    host, memory = running(), Memory(number=1, storage="local")
    domain = replace(host.domains[WEB], power="paused", reason=reason)
    host = with_half(host, WEB, domain)
    again = RestoreGuest(vm=WEB, spec=domain.spec, memory=memory, spend=True)
    for command in (SaveGuest(vm=WEB, memory=memory), again):
        after, answer = expect(host, command)
        assert isinstance(answer, Failed)
        assert (answer.code, after) == ("libvirt-refused", host)


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
        TakeSnapshot,
        MakeLayers,
        DropLayers,
        MergeLayers,
        SaveGuest,
        RestoreGuest,
        TakeBackup,
        DropBackup,
        VerifyBackup,
        RestoreDisk,
        AttachDisk,
        DetachDisk,
        GrowDisk,
        CopyDisk,
        FindStrays,
        SetAside,
        BringBack,
        Purge,
    }
    assert known == set(HOST_COMMANDS.values())
