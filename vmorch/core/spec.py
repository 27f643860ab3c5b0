"""What an operator asks for and what a host is: values only, with their limits in their types.

Decoding one of these from outside is the whole validation of its fields; anything that needs a second
look (does the image exist? does it fit?) belongs to a decision. Must not know about events or hosts' state.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, field

from vmorch.core.ids import Digest, GiB, MiB, Stream, VmId
from vmorch.core.sealed import subject_of
from vmorch.core.value import Value

# `$` alone also matches before a line break at the end
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$(?!\n)"
LABEL_KEY_PATTERN = r"^[a-z0-9]([a-z0-9./_-]{0,61}[a-z0-9])?$(?!\n)"
CIDR_PATTERN = r"^[0-9a-fA-F.:]{2,45}/[0-9]{1,3}$(?!\n)"
ADDRESS_PATTERN = r"^[0-9a-fA-F.:]{2,45}$(?!\n)"
MAC_PATTERN = r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$(?!\n)"
NETWORK_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$(?!\n)"
HTTP_PATH_PATTERN = r"^/[!-~]{0,255}$(?!\n)"

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="1 to 63 of a-z, 0-9 and -, a DNS label")]
LabelKey = Annotated[str, Meta(pattern=LABEL_KEY_PATTERN)]
LabelValue = Annotated[str, Meta(max_length=63, pattern=r"^[A-Za-z0-9._/-]*$(?!\n)")]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=32)]
Vcpus = Annotated[int, Meta(ge=1, le=512, description="virtual CPUs")]
MemoryMiB = Annotated[MiB, Meta(ge=16, le=16 * 1024 * 1024, description="memory in MiB")]
DiskGiB = Annotated[GiB, Meta(ge=1, le=64 * 1024, description="size in GiB")]
Sha256 = Annotated[Digest, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="SHA-256, lower-case hexadecimal")]
Graceful = Annotated[float, Meta(ge=0, le=3600, description="seconds")]

NAME_RULE = "1 to 63 of a-z, 0-9 and -, neither beginning nor ending with -"

ImageFormat = Literal["qcow2", "raw"]
Storage = Literal["local", "shared"]


class ImagePin(Value, frozen=True, kw_only=True):
    """An image as a decision saw it: bytes by digest, never by name."""

    digest: Sha256
    format: ImageFormat
    size: int
    virtual_size: int


DiskName = Annotated[str, Meta(pattern=r"^vd[a-z]$(?!\n)")]
LayerNumber = Annotated[int, Meta(ge=0, le=1_000_000)]
"""Which of the files that a disk was split into by snapshots; 0 is the one that it began with."""


class Home(Value, frozen=True, kw_only=True):
    """Where the files of a volume are, whoever uses it: the directory of this id, under this disk's name."""

    vm: VmId
    name: DiskName


