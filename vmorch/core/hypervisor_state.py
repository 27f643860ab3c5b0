"""What the model of a libvirt host consists of: its domains, files and images, and how they are seen and put.

Must not know commands: what they do to a host is `core.hypervisor`'s.
"""

from collections.abc import Collection, Mapping
from typing import Final

from msgspec import field
from msgspec.structs import replace

from vmorch.core.backup import Saved
from vmorch.core.hostcommands import Answer, Done, Failed, Memory, Observed, Power
from vmorch.core.ids import BackupId, Digest, MiB, VmId
from vmorch.core.spec import DiskSpec, ImagePin, NicSpec, SeedSpec, Storage, VmSpec
from vmorch.core.value import Value

EMPTY_DISK_MIB: Final = 1
"""What a thin disk takes of the host's space before its guest writes to it, rounded up."""


class Domain(Value, frozen=True, kw_only=True):
    """A domain that vmorch made. `spec` is its last definition, `found` what its configuration holds now;
    `vcpus`, `memory` and `disks` are in force while it is active. A transient one ends when it stops. A `moving` one is
    a half of a migration under way."""

    power: Power
    spec: VmSpec
    found: VmSpec
    persistent: bool = True
    vcpus: int = 0
    memory: MiB = MiB(0)
    disks: tuple[DiskSpec, ...] = ()
    reason: str = ""
    moving: bool = False
    ram: str = ""
    """Stands for everything in an active guest's memory; empty at its start."""

    @property
    def active(self) -> bool:
        return self.power in ("running", "paused")


class Seed(Value, frozen=True, kw_only=True):
    """The content of a VM's NoCloud seed."""

    seed: SeedSpec
    nics: tuple[NicSpec, ...]
    instance: str


class File(DiskSpec, frozen=True, kw_only=True, omit_defaults=True):
    """The file of one layer of a disk. It stands on the layer `on`, or on the disk's image or nothing; `written` is
    what was written to it, cluster -> byte. `noted` holds for each backup the clusters that were written since then."""

    on: int | None = None
    written: Mapping[int, int] = {}
    noted: Mapping[BackupId, frozenset[int]] = {}


class KeptMemory(Value, frozen=True, kw_only=True):
    """A file with a guest's memory, and what it says of its guest."""

    number: int
    storage: Storage
    vcpus: int
    memory: MiB
    ram: str


class KeptBackup(Value, frozen=True, kw_only=True):
    """A backup in its target: what was said of it, and what its files hold, disk -> cluster -> byte."""

    saved: Saved
    disks: Mapping[str, Mapping[int, int]]


class LibvirtHost(Value, frozen=True, kw_only=True):
    """Everything on one host that host commands read or change.

    `disks` is keyed by VM, then by `<storage>/<name>`, with `.<layer>` behind it above the first layer; `memories` by
    VM, then by `<storage>/memory.<number>`. `deaf` guests ignore a request to stop, `mute` ones neither say that they
    are up nor freeze their file systems. Images named in `missing` or `corrupt` cannot be fetched. `networks` and
    `machines` are None where any name will do; `available` is the memory for guests. `hooks` holds the latest run of
    each hook; those in `failing_hooks` fail. `targets` are its directories for backups, name -> id, and `backups` what
    they hold, by that id.
    """

    domains: Mapping[VmId, Domain] = {}
    disks: Mapping[VmId, Mapping[str, File]] = {}
    memories: Mapping[VmId, Mapping[str, KeptMemory]] = {}
    seeds: Mapping[VmId, Seed] = {}
    images: Mapping[Digest, ImagePin] = {}
    free: Mapping[str, int] = field(default_factory=lambda: {"local": 1024 * 1024})
    """MiB left of each storage that the host has."""
    foreign: tuple[str, ...] = ()
    """Names of domains that vmorch did not make."""
    foreign_disks: frozenset[tuple[VmId, str]] = frozenset()
    """Disk files (by VM and key) that vmorch did not make."""
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
    aside: Mapping[tuple[str, VmId], Mapping[str, File]] = {}
    """Directories that were set aside, by storage and id."""
    targets: Mapping[str, str] = {}
    backups: Mapping[str, Mapping[BackupId, KeptBackup]] = {}


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


