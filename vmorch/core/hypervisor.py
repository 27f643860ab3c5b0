"""The pure model of a libvirt host: what each host command does to it, and what it refuses.

Simulated hosts and properties stand on this; one contract suite keeps it honest against real libvirt.
Must not know about time: how long an effect takes is the shell's business.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from vmorch.core.hostcommands import (
    Answer,
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
    Observed,
    ObserveDomain,
    Power,
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
from vmorch.core.ids import Digest, MiB, VmId
from vmorch.core.messages import HostCommand
from vmorch.core.migration import HALTED, UNFINISHED, Cell
from vmorch.core.spec import DiskSpec, ImagePin, NicSpec, SeedSpec, VmSpec

EMPTY_DISK_MIB: Final = 1
"""What a thin disk takes of the host's space before its guest writes to it, rounded up."""


class Domain(Struct, frozen=True, kw_only=True):
    """A domain that vmorch made. `spec` is its last definition, `found` what its configuration holds now;
    `vcpus` and `memory` are in force while it is active. A transient one ends when it stops. A `moving` one is a
    half of a migration under way."""

    power: Power
    spec: VmSpec
    found: VmSpec
    persistent: bool = True
    vcpus: int = 0
    memory: MiB = MiB(0)
    reason: str = ""
    moving: bool = False

    @property
    def active(self) -> bool:
        return self.power in ("running", "paused")


class Seed(Struct, frozen=True, kw_only=True):
    """The content of a VM's NoCloud seed."""

    seed: SeedSpec
    nics: tuple[NicSpec, ...]
    instance: str


class LibvirtHost(Struct, frozen=True, kw_only=True):
    """Everything on one host that host commands read or change.

    `disks` is keyed by VM, then by `<storage>/<name>`. `deaf` guests ignore a request to stop, `mute` ones
    never say that they are up. Images named in `missing` or `corrupt` cannot be fetched. `networks` and `machines`
    are None where any name will do; `available` is the memory for guests. `hooks` holds the latest run of each hook;
    those in `failing_hooks` fail.
    """

    domains: Mapping[VmId, Domain] = {}
    disks: Mapping[VmId, Mapping[str, DiskSpec]] = {}
    seeds: Mapping[VmId, Seed] = {}
    images: Mapping[Digest, ImagePin] = {}
    free: Mapping[str, int] = field(default_factory=lambda: {"local": 1024 * 1024})
    """MiB left of each storage that the host has."""
    foreign: tuple[str, ...] = ()
    """Names of domains that vmorch did not make."""
    foreign_disks: frozenset[tuple[VmId, str]] = frozenset()
    """Disk files (by VM and `<storage>/<name>`) that vmorch did not make."""
    missing: frozenset[Digest] = frozenset()
    corrupt: frozenset[Digest] = frozenset()
    deaf: frozenset[VmId] = frozenset()
    mute: frozenset[VmId] = frozenset()
    available: MiB = MiB(1 << 24)
    networks: tuple[str, ...] | None = None
    machines: tuple[str, ...] | None = None
    encrypts: bool = True
    hooks: Mapping[str, str] = {}
    failing_hooks: frozenset[str] = frozenset()


Effect = tuple[LibvirtHost, Answer]


def observe(host: LibvirtHost, vm: VmId) -> Observed:
    """One domain as the host sees it; figures are 0 unless it is active."""
    domain = host.domains.get(vm)
    if domain is None:
        return Observed(power="absent")
    if not domain.active:
        return Observed(power=domain.power, reason=domain.reason, moving=domain.moving)
    nics = domain.found.nics if domain.power == "running" and vm not in host.mute else ()
    return Observed(
        power=domain.power,
        reason=domain.reason,
        vcpus=domain.vcpus,
        memory=domain.memory,
        addresses=tuple(map(_address, nics)),
        moving=domain.moving,
    )


