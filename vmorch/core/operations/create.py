"""Create a VM: promise capacity, bring the image, make disks and seed, define, start, wait until it is up."""

from ipaddress import ip_address, ip_interface
from typing import Annotated

from msgspec import Meta

from vmorch.core.aggregates.host import CapacityReleased, CapacityReserved, Host, Reservation
from vmorch.core.aggregates.vm import VmCreated, VmDeleted, boot, mac_address
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import (
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DeleteSeed,
    FetchImage,
    StopDomain,
    UndefineDomain,
    WriteSeed,
)
from vmorch.core.ids import GiB, VmId, stream
from vmorch.core.messages import Command, message
from vmorch.core.operation import Plan, Step, change, step
from vmorch.core.sealed import size as text_size
from vmorch.core.spec import (
    ADDRESS_PATTERN,
    CIDR_PATTERN,
    MAX_SEED,
    NETWORK_PATTERN,
    DiskGiB,
    DiskSpec,
    Eviction,
    ImagePin,
    Labels,
    MemoryMiB,
    Name,
    NicSpec,
    Placing,
    ReadySpec,
    SeedSpec,
    SshKeys,
    Storage,
    UserData,
    Vcpus,
    VmSpec,
)
from vmorch.core.value import Value


class DiskRequest(Value, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A further, empty disk."""

    size: DiskGiB
    storage: Storage = "local"


class NicRequest(Value, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A network card; its MAC address follows from the VM's id."""

    network: Annotated[str, Meta(pattern=NETWORK_PATTERN)] | None = None
    address: Annotated[str, Meta(pattern=CIDR_PATTERN)] | None = None
    gateway: Annotated[str, Meta(pattern=ADDRESS_PATTERN)] | None = None
    nameservers: Annotated[tuple[Annotated[str, Meta(pattern=ADDRESS_PATTERN)], ...], Meta(max_length=8)] = ()


@message("vm.create")
class CreateVm(Command, frozen=True, kw_only=True):
    """A VM of this name, from this image, somewhere it fits."""

    verb = "create"
    summary = "Create a VM from an image and start it"

    name: Name
    image: Annotated[str, Meta(min_length=1, max_length=64, description="an image's name or digest")]
    vcpus: Vcpus = 1
    max_vcpus: Vcpus | None = None
    memory: MemoryMiB
    max_memory: MemoryMiB | None = None
    disk: DiskGiB | None = None
    storage: Storage = "local"
    extra_disks: Annotated[tuple[DiskRequest, ...], Meta(max_length=15)] = ()
    nics: Annotated[tuple[NicRequest, ...], Meta(max_length=8)] = (NicRequest(),)
    ssh_keys: SshKeys = ()
    user_data: UserData = ""
    ready: ReadySpec = ReadySpec()
    labels: Labels = {}  # noqa: RUF012  msgspec copies mutable defaults
    placing: Placing = Placing()
    eviction: Eviction = "live"
    start: bool = True


def spec_of(command: CreateVm, vm: VmId, image: ImagePin) -> VmSpec:
    """What the command asks for, in full. Raises Rejected `bad-spec`."""
    max_vcpus = command.max_vcpus or command.vcpus
    max_memory = command.max_memory or command.memory
    if max_vcpus < command.vcpus:
        raise Rejected("bad-spec", f"max_vcpus {max_vcpus} is below vcpus {command.vcpus}")
    if max_memory < command.memory:
        raise Rejected("bad-spec", f"max_memory {max_memory} MiB is below memory {command.memory} MiB")
    least = GiB(max(1, -(-image.virtual_size // 1024**3)))
    size = command.disk or least
    if size < least:
        raise Rejected("bad-spec", f"disk {size} GiB is smaller than the image, which needs {least} GiB")
    if text_size(command.user_data) + sum(len(key.encode()) for key in command.ssh_keys) > MAX_SEED:
        raise Rejected("bad-spec", f"user_data and ssh_keys together exceed {MAX_SEED // 1024} KiB")
    for each in command.nics:
        _check_addresses(each)
    root = DiskSpec(name="vda", size=size, storage=command.storage, image=image)
    extra = [
        DiskSpec(name=f"vd{chr(ord('b') + index)}", size=each.size, storage=each.storage)
        for index, each in enumerate(command.extra_disks)
    ]
    nics = tuple(
        NicSpec(
            mac=mac_address(vm, index),
            network=each.network,
            address=each.address,
            gateway=each.gateway,
            nameservers=each.nameservers,
        )
        for index, each in enumerate(command.nics)
    )
    return VmSpec(
        vcpus=command.vcpus,
        max_vcpus=max_vcpus,
        memory=command.memory,
        max_memory=max_memory,
        disks=(root, *extra),
        nics=nics,
        seed=SeedSpec(hostname=command.name, ssh_keys=command.ssh_keys, user_data=command.user_data),
        ready=command.ready,
        placing=command.placing,
        eviction=command.eviction,
    )


def _check_addresses(nic: NicRequest) -> None:
    try:
        if nic.address is not None:
            ip_interface(nic.address)
        for address in (nic.gateway, *nic.nameservers):
            if address is not None:
                ip_address(address)
    except ValueError as error:
        raise Rejected("bad-spec", str(error)) from error


def plan(command: CreateVm, vm: VmId, spec: VmSpec, host: Host, placement: dict[str, str]) -> Plan:
    """How the VM comes to be on the chosen host, and how it is taken back if a step fails."""
    created = VmCreated(
        name=command.name, spec=spec, labels=command.labels, host=host.id, epoch=1, placement=placement
    )
    reserved = CapacityReserved(vm=vm, reservation=Reservation.of(spec))
    return Plan(
        opening=(change(stream("vm", vm), created), change(stream("host", host.id), reserved)),
        steps=tuple(_steps(vm, spec, host, start=command.start)),
        failure=(
            change(stream("vm", vm), VmDeleted()),
            change(stream("host", host.id), CapacityReleased(vm=vm)),
        ),
    )


def _steps(vm: VmId, spec: VmSpec, host: Host, *, start: bool) -> list[Step]:
    steps = [
        step(host.id, FetchImage(image=pin, path=f"/v1/images/{pin.digest}/content"), deadline=3600)
        for pin in {disk.image.digest: disk.image for disk in spec.disks if disk.image}.values()
    ]
    for disk in spec.disks:
        steps.append(
            step(host.id, CreateDisk(vm=vm, disk=disk), undo=DeleteDisk(vm=vm, disk=disk), deadline=300)
        )
    if spec.seed is not None:
        seed = WriteSeed(vm=vm, seed=spec.seed, nics=spec.nics, instance=vm)
        steps.append(step(host.id, seed, undo=DeleteSeed(vm=vm)))
    steps.append(step(host.id, DefineDomain(vm=vm, spec=spec), undo=UndefineDomain(vm=vm)))
    if start:
        steps.extend(boot(vm, spec, host.id, undo=StopDomain(vm=vm, grace=0, force=True)))
    return steps