def put(host: LibvirtHost, vm: VmId, domain: Domain | None, *, already: bool = False) -> Effect:
    """The host with this domain, or with none, and the answer that tells it."""
    domains = {each: other for each, other in host.domains.items() if each != vm or domain is not None}
    if domain is not None:
        domains[vm] = domain
    after = replace(host, domains=domains)
    return after, Done(observed=observe(after, vm), already=already)


def refused(host: LibvirtHost, vm: VmId, why: str, code: str = "libvirt-refused") -> Effect:
    """The host as it was, and why it stays so."""
    return host, Failed(code=code, message=why, observed=observe(host, vm))


def no_domain(host: LibvirtHost, vm: VmId) -> Effect:
    """Nothing can be done with a domain that is not there."""
    return refused(host, vm, f"no domain {vm} on this host", "no-domain")


def defined(domain: Domain, spec: VmSpec) -> Domain:
    """The domain with this configuration; what is active goes on as it is."""
    return replace(domain, spec=spec, found=spec, persistent=True)


def begun(domain: Domain, disks: tuple[DiskSpec, ...], *, halted: bool) -> Domain:
    """The domain as it is when it was just started over these disks."""
    return replace(
        domain,
        power="paused" if halted else "running",
        reason="user" if halted else "",
        vcpus=domain.found.vcpus,
        memory=domain.found.memory,
        disks=disks,
    )


def stopped(domain: Domain, reason: str) -> Domain:
    """The domain with nothing left of its guest."""
    return replace(domain, power="off", vcpus=0, memory=MiB(0), disks=(), reason=reason, moving=False, ram="")


def disk_key(disk: DiskSpec) -> str:
    """Which of a VM's files holds that layer of the disk."""
    return f"{disk.storage}/{disk.name}" + (f".{disk.layer}" if disk.layer else "")


def memory_key(memory: Memory | KeptMemory) -> str:
    """Which of a VM's files holds that memory."""
    return f"{memory.storage}/memory.{memory.number}"