def differences(domain: Domain) -> dict[str, tuple[str, str]]:
    """What of a domain's configuration is not as it was defined: field -> (defined, found). Nothing is said of one
    that moves: it gets its configuration at the end."""
    if domain.moving:
        return {}
    if not domain.persistent:
        return {"persistent": ("yes", "no")}
    fields = ("vcpus", "max_vcpus", "memory", "max_memory")
    pairs = {name: (str(getattr(domain.spec, name)), str(getattr(domain.found, name))) for name in fields}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def expect(host: LibvirtHost, command: HostCommand) -> Effect:
    """The host after a command and the command's answer. A refused command changes nothing."""
    match command:
        case FetchImage():
            return _fetch(host, command.image)
        case CreateDisk():
            return _create_disk(host, command)
        case DeleteDisk():
            return _delete_disk(host, command)
        case WriteSeed():
            return _write_seed(host, command)
        case DeleteSeed():
            return _without_seed(host, command.vm), Done(already=command.vm not in host.seeds)
        case DefineDomain():
            return _define(host, command)
        case UndefineDomain():
            return _undefine(host, command)
        case StopDomain():
            return _stop(host, command)
        case AwaitReady():
            return _await_ready(host, command)
        case PrepareArrival():
            return _prepare_arrival(host, command)
        case MigrateDomain():
            return _migrate(host, command)
        case ObserveDomain():
            return host, Done(observed=observe(host, command.vm))
        case ClearDomain():
            return _clear(host, command.vm)
        case ClaimDomain():
            return _claim(host, command)
        case TuneMigration():
            return _tune(host, command)
        case RunHook():
            return _hook(host, command)
        case StartDomain() | SuspendDomain() | ResumeDomain() | SetVcpus() | SetMemory():
            domain = host.domains.get(command.vm)
            if domain is None:
                return host, Failed(code="no-domain", message=f"no domain {command.vm} on this host")
            return _change(host, domain, command)
    return host, Failed(code="libvirt-refused", message=f"this host cannot {command.kind}")


def resolve(host: LibvirtHost, command: HostCommand) -> Answer:
    """Whether a command's target is reached, without reaching for it: it is if doing it would change nothing."""
    after, answer = expect(host, command)
    if isinstance(answer, Done) and after == host:
        return replace(answer, already=True)
    seen = observe(host, command.vm) if isinstance(command, DomainCommand) else None
    return Failed(code="interrupted", message=f"{command.kind} was interrupted", observed=seen)


def after_crash(host: LibvirtHost) -> LibvirtHost:
    """The host after a power cut: what was active is off, transient domains are gone."""
    domains = {
        vm: _stopped(domain, "failed") if domain.active else domain
        for vm, domain in host.domains.items()
        if domain.persistent
    }
    return replace(host, domains=domains)


def after_restart(host: LibvirtHost) -> LibvirtHost:
    """The host after its libvirt began anew: a guest that was leaving runs on here, unfinished arrivals are gone."""
    domains = {
        vm: replace(domain, moving=False)
        for vm, domain in host.domains.items()
        if not (domain.moving and _is_arriving(domain))
    }
    return replace(host, domains=domains)


def with_half(host: LibvirtHost, vm: VmId, half: Domain | None) -> LibvirtHost:
    """The host with this half of a domain, or with none."""
    domains = {each: domain for each, domain in host.domains.items() if each != vm}
    return replace(host, domains=domains if half is None else {**domains, vm: half})


def arriving(domain: Domain) -> Domain:
    """What a destination shows of a domain that is on its way there."""
    return replace(domain, power="paused", reason="migration", persistent=False, moving=True)


def half_in(cell: Cell, domain: Domain) -> Domain | None:
    """What one end shows of a domain whose migration left it there in this cell."""
    still = replace(domain, persistent=True, moving=False)
    match cell:
        case "absent":
            return None
        case "off":
            return _stopped(still, "migrated")
        case "paused":
            return replace(still, power="paused", reason="migration")
        case "running":
            return replace(still, power="running", reason="")


def shared_disks(host: LibvirtHost, vm: VmId) -> Mapping[str, DiskSpec]:
    """The VM's disks that lie on the storage which several hosts share."""
    return {key: disk for key, disk in host.disks.get(vm, {}).items() if disk.storage == "shared"}


def with_shared_disks(host: LibvirtHost, vm: VmId, shared: Mapping[str, DiskSpec]) -> LibvirtHost:
    """The host after another one changed what of the VM lies on the storage that they share."""
    before = shared_disks(host, vm)
    held = {key: disk for key, disk in host.disks.get(vm, {}).items() if key not in before} | dict(shared)
    disks = {each: other for each, other in host.disks.items() if each != vm} | ({vm: held} if held else {})
    freed = (len(before) - len(shared)) * EMPTY_DISK_MIB
    return replace(host, disks=disks, free={**host.free, "shared": host.free["shared"] + freed})


