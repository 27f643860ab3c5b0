"""What a real libvirt host does beyond the common contract: ownership, drift, crashes, and guests that boot."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest
from contract import DISK, SPEC, fetch, scope
from libvirt_host import CLUSTER, ImageServer, empty_qcow2, hypervisor_on, lab_of, pin
from msgspec.structs import replace

from deploy.lab.host import Host
from deploy.lab.images import cached_tiny
from hostagent.accel import boots_with, choose_domain_type
from hostagent.hypervisor import HypervisorLost
from hostagent.libvirt_hypervisor import LibvirtHypervisor
from vmorch.core.hostcommands import (
    AwaitReady,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DeleteSeed,
    Done,
    Failed,
    ResumeDomain,
    SetMemory,
    StartDomain,
    StopDomain,
    SuspendDomain,
    UndefineDomain,
    WriteSeed,
)
from vmorch.core.ids import GiB, MiB, VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import DiskSpec, NicSpec, ReadySpec, SeedSpec, VmSpec

pytestmark = pytest.mark.libvirt

FOREIGN = (
    "<domain type='qemu'>{uuid}<name>{name}</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with lab_of(1, tmp_path_factory.mktemp("libvirt")) as lab:
        yield lab.hosts[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    server = ImageServer(empty_qcow2(tmp_path_factory.mktemp("image")))
    yield server
    server.close()


@pytest.fixture
def hypervisor(host: Host, server: ImageServer) -> Iterator[LibvirtHypervisor]:
    hypervisor = hypervisor_on(host.uri, host.local, host.shared, server.url)
    yield hypervisor
    hypervisor.close()


@pytest.fixture
def vm(hypervisor: LibvirtHypervisor, host: Host) -> Iterator[VmId]:
    """A VM's id; nothing of it is left afterwards, not even a directory."""
    vm = VmId(str(uuid4()))
    yield vm
    for command in (
        StopDomain(vm=vm, grace=0, force=True),
        UndefineDomain(vm=vm),
        DeleteDisk(vm=vm, disk=DISK),
        DeleteDisk(vm=vm, disk=replace(DISK, storage="shared")),
        DeleteSeed(vm=vm),
    ):
        hypervisor.execute(command, scope())
    assert not (host.local / "vmorch/vms" / vm).exists()
    assert not (host.shared / "vmorch/vms" / vm).exists()


@pytest.fixture
def defined(hypervisor: LibvirtHypervisor, vm: VmId) -> VmId:
    do(hypervisor, CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC))
    return vm


@pytest.fixture
def outside(host: Host) -> Iterator[libvirt.virConnect]:
    """Somebody else's connection to the same libvirtd."""
    connection = libvirt.open(host.uri)
    yield connection
    connection.close()


def do(hypervisor: LibvirtHypervisor, *commands: HostCommand) -> Done:
    answer: Done | Failed = Done()
    for command in commands:
        answer = hypervisor.execute(command, scope(120))
        assert isinstance(answer, Done), (command, answer)
    assert isinstance(answer, Done)
    return answer


def refused(hypervisor: LibvirtHypervisor, command: HostCommand, code: str) -> Failed:
    answer = hypervisor.execute(command, scope())
    assert isinstance(answer, Failed), answer
    assert answer.code == code, answer
    return answer


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def foreign(vm: VmId, outside: libvirt.virConnect) -> Iterator[libvirt.virDomain]:
    """A domain with the uuid and name that a VM of ours would have, made by somebody else."""
    domain = outside.defineXML(FOREIGN.format(uuid=f"<uuid>{vm}</uuid>", name=vm))
    yield domain
    domain.undefine()


def test_a_domain_that_is_not_ours_is_never_touched(
    hypervisor: LibvirtHypervisor, vm: VmId, foreign: libvirt.virDomain
) -> None:
    before = foreign.XMLDesc()
    for command in (
        DefineDomain(vm=vm, spec=SPEC),
        StartDomain(vm=vm),
        StopDomain(vm=vm, grace=0, force=True),
        UndefineDomain(vm=vm),
    ):
        refused(hypervisor, command, "not-ours")
    assert foreign.XMLDesc() == before
    assert vm in hypervisor.inventory().unmanaged
    assert hypervisor.observe(vm).power == "absent"


def test_a_name_that_somebody_else_took_is_refused(
    hypervisor: LibvirtHypervisor, vm: VmId, outside: libvirt.virConnect
) -> None:
    domain = outside.defineXML(FOREIGN.format(uuid="", name=vm))
    try:
        refused(hypervisor, DefineDomain(vm=vm, spec=SPEC), "not-ours")
        refused(hypervisor, StartDomain(vm=vm), "not-ours")
    finally:
        domain.undefine()