def at_home(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> tuple[VmId, DiskSpec]:
    """Under which id and name the files of a disk are now: a volume's are its VM's while it is a disk of that."""
    if disk.home is None or disk_key(disk) in host.disks.get(vm, {}):
        return vm, disk
    return disk.home.vm, replace(disk, name=disk.home.name)


def empty_file(disk: DiskSpec, on: int | None = None) -> File:
    """A new file for that layer of the disk."""
    return File(name=disk.name, size=disk.size, storage=disk.storage, image=disk.image, layer=disk.layer, on=on)


def layers(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> dict[int, File]:
    """The layers of a disk that are there."""
    held = host.disks.get(vm, {}).values()
    return {each.layer: each for each in held if (each.storage, each.name) == (disk.storage, disk.name)}


def covered(host: LibvirtHost, vm: VmId, disks: Collection[DiskSpec]) -> Failed | None:
    """Why no guest may write to these disks: another layer stands on one."""
    found = tuple(
        f"layer {above.layer} stands on {disk_key(disk)}, which must not be written to"
        for disk in disks
        for above in standing_on(host, vm, disk)
    )
    if not found:
        return None
    return Failed(code="chain-drift", message="; ".join(found), observed=observe(host, vm), blockers=found)


def unstartable(host: LibvirtHost, vm: VmId, disks: Collection[DiskSpec]) -> Failed | None:
    """Why no guest can be started over these disks: it must not write to one, or it or one below it is not there."""
    hindered = covered(host, vm, disks)
    if hindered is not None:
        return hindered
    lost = [disk_key(disk) for disk in disks if _is_broken(host, vm, disk)]
    if not lost:
        return None
    return Failed(
        code="libvirt-refused", message=f"cannot access storage of {', '.join(lost)}", observed=observe(host, vm)
    )


def standing_on(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> list[File]:
    """The layers that stand on this one."""
    return [each for each in layers(host, vm, disk).values() if each.on == disk.layer]


def content(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> dict[int, int]:
    """What is read from this layer of the disk, cluster -> byte; what was never written is left out."""
    found = layers(host, vm, disk)
    read: dict[int, int] = {}
    layer: int | None = disk.layer
    while layer is not None:
        read = {**found[layer].written, **read}
        layer = found[layer].on
    return read


def with_files(
    host: LibvirtHost,
    vm: VmId,
    disks: Mapping[str, File] | None = None,
    memories: Mapping[str, KeptMemory] | None = None,
) -> LibvirtHost:
    """The host with these disks of the VM and no others, and so with its memories; None: as they are. What they take
    is taken from its space, of which less than nothing may be left."""
    disks = host.disks.get(vm, {}) if disks is None else disks
    memories = host.memories.get(vm, {}) if memories is None else memories
    before = _taken(host.disks.get(vm, {}), host.memories.get(vm, {}))
    now = _taken(disks, memories)
    change = {each: before.get(each, 0) - now.get(each, 0) for each in [*host.free, *now]}
    return replace(
        host,
        disks={each: held for each, held in host.disks.items() if each != vm} | ({vm: disks} if disks else {}),
        memories={each: held for each, held in host.memories.items() if each != vm}
        | ({vm: memories} if memories else {}),
        free={each: host.free.get(each, 0) + more for each, more in change.items()},
    )


def overfull(host: LibvirtHost) -> str:
    """The storage of which more is taken than there is; empty if there is none."""
    return next((each for each, left in host.free.items() if left < 0), "")


def written(host: LibvirtHost, vm: VmId, disk: str, cluster: int, byte: int) -> LibvirtHost:
    """The host after the VM's active guest wrote that to its disk."""
    used = next(each for each in host.domains[vm].disks if each.name == disk)
    return filled(host, vm, used, cluster, byte)


def filled(host: LibvirtHost, vm: VmId, disk: DiskSpec, cluster: int, byte: int) -> LibvirtHost:
    """The host after that was written to this layer of the disk."""
    file = host.disks[vm][disk_key(disk)]
    noted = {backup: clusters | {cluster} for backup, clusters in file.noted.items()}
    changed = replace(file, written={**file.written, cluster: byte}, noted=noted)
    return with_files(host, vm, {**host.disks[vm], disk_key(disk): changed})


def remembering(host: LibvirtHost, vm: VmId, ram: str) -> LibvirtHost:
    """The host after the VM's active guest came to have this in its memory."""
    return replace(host, domains={**host.domains, vm: replace(host.domains[vm], ram=ram)})


class Shared(Value, frozen=True, kw_only=True):
    """What of a VM lies on the storage which several hosts share."""

    disks: Mapping[str, File]
    memories: Mapping[str, KeptMemory]


def shared_files(host: LibvirtHost, vm: VmId) -> Shared:
    """The VM's files that other hosts see too."""
    return Shared(
        disks={key: file for key, file in host.disks.get(vm, {}).items() if file.storage == "shared"},
        memories={key: file for key, file in host.memories.get(vm, {}).items() if file.storage == "shared"},
    )


def with_shared_files(host: LibvirtHost, vm: VmId, shared: Shared) -> LibvirtHost:
    """The host after another one changed what of the VM lies on the storage that they share."""
    disks = {key: file for key, file in host.disks.get(vm, {}).items() if file.storage != "shared"}
    memories = {key: file for key, file in host.memories.get(vm, {}).items() if file.storage != "shared"}
    return with_files(host, vm, {**disks, **shared.disks}, {**memories, **shared.memories})


def _is_broken(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> bool:
    found, layer = layers(host, vm, disk), disk.layer
    while layer in found:
        below = found[layer].on
        if below is None:
            return False
        layer = below
    return True


def _taken(disks: Mapping[str, File], memories: Mapping[str, KeptMemory]) -> dict[str, int]:
    taken: dict[str, int] = {}
    for disk in disks.values():
        taken[disk.storage] = taken.get(disk.storage, 0) + EMPTY_DISK_MIB
    for memory in memories.values():
        taken[memory.storage] = taken.get(memory.storage, 0) + memory.memory
    return taken


def _address(nic: NicSpec) -> str:
    if nic.address is not None:
        return nic.address.partition("/")[0]
    tail = [int(byte, 16) for byte in nic.mac.split(":")[-2:]]
    # 198.18.0.0/15 is set aside for tests and never routed
    return f"198.18.{tail[0]}.{tail[1]}"
