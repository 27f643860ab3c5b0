"""The pure model of a host: whatever is done to it, twice is once, and refusals change nothing."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json

from vmorch.core.codes import OUTCOMES
from vmorch.core.hostcommands import (
    AwaitReady,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DeleteSeed,
    DomainCommand,
    Done,
    Failed,
    FetchImage,
    ResumeDomain,
    SetMemory,
    SetVcpus,
    StartDomain,
    StopDomain,
    SuspendDomain,
    UndefineDomain,
    WriteSeed,
)
from vmorch.core.hypervisor import LibvirtHost, after_crash, expect, observe, resolve
from vmorch.core.ids import Digest, GiB, MiB, VmId
from vmorch.core.messages import HOST_COMMANDS, HostCommand
from vmorch.core.spec import DiskSpec, ImagePin, ReadySpec, SeedSpec, VmSpec

GOOD, MISSING, CORRUPT = (
    ImagePin(digest=Digest(letter * 64), format="qcow2", size=8 << 20, virtual_size=2 << 30) for letter in "abc"
)
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
    st.builds(StartDomain, vm=vms),
    st.builds(StopDomain, vm=vms, grace=st.sampled_from([0.0, 5.0]), force=st.booleans()),
    st.builds(SuspendDomain, vm=vms),
    st.builds(ResumeDomain, vm=vms),
    st.builds(SetVcpus, vm=vms, vcpus=st.integers(1, 5)),
    st.builds(SetMemory, vm=vms, memory=st.sampled_from([MiB(64), MiB(128), MiB(512)])),
    st.builds(AwaitReady, vm=vms, ready=st.just(ReadySpec()), nics=st.just(())),
)
EMPTY = LibvirtHost(
    free={"local": 600 * 1024},
    foreign=("pet",),
    missing=frozenset({MISSING.digest}),
    corrupt=frozenset({CORRUPT.digest}),
    deaf=frozenset({VmId("deaf")}),
    mute=frozenset({VmId("mute")}),
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
    }
    assert known == set(HOST_COMMANDS.values())