def test_another_clusters_domain_is_not_ours(
    hypervisor: LibvirtHypervisor, defined: VmId, outside: libvirt.virConnect
) -> None:
    xml = outside.lookupByUUIDString(defined).XMLDesc()
    outside.defineXML(xml.replace(f'cluster="{CLUSTER}"', 'cluster="other"'))
    refused(hypervisor, UndefineDomain(vm=defined), "not-ours")
    outside.defineXML(xml)


def test_what_somebody_edited_shows_as_drift_until_it_is_defined_again(
    hypervisor: LibvirtHypervisor, defined: VmId, outside: libvirt.virConnect
) -> None:
    assert hypervisor.inventory().configuration == {}
    outside.lookupByUUIDString(defined).setVcpusFlags(2, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert hypervisor.inventory().configuration == {defined: {"vcpus": ("1", "2")}}
    assert isinstance(hypervisor.resolve(DefineDomain(vm=defined, spec=SPEC), scope()), Failed)
    assert not do(hypervisor, DefineDomain(vm=defined, spec=SPEC)).already
    assert hypervisor.inventory().configuration == {}


def test_a_new_definition_keeps_devices_at_their_addresses(
    hypervisor: LibvirtHypervisor, defined: VmId, outside: libvirt.virConnect
) -> None:
    def addresses() -> list[str]:
        xml = outside.lookupByUUIDString(defined).XMLDesc()
        return [line.strip() for line in xml.splitlines() if "<address " in line or "machine=" in line]

    before = addresses()
    do(hypervisor, DefineDomain(vm=defined, spec=replace(SPEC, vcpus=2, memory=MiB(64))))
    assert addresses() == before


def test_a_start_that_is_over_again_counts_as_done(
    hypervisor: LibvirtHypervisor, defined: VmId, outside: libvirt.virConnect
) -> None:
    assert isinstance(hypervisor.resolve(StartDomain(vm=defined), scope()), Failed)
    for _ in range(2):
        do(hypervisor, StartDomain(vm=defined))
        outside.lookupByUUIDString(defined).destroy()
        resolved = hypervisor.resolve(StartDomain(vm=defined), scope())
        assert isinstance(resolved, Done), resolved
        assert resolved.observed is not None
        assert resolved.observed.power == "off"
        # any other order says that the start's answer was given
        do(hypervisor, StopDomain(vm=defined, grace=0, force=True))
        assert isinstance(hypervisor.resolve(StartDomain(vm=defined), scope()), Failed)


def test_a_start_whose_end_nobody_saw_is_judged_by_its_record(
    host: Host, server: ImageServer, hypervisor: LibvirtHypervisor, defined: VmId, outside: libvirt.virConnect
) -> None:
    do(hypervisor, StartDomain(vm=defined))
    record = host.local / "vmorch/vms" / defined / "run.json"
    # as a crash of the agent inside the call would have left it
    record.write_text('{"phase":"starting"}')
    successor = hypervisor_on(host.uri, host.local, host.shared, server.url)
    try:
        outside.lookupByUUIDString(defined).destroy()
        assert isinstance(successor.resolve(StartDomain(vm=defined), scope()), Done)
        record.write_text('{"phase":"starting","before":"destroyed"}')
    finally:
        successor.close()
    other = hypervisor_on(host.uri, host.local, host.shared, server.url)
    try:
        assert isinstance(other.resolve(StartDomain(vm=defined), scope()), Failed)
    finally:
        other.close()


def test_a_start_makes_a_paused_domain_run(hypervisor: LibvirtHypervisor, defined: VmId) -> None:
    answer = do(hypervisor, StartDomain(vm=defined), SuspendDomain(vm=defined), StartDomain(vm=defined))
    assert answer.observed is not None
    assert answer.observed.power == "running"


def test_a_paused_guest_is_cut_only_by_force(hypervisor: LibvirtHypervisor, defined: VmId) -> None:
    do(hypervisor, StartDomain(vm=defined), SuspendDomain(vm=defined))
    answer = refused(hypervisor, StopDomain(vm=defined, grace=5, force=False), "guest-did-not-stop")
    assert answer.observed is not None
    assert answer.observed.power == "paused"
    do(hypervisor, ResumeDomain(vm=defined), StopDomain(vm=defined, grace=0, force=True))


def test_a_guest_that_goes_off_is_never_ready(hypervisor: LibvirtHypervisor, defined: VmId) -> None:
    ready = AwaitReady(vm=defined, ready=ReadySpec(by="agent", within=60), nics=())
    assert "off" in refused(hypervisor, ready, "not-ready").message
    do(hypervisor, StartDomain(vm=defined), AwaitReady(vm=defined, ready=ReadySpec(by="none"), nics=()))
    impatient = replace(ready, ready=ReadySpec(by="agent", within=1))
    assert "guest agent" in refused(hypervisor, impatient, "not-ready").message


def test_a_domain_that_stopped_reads_the_same_after_libvirtd_comes_back(
    host: Host, hypervisor: LibvirtHypervisor, defined: VmId
) -> None:
    do(hypervisor, StartDomain(vm=defined))
    stopped = do(hypervisor, StopDomain(vm=defined, grace=0, force=True))
    lost = threading.Event()
    hypervisor.watch(lambda _: None, lost.set)
    hypervisor.observe(defined)
    host.kill("libvirtd")
    assert lost.wait(20)
    with pytest.raises(HypervisorLost):
        hypervisor.observe(defined)
    with pytest.raises(HypervisorLost):
        hypervisor.execute(StartDomain(vm=defined), scope())
    with pytest.raises(HypervisorLost):
        hypervisor.reconnect()
    host.start("libvirtd")
    hypervisor.reconnect()
    assert hypervisor.observe(defined) == stopped.observed
    told = threading.Event()
    hypervisor.watch(lambda _: told.set(), lambda: None)
    do(hypervisor, StartDomain(vm=defined))
    assert told.wait(10)


def test_a_call_in_flight_when_libvirtd_dies_ends_as_unknown(
    host: Host, hypervisor: LibvirtHypervisor, defined: VmId
) -> None:
    do(hypervisor, StartDomain(vm=defined))
    ended: list[BaseException] = []

    def stop() -> None:
        try:
            hypervisor.execute(StopDomain(vm=defined, grace=120, force=True), scope(120))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=stop)
    thread.start()
    host.kill("libvirtd")
    thread.join(30)
    host.start("libvirtd")
    hypervisor.reconnect()
    assert [type(error) for error in ended] == [HypervisorLost]
    assert hypervisor.observe(defined).power == "running"