def _fetch(host: LibvirtHost, image: ImagePin) -> Effect:
    size = max(1, image.size >> 20)
    if image.digest in host.images:
        return host, Done(already=True)
    if image.digest in host.missing:
        return host, Failed(code="image-unavailable", message=f"the control plane has no image {image.digest}")
    if image.digest in host.corrupt:
        return host, Failed(code="image-digest-mismatch", message=f"other bytes than {image.digest} came")
    if host.free["local"] < size:
        return host, Failed(code="disk-full", message=f"needs {size} MiB, {host.free['local']} left")
    free = {**host.free, "local": host.free["local"] - size}
    return replace(host, images={**host.images, image.digest: image}, free=free), Done()


def _create_disk(host: LibvirtHost, command: CreateDisk) -> Effect:
    vm, disk, key = command.vm, command.disk, _disk_key(command.disk)
    if (vm, key) in host.foreign_disks:
        return host, Failed(code="not-ours", message=f"a file that vmorch did not make stands at {key} of {vm}")
    if key in host.disks.get(vm, {}):
        return host, Done(already=True)
    if disk.image is not None and disk.image.digest not in host.images:
        return host, Failed(code="no-image", message=f"image {disk.image.digest} is not on this host")
    if disk.image is not None and disk.size << 30 < disk.image.virtual_size:
        return host, Failed(code="disk-too-small", message=f"{disk.size} GiB cannot hold the image")
    # a thin disk takes nothing yet, but it is not begun where it could never be filled
    if host.free.get(disk.storage, 0) < disk.size * 1024:
        return host, Failed(code="disk-full", message=f"{host.free.get(disk.storage, 0)} MiB of {disk.storage} left")
    disks = {**host.disks, vm: {**host.disks.get(vm, {}), key: disk}}
    free = {**host.free, disk.storage: host.free[disk.storage] - EMPTY_DISK_MIB}
    return replace(host, disks=disks, free=free), Done()


def _delete_disk(host: LibvirtHost, command: DeleteDisk) -> Effect:
    vm, key = command.vm, _disk_key(command.disk)
    if (vm, key) in host.foreign_disks:
        return host, Failed(code="not-ours", message=f"a file that vmorch did not make stands at {key} of {vm}")
    if key not in host.disks.get(vm, {}):
        return host, Done(already=True)
    domain = host.domains.get(vm)
    if domain is not None and domain.active:
        return host, Failed(code="busy", message=f"{vm} is active and uses {key}", observed=observe(host, vm))
    left = {name: disk for name, disk in host.disks[vm].items() if name != key}
    disks = {each: held for each, held in host.disks.items() if each != vm} | ({vm: left} if left else {})
    storage = command.disk.storage
    free = {**host.free, storage: host.free[storage] + EMPTY_DISK_MIB}
    return replace(host, disks=disks, free=free), Done()


def _write_seed(host: LibvirtHost, command: WriteSeed) -> Effect:
    seed = Seed(seed=command.seed, nics=command.nics, instance=command.instance)
    already = host.seeds.get(command.vm) == seed
    return replace(host, seeds={**host.seeds, command.vm: seed}), Done(already=already)


def _without_seed(host: LibvirtHost, vm: VmId) -> LibvirtHost:
    return replace(host, seeds={each: seed for each, seed in host.seeds.items() if each != vm})


def _define(host: LibvirtHost, command: DefineDomain) -> Effect:
    vm, spec, before = command.vm, command.spec, host.domains.get(command.vm)
    if vm in host.foreign:
        return host, Failed(code="not-ours", message=f"a domain {vm} that vmorch did not make stands here")
    if before is None:
        domain = Domain(power="off", spec=spec, found=spec)
    else:
        domain = replace(before, spec=spec, found=spec, persistent=True)
    return _put(host, vm, domain, already=domain == before)


def _undefine(host: LibvirtHost, command: UndefineDomain) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    if domain is not None and domain.active:
        return _put(host, vm, replace(domain, persistent=False), already=not domain.persistent)
    return _put(_without_seed(host, vm), vm, None, already=domain is None and vm not in host.seeds)


