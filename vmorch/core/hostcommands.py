"""The vocabulary between the control plane and an agent: what a libvirt host can be told.

Each command names an absolute target and is safe to carry out twice. Must not say how: paths, XML and
libvirt calls are the agent's. Answers carry what was observed, so that state comes from looking.
"""

from typing import Annotated, Literal

from msgspec import Meta

from vmorch.core.backup import Saved, Target
from vmorch.core.ids import BackupId, MiB, VmId
from vmorch.core.layers import Stack
from vmorch.core.messages import HostCommand, message
from vmorch.core.spec import DiskName, DiskSpec, ImagePin, LayerNumber, NicSpec, ReadySpec, SeedSpec, Storage, VmSpec
from vmorch.core.value import Value

Power = Literal["absent", "off", "running", "paused", "crashed", "unknown"]
"""What a host sees of a domain. `absent`: libvirt knows no such domain; `unknown`: nobody can see it now."""


class Observed(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A domain as its host saw it at one moment. Figures are those in force now, not those configured."""

    power: Power
    reason: str = ""
    vcpus: int = 0
    memory: MiB = MiB(0)
    addresses: tuple[str, ...] = ()
    moving: bool = False
    """libvirt is still at work on a migration of the domain: what is seen now will not last."""


class Stray(Value, frozen=True, kw_only=True):
    """A directory for a VM's or a volume's files that nobody owns: its name is an id, and `files` are the first of its
    files. `bytes` is what all of them take."""

    storage: Storage
    id: VmId
    files: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=20)]
    bytes: Annotated[int, Meta(ge=0)]


class Done(Value, frozen=True, kw_only=True, omit_defaults=True, tag_field="answer", tag="done"):
    """The target is reached. `already`: it was so before the command came. `pause`: for how many seconds the guest
    stood still for it; `frozen`: for how many seconds its file systems were held at rest."""

    observed: Observed | None = None
    already: bool = False
    pause: float | None = None
    frozen: float | None = None
    saved: Saved | None = None
    """The backup that was made."""
    strays: tuple[Stray, ...] = ()
    """Directories that nobody owns, if they were asked for."""


class Failed(Value, frozen=True, kw_only=True, omit_defaults=True, tag_field="answer", tag="failed"):
    """The target is not reached. `message` holds libvirt's or the system's own words.

    `interrupted` as code: the agent stopped in the middle and, by looking, found the effect not there; the
    same step may be sent again under a new id.
    """

    code: str
    message: str
    observed: Observed | None = None
    blockers: tuple[str, ...] = ()
    """Everything that stands in the way, where more than one thing can."""


Answer = Done | Failed


class DomainCommand(HostCommand, frozen=True, kw_only=True):
    """A command about one VM's domain, disks or seed: runs in that VM's lane."""

    vm: VmId

    @property
    def lane(self) -> str:
        return f"vm/{self.vm}"


@message("host.fetch-image")
class FetchImage(HostCommand, frozen=True, kw_only=True):
    """The image's bytes are in the host's cache, verified against the digest."""

    label = "image"
    image: ImagePin
    path: Annotated[str, Meta(pattern=r"^/v1/images/[0-9a-f]{64}/content$(?!\n)")]
    """Where on the control plane's HTTP address the bytes are."""

    @property
    def lane(self) -> str:
        return f"image/{self.image.digest}"


@message("host.create-disk")
class CreateDisk(DomainCommand, frozen=True, kw_only=True):
    """The VM's disk exists: a qcow2 overlay on its image, or empty. An existing one is left as it is."""

    label = "disk"
    disk: DiskSpec


@message("host.delete-disk")
class DeleteDisk(DomainCommand, frozen=True, kw_only=True):
    """The VM's disk of that name is gone from that storage. Files the agent did not make stay."""

    label = "delete disk"
    disk: DiskSpec


@message("host.write-seed")
class WriteSeed(DomainCommand, frozen=True, kw_only=True):
    """The VM's NoCloud seed holds exactly this. `instance` changes when cloud-init shall run again."""

    label = "seed"
    seed: SeedSpec
    nics: tuple[NicSpec, ...]
    instance: str


@message("host.delete-seed")
class DeleteSeed(DomainCommand, frozen=True, kw_only=True):
    """The VM has no seed."""

    label = "delete seed"


@message("host.define-domain")
class DefineDomain(DomainCommand, frozen=True, kw_only=True):
    """The host's persistent configuration of the domain is this; a running one is not touched."""

    label = "define"
    spec: VmSpec


@message("host.undefine-domain")
class UndefineDomain(DomainCommand, frozen=True, kw_only=True):
    """The host has no persistent configuration of the domain, and once it does not run, nothing kept for one.

    What is kept are its seed, its serial log and what is remembered of its run. Disks stay. A running domain goes
    on with all of it until it stops.
    """

    label = "undefine"


@message("host.start-domain")
class StartDomain(DomainCommand, frozen=True, kw_only=True):
    """The domain runs; `halted`, its vCPUs do not."""

    label = "start"
    halted: bool = False


@message("host.stop-domain")
class StopDomain(DomainCommand, frozen=True, kw_only=True):
    """The domain is off. The guest is asked first and has `grace` seconds; then, if `force`, it is cut.

    Fails with `guest-did-not-stop` when it still runs and force was not asked. `grace` 0 with force cuts at once.
    """

    label = "stop"
    grace: float
    force: bool


@message("host.suspend-domain")
class SuspendDomain(DomainCommand, frozen=True, kw_only=True):
    """The domain's vCPUs are halted, its memory kept."""

    label = "pause"


@message("host.resume-domain")
class ResumeDomain(DomainCommand, frozen=True, kw_only=True):
    """The domain's vCPUs run again."""

    label = "resume"


@message("host.set-vcpus")
class SetVcpus(DomainCommand, frozen=True, kw_only=True):
    """The running domain has this many vCPUs. Never fewer than now: removal is not safe on a live guest."""

    label = "vcpus"
    vcpus: int


@message("host.set-memory")
class SetMemory(DomainCommand, frozen=True, kw_only=True):
    """The running domain's balloon target is this."""

    label = "memory"
    memory: MiB


@message("host.await-ready")
class AwaitReady(DomainCommand, frozen=True, kw_only=True):
    """The guest is up by its own word. Fails with `not-ready` when its time is over.

    `known` is where a guest was that moved here as it ran: it is there still, and is not asked. Then it must go on
    running for `steady` seconds.
    """

    label = "ready"
    ready: ReadySpec
    nics: tuple[NicSpec, ...]
    known: tuple[str, ...] = ()
    steady: float = 0.0


class Passage(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How a running guest is carried to another host.

    `bandwidth` in MiB/s and `connections` are 0 where libvirt chooses. `max_downtime`: the longest pause at the
    switch-over, in seconds. `slow_down`: the guest's processors are throttled while it does not converge. `within`
    bounds the whole passage and `stall` the time without progress, both in seconds; what happens then is `on_stall`.
    """

    encrypted: bool
    bandwidth: int = 0
    max_downtime: float = 0.3
    slow_down: bool = True
    connections: int = 0
    within: float = 3600.0
    stall: float = 120.0
    on_stall: Literal["abort", "postcopy"] = "abort"


class Sample(Value, frozen=True, kw_only=True):
    """How far a passage has come. Sizes in bytes, rates in bytes per second, times in seconds; -1: not known yet.

    `passes` counts how often memory was gone through; `throttle` is the per cent taken from the guest's processors.
    """

    elapsed: float
    passes: int = 0
    total: int = 0
    sent: int = 0
    remaining: int = -1
    bandwidth: float = -1
    dirty_rate: float = -1
    downtime: float = -1
    throttle: int = 0
    postcopy: bool = False


@message("host.prepare-arrival")
class PrepareArrival(DomainCommand, frozen=True, kw_only=True):
    """The host can take the domain in: everything that stands in the way is looked for and told at once.

    `cpu` is the source's processor and `machine` the guest's board, empty where they are not known.
    """

    label = "check"
    spec: VmSpec
    cpu: str = ""
    machine: str = ""
    encrypted: bool = True


@message("host.migrate-domain")
class MigrateDomain(DomainCommand, frozen=True, kw_only=True):
    """The domain has left for the host at `address` with its configuration, and so have the disks named in `copy`.

    The answer says how libvirt's call ended; where the guest is only a look at both hosts can tell.
    """

    label = "migrate"
    address: str
    passage: Passage
    copy: tuple[str, ...] = ()


@message("host.tune-migration")
class TuneMigration(DomainCommand, frozen=True, kw_only=True):
    """The passage under way has these limits; what is None stays. With `postcopy` the guest is switched over now
    and the rest of its memory follows."""

    label = "tune"
    bandwidth: int | None = None
    max_downtime: float | None = None
    postcopy: bool = False

    @property
    def lane(self) -> str:
        # the passage itself holds the VM's lane
        return f"tune/{self.vm}"


@message("host.observe-domain")
class ObserveDomain(DomainCommand, frozen=True, kw_only=True):
    """Nothing is changed; the answer tells what is seen."""

    label = "look"

    @property
    def lane(self) -> str:
        # whatever hangs in the VM's lane must not hide the VM
        return f"look/{self.vm}"


@message("host.clear-domain")
class ClearDomain(DomainCommand, frozen=True, kw_only=True):
    """Neither a halted half of the domain nor its configuration stands on the host. One that runs is left alone and
    refused as `runs-here`. Disks and seed stay."""

    label = "clear"


@message("host.claim-domain")
class ClaimDomain(DomainCommand, frozen=True, kw_only=True):
    """The domain is this host's: its configuration is `spec`, and if a migration left it halted and it shall `run`, it
    runs on. Sent only when its other half is proven to be gone. One that is off stays off."""

    label = "claim"
    spec: VmSpec
    run: bool


@message("host.run-hook")
class RunHook(HostCommand, frozen=True, kw_only=True):
    """The host's own script of this name has run and ended well; a host without one has nothing to do.

    `run` names this one run, so that a repeated order does not run it twice.
    """

    label = "hook"
    name: Literal["before-maintenance", "after-maintenance"]
    run: str

    @property
    def lane(self) -> str:
        return "hook"


class LayerCommand(DomainCommand, frozen=True, kw_only=True):
    """A command about the layers of a VM's disks. `stacks` is how they must be found before anything is touched; what
    is otherwise fails as `chain-drift`, with every difference among the blockers.

    `next` is the number that the next layer gets. A file of this number that nothing uses is what an attempt left that
    came to nothing.
    """

    stacks: tuple[Stack, ...]
    next: LayerNumber


class Memory(Value, frozen=True, kw_only=True):
    """The file that a guest's memory is kept in: its number among the VM's, and where it lies."""

    number: LayerNumber
    storage: Storage


@message("host.take-snapshot")
class TakeSnapshot(LayerCommand, frozen=True, kw_only=True):
    """The domain's configuration is `spec`, and its guest writes to the layers named there, each new and on top of the
    one that it wrote to before.

    With `memory` the guest's memory of the same moment is kept there. With `freeze` the guest holds its file systems at
    rest meanwhile; it has so many seconds to do so, or nothing is taken (`freeze-failed`).
    """

    label = "snapshot"
    spec: VmSpec
    memory: Memory | None = None
    freeze: float | None = None


@message("host.make-layers")
class MakeLayers(LayerCommand, frozen=True, kw_only=True):
    """Layer `next` of each disk named in `on` exists, holds nothing yet, and stands on the layer told there."""

    label = "layers"
    on: dict[DiskName, LayerNumber]


@message("host.drop-layers")
class DropLayers(LayerCommand, frozen=True, kw_only=True):
    """These layers of the disks, on which nothing else stands, are gone with all that they hold, and so is the kept
    `memory`. Layers that the domain uses are refused as `busy`."""

    label = "drop"
    layers: dict[DiskName, tuple[LayerNumber, ...]] = {}  # noqa: RUF012  msgspec copies mutable defaults
    memory: tuple[Memory, ...] = ()


@message("host.merge-layers")
class MergeLayers(LayerCommand, frozen=True, kw_only=True):
    """What layer `top` of the disk held is held by the layer `into` below it, which everything that stood on `top`
    stands on; `top` is gone. The domain's configuration is `spec`. A running guest runs on."""

    label = "merge"
    spec: VmSpec
    disk: DiskName
    top: LayerNumber
    into: LayerNumber


@message("host.save-guest")
class SaveGuest(DomainCommand, frozen=True, kw_only=True):
    """The guest's memory is kept, whole, and the domain is off."""

    label = "save"
    memory: Memory


@message("host.restore-guest")
class RestoreGuest(DomainCommand, frozen=True, kw_only=True):
    """The domain's configuration is `spec`, and the guest goes on from its kept memory over the disks named there, or
    is `halted` there.

    With `spend` the memory is not kept any longer once it runs.
    """

    label = "restore"
    spec: VmSpec
    memory: Memory
    halted: bool = False
    spend: bool = False


@message("host.take-backup")
class TakeBackup(LayerCommand, frozen=True, kw_only=True):
    """The backup is in its target, whole, and holds the VM's disks as they were at one moment; it stands on the last
    one of `chain` if the host finds everything for that, else it is full. With `full` it is full for that reason.

    `chain` is the backups that it may stand on, the full one first. The guest's writes are noted from that moment on,
    for the next one. `freeze` as for a snapshot.
    """

    label = "backup"
    backup: BackupId
    target: Target
    name: str
    vm_name: str
    spec: VmSpec
    chain: tuple[Saved, ...] = ()
    full: str = ""
    freeze: float | None = None


Chain = Annotated[tuple[Saved, ...], Meta(min_length=1)]
"""Backups that stand on each other, the full one first."""


class BackupCommand(HostCommand, frozen=True, kw_only=True):
    """A command about a backup that was made."""

    target: Target


@message("host.drop-backup")
class DropBackup(BackupCommand, frozen=True, kw_only=True):
    """Nothing of the backup is in its target, nor a draft of it."""

    label = "drop backup"
    backup: BackupId

    @property
    def lane(self) -> str:
        return f"backup/{self.backup}"


@message("host.verify-backup")
class VerifyBackup(BackupCommand, frozen=True, kw_only=True):
    """Every file that the last backup of `chain` needs was read to its end and is what was made, and together they give
    what was read when they were made. Fails with `backup-damaged`; everything that differs is a blocker."""

    label = "verify"
    chain: Chain

    @property
    def lane(self) -> str:
        return f"backup/{self.chain[-1].backup}"


@message("host.restore-disk")
class RestoreDisk(DomainCommand, frozen=True, kw_only=True):
    """The VM's disk exists and holds what the disk of the same name held at the last backup of `chain`, which was
    compared with what was noted then. An existing one is left as it is."""

    label = "restore disk"
    disk: DiskSpec
    target: Target
    chain: Chain


@message("host.attach-disk")
class AttachDisk(DomainCommand, frozen=True, kw_only=True):
    """The domain's configuration is `spec`, and a guest that is on has the disk `name` of it, which libvirt says
    itself. Nothing must stand on the file that the guest is given."""

    label = "attach"
    spec: VmSpec
    name: DiskName


@message("host.detach-disk")
class DetachDisk(DomainCommand, frozen=True, kw_only=True):
    """The domain's configuration is `spec`, without the disk, and a guest that is on has let go of it, which libvirt
    says itself. Fails with `device-held` when the guest has not done so after `within` seconds; it may do so later."""

    label = "detach"
    spec: VmSpec
    disk: DiskSpec
    within: float = 20.0


@message("host.grow-disk")
class GrowDisk(DomainCommand, frozen=True, kw_only=True):
    """The disk has the size that it says, for a guest that is on as well. None becomes smaller."""

    label = "grow"
    disk: DiskSpec


@message("host.copy-disk")
class CopyDisk(DomainCommand, frozen=True, kw_only=True):
    """The disk exists, stands by itself, and holds what `source` holds, which nobody uses meanwhile. It is as large as
    that, at least."""

    label = "copy"
    disk: DiskSpec
    source: DiskSpec


@message("host.find-strays")
class FindStrays(HostCommand, frozen=True, kw_only=True):
    """Nothing is changed; the answer tells the directories of VMs and volumes whose id is not among `known`, as far as
    `most` goes."""

    label = "look"
    known: tuple[VmId, ...]
    most: Annotated[int, Meta(ge=1, le=1000)] = 200

    @property
    def lane(self) -> str:
        return "strays"


class StrayCommand(HostCommand, frozen=True, kw_only=True):
    """A command about a directory that nobody owns."""

    storage: Storage
    id: VmId

    @property
    def lane(self) -> str:
        return f"vm/{self.id}"


@message("host.set-aside")
class SetAside(StrayCommand, frozen=True, kw_only=True):
    """The directory is not among those of VMs and volumes any more, but set aside with all that is in it. Refused as
    `busy` if libvirt knows a domain of that id or a file in it is in use."""

    label = "set aside"


@message("host.bring-back")
class BringBack(StrayCommand, frozen=True, kw_only=True):
    """A directory that was set aside is back in its place."""

    label = "bring back"


@message("host.purge")
class Purge(StrayCommand, frozen=True, kw_only=True):
    """Nothing is left of a directory that was set aside."""

    label = "purge"