class DiskSpec(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A disk of the VM. With `image` it is an overlay on that image's bytes, else it starts empty. `layer` is the
    one that the guest writes to. A disk with a `home` is a volume: its files are there and outlive the VM."""

    name: DiskName
    size: DiskGiB
    storage: Storage = "local"
    image: ImagePin | None = None
    layer: LayerNumber = 0
    home: Home | None = None

    def at(self, vm: VmId) -> Home:
        """Where its files are while it is a disk of that VM."""
        return self.home or Home(vm=vm, name=self.name)


class NicSpec(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A network card. Without `address` the guest asks DHCP; `network` empty means the host's default."""

    mac: Annotated[str, Meta(pattern=MAC_PATTERN)]
    network: Annotated[str, Meta(pattern=NETWORK_PATTERN)] | None = None
    address: Annotated[str, Meta(pattern=CIDR_PATTERN)] | None = None
    gateway: Annotated[str, Meta(pattern=ADDRESS_PATTERN)] | None = None
    nameservers: Annotated[tuple[Annotated[str, Meta(pattern=ADDRESS_PATTERN)], ...], Meta(max_length=8)] = ()


SshKeys = Annotated[tuple[Annotated[str, Meta(max_length=16384)], ...], Meta(max_length=64)]
MAX_SEED = 384 * 1024
"""Bytes that user data and keys may have together: they travel in one message to the host."""
UserData = Annotated[str, Meta(max_length=520 * 1024)]
"""At most MAX_SEED bytes; sealed, as it is recorded, it is a third longer."""


class SeedSpec(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What cloud-init finds at first boot (NoCloud). `user_data` is sealed wherever it is recorded, and opened in the
    order to a host."""

    hostname: Name
    ssh_keys: SshKeys = ()
    user_data: UserData = ""


class ReadySpec(Value, frozen=True, kw_only=True, omit_defaults=True):
    """When a started VM counts as up.

    `none`: as soon as it runs; `agent`: its guest agent answers; `http`: a GET of `path` on `port` answers
    2xx; `tcp`: `port` accepts. `within` is the limit in seconds.
    """

    by: Literal["none", "agent", "http", "tcp"] = "agent"
    port: Annotated[int, Meta(ge=1, le=65535)] = 80
    path: Annotated[str, Meta(pattern=HTTP_PATH_PATTERN)] = "/"
    within: Annotated[float, Meta(ge=1, le=3600)] = 180.0


class Placing(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Where a VM may stand: on hosts with these labels, away from VMs with these labels. `host` names the one that it
    is created on; it may move from there."""

    host: Name | None = None
    host_labels: Labels = field(default_factory=dict)
    away_from: Labels = field(default_factory=dict)


Eviction = Literal["live", "restart", "stop", "never"]
"""What becomes of a VM whose host is emptied: moved while it runs, moved by a restart, stopped where it is, or left
alone, so that it blocks."""


class VmSpec(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A VM as asked for. `max_vcpus` and `max_memory` bound what can be changed while it runs."""

    vcpus: Vcpus
    max_vcpus: Vcpus
    memory: MemoryMiB
    max_memory: MemoryMiB
    disks: Annotated[tuple[DiskSpec, ...], Meta(min_length=1, max_length=16)]
    nics: Annotated[tuple[NicSpec, ...], Meta(max_length=8)] = ()
    seed: SeedSpec | None = None
    ready: ReadySpec = ReadySpec()
    placing: Placing = Placing()
    eviction: Eviction = "live"

    @property
    def disk_gib(self) -> GiB:
        """Space that the VM may come to fill, in GiB, over all storages."""
        return GiB(sum(disk.size for disk in self.disks))

    @property
    def sealed_for(self) -> Stream | None:
        """Whose key opens what its seed holds for the guest alone; None if that is nothing."""
        return None if self.seed is None else subject_of(self.seed.user_data)


class HostFacts(Value, frozen=True, kw_only=True):
    """What an agent says its host is. `accel` is what was proven to run a guest, not what is advertised."""

    hostname: str
    machine_id: str
    cpus: int
    memory: MiB
    local_gib: GiB
    shared_gib: GiB = GiB(0)
    shared_id: str = ""
    """Names the shared storage; hosts that report the same value see the same files."""
    accel: Literal["kvm", "tcg", "simulated"] = "tcg"
    libvirt: str = ""
    qemu: str = ""
    agent: str = ""
    networks: tuple[str, ...] = ()
    address: str = ""
    """Where other hosts' libvirt reaches this one's: a name or an address, the one in its certificate."""
    encrypts: bool = False
    """Whether it has a certificate, so that guests can come and go encrypted."""
    cpu: str = ""
    """libvirt's XML of the host's processor, to be compared by libvirt alone."""
    machines: tuple[str, ...] = ()
    """Machine types that its QEMU can emulate, by their versioned names."""
    local_dir: str = ""
    shared_dir: str = ""
    """Where VMs' files lie on it; a guest that moves finds them by the same names."""
    backup_targets: Mapping[Name, str] = {}
    """Directories for backups that it sees: what they are called here, and each one's own id."""