def _stop(host: LibvirtHost, command: StopDomain) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    if domain is None or not domain.active:
        return host, Done(observed=observe(host, vm), already=True)
    # halted vCPUs cannot hear a request to power off
    hears = domain.power == "running" and vm not in host.deaf and command.grace > 0
    if not hears and not command.force:
        return host, Failed(
            code="guest-did-not-stop",
            message=f"the guest still runs after {command.grace:g} s",
            observed=observe(host, vm),
        )
    return _put(host, vm, _stopped(domain, "shutdown" if hears else "destroyed") if domain.persistent else None)


def _await_ready(host: LibvirtHost, command: AwaitReady) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    seen = observe(host, vm)
    if domain is None:
        return host, Failed(code="no-domain", message=f"no domain {vm} on this host", observed=seen)
    silent = vm in host.mute and command.ready.by != "none"
    if domain.power != "running" or silent:
        message = f"the guest was not up within {command.ready.within:g} s"
        return host, Failed(code="not-ready", message=message, observed=seen)
    return host, Done(observed=seen)


def _change(
    host: LibvirtHost,
    domain: Domain,
    command: StartDomain | SuspendDomain | ResumeDomain | SetVcpus | SetMemory,
) -> Effect:
    vm = command.vm
    match command, domain.power:
        case StartDomain(halted=True), "running":
            return _refused(host, vm, "the domain runs")
        case (StartDomain(halted=True) | SuspendDomain(), "paused") | (StartDomain() | ResumeDomain(), "running"):
            return _put(host, vm, domain, already=True)
        case StartDomain(halted=halted), "off" | "crashed":
            return _start(host, vm, domain, halted=halted)
        case SuspendDomain(), "running":
            return _put(host, vm, replace(domain, power="paused", reason="user"))
        case StartDomain() | ResumeDomain(), "paused":
            if domain.reason in HALTED:
                return _refused(host, vm, f"the domain is paused for {domain.reason}; it may run on another host")
            return _put(host, vm, replace(domain, power="running", reason=""))
        case SetVcpus(vcpus=vcpus), "running" | "paused":
            if not domain.vcpus <= vcpus <= domain.found.max_vcpus:
                return _refused(host, vm, f"{vcpus} vCPUs: has {domain.vcpus}, at most {domain.found.max_vcpus}")
            return _put(host, vm, replace(domain, vcpus=vcpus), already=vcpus == domain.vcpus)
        case SetMemory(memory=memory), "running" | "paused":
            if memory > domain.found.max_memory:
                return _refused(host, vm, f"{memory} MiB: at most {domain.found.max_memory}")
            return _put(host, vm, replace(domain, memory=memory), already=memory == domain.memory)
    return _refused(host, vm, f"the domain is {domain.power}")


def _start(host: LibvirtHost, vm: VmId, domain: Domain, *, halted: bool) -> Effect:
    held = host.disks.get(vm, {})
    lost = [key for key in map(_disk_key, domain.found.disks) if key not in held]
    if lost:
        return _refused(host, vm, f"cannot access storage of {', '.join(lost)}")
    found = domain.found
    power: Power = "paused" if halted else "running"
    reason = "user" if halted else ""
    return _put(host, vm, replace(domain, power=power, vcpus=found.vcpus, memory=found.memory, reason=reason))


def _prepare_arrival(host: LibvirtHost, command: PrepareArrival) -> Effect:
    vm, before = command.vm, host.domains.get(command.vm)
    refused = _not_clearable(host, vm, before)
    if refused is not None:
        return host, refused
    blockers = tuple(_blockers(host, command))
    if blockers:
        seen = observe(host, vm)
        return host, Failed(code="arrival-blocked", message="; ".join(blockers), observed=seen, blockers=blockers)
    return _put(host, vm, None, already=before is None)


