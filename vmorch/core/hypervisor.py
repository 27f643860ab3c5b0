"""The pure model of a libvirt host: what each host command does to it, and what it refuses.

Simulated hosts and properties stand on this; one contract suite keeps it honest against real libvirt.
Must not know about time: how long an effect takes is the shell's business.
"""

from collections.abc import Collection, Iterator

from msgspec.structs import replace

from vmorch.core.hostcommands import (
    Answer,
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
    MergeLayers,
    MigrateDomain,
    ObserveDomain,
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
from vmorch.core.hypervisor_backups import drop_backup, restore_disk, take_backup, verify_backup
from vmorch.core.hypervisor_layers import (
    drop_layers,
    make_layers,
    merge_layers,
    restore_guest,
    save_guest,
    take_snapshot,
)
from vmorch.core.hypervisor_state import (
    EMPTY_DISK_MIB,
    Domain,
    Effect,
    File,
    KeptBackup,
    KeptMemory,
    LibvirtHost,
    Seed,
    Shared,
    at_home,
    begun,
    content,
    covered,
    defined,
    disk_key,
    empty_file,
    filled,
    layers,
    memory_key,
    no_domain,
    observe,
    put,
    refused,
    remembering,
    shared_files,
    stopped,
    unstartable,
    with_files,
    with_shared_files,
    written,
)
from vmorch.core.hypervisor_volumes import (
    attach_disk,
    bring_back,
    copy_disk,
    detach_disk,
    find_strays,
    grow_disk,
    purge,
    set_aside,
)
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.migration import HALTED, UNFINISHED, Cell
from vmorch.core.spec import ImagePin, VmSpec

__all__ = [
    "EMPTY_DISK_MIB",
    "Domain",
    "Effect",
    "File",
    "KeptBackup",
    "KeptMemory",
    "LibvirtHost",
    "Seed",
    "Shared",
    "after_crash",
    "after_restart",
    "arriving",
    "content",
    "differences",
    "disk_key",
    "expect",
    "filled",
    "half_in",
    "layers",
    "memory_key",
    "observe",
    "remembering",
    "resolve",
    "shared_files",
    "with_copies",
    "with_half",
    "with_shared_files",
    "written",
]


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
        case TakeSnapshot():
            return take_snapshot(host, command)
        case MakeLayers():
            return make_layers(host, command)
        case DropLayers():
            return drop_layers(host, command)
        case MergeLayers():
            return merge_layers(host, command)
        case SaveGuest():
            return save_guest(host, command)
        case RestoreGuest():
            return restore_guest(host, command)
        case AttachDisk():
            return attach_disk(host, command)
        case DetachDisk():
            return detach_disk(host, command)
        case GrowDisk():
            return grow_disk(host, command)
        case CopyDisk():
            return copy_disk(host, command)
        case FindStrays():
            return find_strays(host, command)
        case SetAside():
            return set_aside(host, command)
        case BringBack():
            return bring_back(host, command)
        case Purge():
            return purge(host, command)
        case TakeBackup():
            return take_backup(host, command)
        case DropBackup():
            return drop_backup(host, command)
        case VerifyBackup():
            return verify_backup(host, command)
        case RestoreDisk():
            return restore_disk(host, command)
        case StartDomain() | SuspendDomain() | ResumeDomain() | SetVcpus() | SetMemory():
            domain = host.domains.get(command.vm)
            if domain is None:
                return no_domain(host, command.vm)
            return _change(host, domain, command)
    return host, Failed(code="libvirt-refused", message=f"this host cannot {command.kind}")


def resolve(host: LibvirtHost, command: HostCommand) -> Answer:
    """Whether a command's target is reached, without reaching for it: it is if doing it would change nothing."""
    after, answer = expect(host, command)
    # what was made is told by whoever makes it: the order comes again and finds it
    if isinstance(answer, Done) and after == host and not isinstance(command, TakeBackup | VerifyBackup | FindStrays):
        return replace(answer, already=True)
    seen = observe(host, command.vm) if isinstance(command, DomainCommand) else None
    return Failed(code="interrupted", message=f"{command.kind} was interrupted", observed=seen)


def after_crash(host: LibvirtHost) -> LibvirtHost:
    """The host after a power cut: what was active is off, transient domains are gone."""
    domains = {
        vm: stopped(domain, "failed") if domain.active else domain
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
            return stopped(still, "migrated")
        case "paused":
            return replace(still, power="paused", reason="migration")
        case "running":
            return replace(still, power="running", reason="")


def with_copies(host: LibvirtHost, vm: VmId, source: LibvirtHost, names: Collection[str]) -> LibvirtHost:
    """The host after a guest that came brought what its disks of these names hold in the layers that it wrote to.
    libvirt carries nothing of what those stand on."""
    brought = {
        key: replace(file, written=source.disks[vm][key].written)
        for key, file in host.disks.get(vm, {}).items()
        if file.name in names and key in source.disks.get(vm, {})
    }
    return with_files(host, vm, {**host.disks.get(vm, {}), **brought})


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
    vm, disk = at_home(host, command.vm, command.disk)
    key = disk_key(disk)
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
    return with_files(host, vm, {**host.disks.get(vm, {}), key: empty_file(disk)}), Done()


def _delete_disk(host: LibvirtHost, command: DeleteDisk) -> Effect:
    vm, there = at_home(host, command.vm, command.disk)
    key = disk_key(there)
    if (vm, key) in host.foreign_disks:
        return host, Failed(code="not-ours", message=f"a file that vmorch did not make stands at {key} of {vm}")
    if key not in host.disks.get(vm, {}):
        return host, Done(already=True)
    domain = host.domains.get(vm)
    if domain is not None and domain.active:
        return host, Failed(code="busy", message=f"{vm} is active and uses {key}", observed=observe(host, vm))
    return with_files(host, vm, {each: file for each, file in host.disks[vm].items() if each != key}), Done()


def _write_seed(host: LibvirtHost, command: WriteSeed) -> Effect:
    seed = Seed(seed=command.seed, nics=command.nics, instance=command.instance)
    already = host.seeds.get(command.vm) == seed
    return replace(host, seeds={**host.seeds, command.vm: seed}), Done(already=already)


def _without_seed(host: LibvirtHost, vm: VmId) -> LibvirtHost:
    return replace(host, seeds={each: seed for each, seed in host.seeds.items() if each != vm})


def _define(host: LibvirtHost, command: DefineDomain) -> Effect:
    vm, spec, before = command.vm, command.spec, host.domains.get(command.vm)
    if vm in host.foreign:
        return _not_ours(host, vm)
    domain = _with_spec(before, spec)
    hindered = None if domain == before else covered(host, vm, spec.disks) or _elsewhere(host, vm, domain)
    if hindered is not None:
        return host, hindered
    return put(host, vm, domain, already=domain == before)


def _not_ours(host: LibvirtHost, vm: VmId) -> Effect:
    return host, Failed(code="not-ours", message=f"a domain {vm} that vmorch did not make stands here")


def _with_spec(domain: Domain | None, spec: VmSpec) -> Domain:
    return Domain(power="off", spec=spec, found=spec) if domain is None else defined(domain, spec)


def _elsewhere(host: LibvirtHost, vm: VmId, domain: Domain) -> Failed | None:
    """What hinders a configuration that was ordered before a snapshot and comes after it."""
    named = {disk.name: disk_key(disk) for disk in domain.found.disks}
    for used in domain.disks:
        if named.get(used.name, disk_key(used)) != disk_key(used):
            why = f"the running guest writes to {disk_key(used)} and not to {named[used.name]}"
            return Failed(code="chain-drift", message=why, observed=observe(host, vm))
    return None


def _undefine(host: LibvirtHost, command: UndefineDomain) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    if domain is not None and domain.active:
        return put(host, vm, replace(domain, persistent=False), already=not domain.persistent)
    return put(_without_seed(host, vm), vm, None, already=domain is None and vm not in host.seeds)


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
    return put(host, vm, stopped(domain, "shutdown" if hears else "destroyed") if domain.persistent else None)


def _await_ready(host: LibvirtHost, command: AwaitReady) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    seen = observe(host, vm)
    if domain is None:
        return no_domain(host, vm)
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
            return refused(host, vm, "the domain runs")
        case (StartDomain(halted=True) | SuspendDomain(), "paused") | (StartDomain() | ResumeDomain(), "running"):
            return put(host, vm, domain, already=True)
        case StartDomain(halted=halted), "off" | "crashed":
            return _start(host, vm, domain, halted=halted)
        case SuspendDomain(), "running":
            return put(host, vm, replace(domain, power="paused", reason="user"))
        case StartDomain() | ResumeDomain(), "paused":
            if domain.reason in HALTED:
                return refused(host, vm, f"the domain is paused for {domain.reason}; it may run on another host")
            return put(host, vm, replace(domain, power="running", reason=""))
        case SetVcpus(vcpus=vcpus), "running" | "paused":
            if not domain.vcpus <= vcpus <= domain.found.max_vcpus:
                return refused(host, vm, f"{vcpus} vCPUs: has {domain.vcpus}, at most {domain.found.max_vcpus}")
            return put(host, vm, replace(domain, vcpus=vcpus), already=vcpus == domain.vcpus)
        case SetMemory(memory=memory), "running" | "paused":
            if memory > domain.found.max_memory:
                return refused(host, vm, f"{memory} MiB: at most {domain.found.max_memory}")
            return put(host, vm, replace(domain, memory=memory), already=memory == domain.memory)
    return refused(host, vm, f"the domain is {domain.power}")


def _start(host: LibvirtHost, vm: VmId, domain: Domain, *, halted: bool) -> Effect:
    hindered = unstartable(host, vm, domain.found.disks)
    if hindered is not None:
        return host, hindered
    return put(host, vm, begun(domain, domain.found.disks, halted=halted))


def _prepare_arrival(host: LibvirtHost, command: PrepareArrival) -> Effect:
    vm, before = command.vm, host.domains.get(command.vm)
    in_the_way = _not_clearable(host, vm, before)
    if in_the_way is not None:
        return host, in_the_way
    blockers = tuple(_blockers(host, command))
    if blockers:
        seen = observe(host, vm)
        return host, Failed(code="arrival-blocked", message="; ".join(blockers), observed=seen, blockers=blockers)
    return put(host, vm, None, already=before is None)


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
        if disk.storage == "shared" and disk_key(disk) not in held:
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
    in_the_way = _not_clearable(host, vm, domain)
    return (host, in_the_way) if in_the_way is not None else put(host, vm, None, already=domain is None)


def _claim(host: LibvirtHost, command: ClaimDomain) -> Effect:
    vm, before = command.vm, host.domains.get(command.vm)
    if vm in host.foreign:
        return _not_ours(host, vm)
    domain = _with_spec(before, command.spec)
    if domain.power == "paused" and domain.reason in UNFINISHED:
        # the rest of its memory was at the end that is gone
        domain = stopped(domain, "destroyed")
    elif domain.power == "paused" and domain.reason in HALTED and command.run:
        domain = replace(domain, power="running", reason="")
    return put(host, vm, domain, already=domain == before)


def _tune(host: LibvirtHost, command: TuneMigration) -> Effect:
    domain = host.domains.get(command.vm)
    if domain is None or not domain.moving:
        return refused(host, command.vm, "no migration of the domain is under way")
    return host, Done(observed=observe(host, command.vm))


def _hook(host: LibvirtHost, command: RunHook) -> Effect:
    if command.name in host.failing_hooks:
        return host, Failed(code="hook-failed", message=f"{command.name} ended with 1")
    already = host.hooks.get(command.name) == command.run
    return replace(host, hooks={**host.hooks, command.name: command.run}), Done(already=already)


def _is_arriving(domain: Domain) -> bool:
    return domain.power == "paused" and domain.reason == "migration" and not domain.persistent