def test_links_are_neither_followed_nor_deleted(
    host: Host, hypervisor: LibvirtHypervisor, vm: VmId, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = host.local / "vmorch/vms" / vm
    directory.mkdir(parents=True)
    (directory / "vda.qcow2").symlink_to(victim)
    (directory / "seed.iso").symlink_to(victim)
    refused(hypervisor, CreateDisk(vm=vm, disk=DISK), "not-ours")
    refused(hypervisor, DeleteDisk(vm=vm, disk=DISK), "not-ours")
    refused(hypervisor, WriteSeed(vm=vm, seed=SeedSpec(hostname="web"), nics=(), instance="i"), "not-ours")
    refused(hypervisor, DeleteSeed(vm=vm), "not-ours")
    refused(hypervisor, UndefineDomain(vm=vm), "not-ours")
    assert victim.read_text() == "precious"
    for name in ("vda.qcow2", "seed.iso"):
        (directory / name).unlink()
    directory.rmdir()
    directory.symlink_to(tmp_path)
    refused(hypervisor, DeleteDisk(vm=vm, disk=DISK), "not-ours")
    directory.unlink()


@pytest.mark.parametrize("name", ["../../../etc", "", "VM", "0192f0c1-5b6a-7c3d-8e4f-0123456789ab/.."])
def test_only_ids_become_paths(hypervisor: LibvirtHypervisor, name: str) -> None:
    refused(hypervisor, CreateDisk(vm=VmId(name), disk=DISK), "bad-request")
    refused(hypervisor, DeleteDisk(vm=VmId(name), disk=DISK), "bad-request")


def test_a_disk_smaller_than_its_image_is_refused(hypervisor: LibvirtHypervisor, server: ImageServer, vm: VmId) -> None:
    large = replace(pin(server.image, 64 << 20), virtual_size=2 << 30)
    refused(hypervisor, CreateDisk(vm=vm, disk=replace(DISK, image=large)), "disk-too-small")


def test_a_disk_that_cannot_fit_is_refused(hypervisor: LibvirtHypervisor, host: Host, vm: VmId) -> None:
    free = os.statvfs(host.local)
    too_much = GiB(free.f_bavail * free.f_frsize // 1024**3 + 64)
    refused(hypervisor, CreateDisk(vm=vm, disk=replace(DISK, size=too_much)), "disk-full")
    directory = host.local / "vmorch/vms" / vm
    assert os.listdir(directory) == []
    directory.rmdir()


def test_a_shared_disk_and_its_base_lie_on_shared_storage(
    host: Host, hypervisor: LibvirtHypervisor, server: ImageServer, vm: VmId
) -> None:
    image = pin(server.image, 64 << 20)
    disk = DiskSpec(name="vda", size=GiB(1), storage="shared", image=image)
    do(hypervisor, fetch(image), CreateDisk(vm=vm, disk=disk))
    path = host.shared / "vmorch/vms" / vm / "vda.qcow2"
    told = subprocess.run(["qemu-img", "info", "--output=human", path], capture_output=True, text=True, check=True)
    assert f"backing file: {host.shared}/vmorch/images/{image.digest}.qcow2" in told.stdout
    assert "backing file format: qcow2" in told.stdout
    assert path.stat().st_mode & 0o777 == 0o600
    do(hypervisor, DefineDomain(vm=vm, spec=replace(SPEC, disks=(disk,))), StartDomain(vm=vm))


def test_facts_name_shared_storage_alike_for_all_who_see_it(host: Host, server: ImageServer, tmp_path: Path) -> None:
    first = hypervisor_on(host.uri, host.local, host.shared, server.url)
    second = hypervisor_on(host.uri, tmp_path, host.shared, server.url)
    alone = hypervisor_on(host.uri, host.local, None, server.url)
    try:
        assert first.facts().shared_id == second.facts().shared_id != ""
        assert (alone.facts().shared_id, alone.facts().shared_gib) == ("", 0)
        refused(alone, CreateDisk(vm=VmId(str(uuid4())), disk=replace(DISK, storage="shared")), "no-such-storage")
    finally:
        for each in (first, second, alone):
            each.close()


def test_an_accelerator_counts_only_if_a_guest_ran_with_it(tmp_path: Path) -> None:
    assert boots_with("tcg")
    assert not boots_with("nonsense")
    assert choose_domain_type("kvm", tmp_path / "v") == "kvm"
    assert choose_domain_type("tcg", tmp_path / "v") == "qemu"
    chosen = choose_domain_type("auto", tmp_path / "v")
    assert chosen == ("kvm" if os.path.exists("/dev/kvm") and boots_with("kvm") else "qemu")
    assert choose_domain_type("auto", tmp_path / "v") == chosen


@pytest.mark.guest
def test_a_guest_boots_is_asked_and_goes_off_when_asked(host: Host, vm: VmId) -> None:
    cache = Path(os.environ.get("VMORCH_LAB_CACHE", "~/.cache/vmorch/lab")).expanduser()
    tiny = cached_tiny(cache).read_bytes()
    served = ImageServer(tiny)
    guest_host = hypervisor_on(host.uri, host.local, host.shared, served.url)
    try:
        virtual = int.from_bytes(tiny[24:32], "big")
        disk = DiskSpec(name="vda", size=GiB(1), image=pin(tiny, virtual))
        spec = VmSpec(
            vcpus=1,
            max_vcpus=1,
            memory=MiB(128),
            max_memory=MiB(160),
            disks=(disk,),
            seed=SeedSpec(hostname="web"),
        )
        assert spec.seed is not None
        do(
            guest_host,
            fetch(pin(tiny, virtual)),
            CreateDisk(vm=vm, disk=disk),
            WriteSeed(vm=vm, seed=spec.seed, nics=(), instance=vm),
            DefineDomain(vm=vm, spec=spec),
            StartDomain(vm=vm),
            AwaitReady(vm=vm, ready=ReadySpec(by="agent", within=90), nics=()),
        )
        log = host.local / "vmorch/vms" / vm / "serial.log"
        eventually(lambda: f"name=web instance={vm}" in log.read_text(errors="replace"))
        successor = hypervisor_on(host.uri, host.local, host.shared, served.url)
        try:
            # as if the agent that waited had died once the guest was up
            card = NicSpec(mac="52:54:00:00:00:01", address="10.64.99.9/24")
            waited = successor.resolve(AwaitReady(vm=vm, ready=ReadySpec(by="agent"), nics=(card,)), scope())
            assert isinstance(waited, Done)
            assert waited.observed is not None
            assert waited.observed.addresses == ("10.64.99.9",)
            # as if it had moved here from where it was found before
            came = do(successor, AwaitReady(vm=vm, ready=ReadySpec(by="agent"), nics=(), known=("10.64.99.7",)))
            assert came.observed is not None
            assert came.observed.addresses == ("10.64.99.7",)
        finally:
            successor.close()
        eventually(lambda: guest_host.observe(vm).memory == 128)
        shrunk = do(guest_host, SetMemory(vm=vm, memory=MiB(112)))
        assert shrunk.observed is not None
        eventually(lambda: guest_host.observe(vm).memory == 112)
        stopped = do(guest_host, StopDomain(vm=vm, grace=60, force=False))
        assert stopped.observed is not None
        assert (stopped.observed.power, stopped.observed.reason) == ("off", "shutdown")
    finally:
        guest_host.close()
        served.close()