def _blockers(host: LibvirtHost, command: PrepareArrival) -> Iterator[str]:
    spec = command.spec
    if command.machine and host.machines is not None and command.machine not in host.machines:
        yield f"its QEMU has no machine type {command.machine}"
    free = host.available - sum(domain.memory for vm, domain in host.domains.items() if vm != command.vm)
    if spec.memory > free:
        yield f"needs {spec.memory} MiB of memory, {free} are free"
    named = dict.fromkeys(nic.network for nic in spec.nics if nic.network is not None)
    known = named if host.networks is None else host.networks
    yield from (f"no active network {name}" for name in named if name not in known)
    held = host.disks.get(command.vm, {})
    for disk in spec.disks:
        if disk.storage == "shared" and _disk_key(disk) not in held:
            yield f"disk {disk.name} is not to be seen on shared storage"
    if command.encrypted and not host.encrypts:
        yield "it has no certificate, and the guest shall travel encrypted"


def _not_clearable(host: LibvirtHost, vm: VmId, domain: Domain | None) -> Failed | None:
    if vm in host.foreign:
        return Failed(code="not-ours", message=f"a domain {vm} that vmorch did not make stands here")
    if domain is not None and domain.power == "running":
        return Failed(code="runs-here", message=f"the domain {vm} runs here", observed=observe(host, vm))
    if domain is not None and domain.reason == "postcopy":
        return Failed(code="busy", message=f"{vm} runs elsewhere and needs its memory", observed=observe(host, vm))
    return None


def _migrate(host: LibvirtHost, command: MigrateDomain) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    seen = observe(host, vm)
    if domain is None:
        return host, Done(observed=seen, already=True)
    # a passage needs two hosts, and this model is of one
    why = f"no host at {command.address}" if domain.active else f"the domain is {domain.power}"
    return host, Failed(code="migration-failed", message=why, observed=seen)


def _clear(host: LibvirtHost, vm: VmId) -> Effect:
    domain = host.domains.get(vm)
    refused = _not_clearable(host, vm, domain)
    return (host, refused) if refused is not None else _put(host, vm, None, already=domain is None)


def _claim(host: LibvirtHost, command: ClaimDomain) -> Effect:
    vm, spec, before = command.vm, command.spec, host.domains.get(command.vm)
    after, answer = _define(host, DefineDomain(vm=vm, spec=spec))
    if isinstance(answer, Failed):
        return host, answer
    domain = after.domains[vm]
    if domain.power == "paused" and domain.reason in UNFINISHED:
        # the rest of its memory was at the end that is gone
        domain = _stopped(domain, "destroyed")
    elif domain.power == "paused" and domain.reason in HALTED and command.run:
        domain = replace(domain, power="running", reason="")
    return _put(after, vm, domain, already=domain == before)


def _tune(host: LibvirtHost, command: TuneMigration) -> Effect:
    domain = host.domains.get(command.vm)
    if domain is None or not domain.moving:
        return _refused(host, command.vm, "no migration of the domain is under way")
    return host, Done(observed=observe(host, command.vm))


def _hook(host: LibvirtHost, command: RunHook) -> Effect:
    if command.name in host.failing_hooks:
        return host, Failed(code="hook-failed", message=f"{command.name} ended with 1")
    already = host.hooks.get(command.name) == command.run
    return replace(host, hooks={**host.hooks, command.name: command.run}), Done(already=already)


def _put(host: LibvirtHost, vm: VmId, domain: Domain | None, *, already: bool = False) -> Effect:
    domains = {each: other for each, other in host.domains.items() if each != vm or domain is not None}
    if domain is not None:
        domains[vm] = domain
    after = replace(host, domains=domains)
    return after, Done(observed=observe(after, vm), already=already)


def _refused(host: LibvirtHost, vm: VmId, why: str) -> Effect:
    return host, Failed(code="libvirt-refused", message=why, observed=observe(host, vm))


def _stopped(domain: Domain, reason: str) -> Domain:
    return replace(domain, power="off", vcpus=0, memory=MiB(0), reason=reason, moving=False)


def _is_arriving(domain: Domain) -> bool:
    return domain.power == "paused" and domain.reason == "migration" and not domain.persistent


def _disk_key(disk: DiskSpec) -> str:
    return f"{disk.storage}/{disk.name}"


def _address(nic: NicSpec) -> str:
    if nic.address is not None:
        return nic.address.partition("/")[0]
    tail = [int(byte, 16) for byte in nic.mac.split(":")[-2:]]
    # 198.18.0.0/15 is set aside for tests and never routed
    return f"198.18.{tail[0]}.{tail[1]}"
