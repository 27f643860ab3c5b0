"""The parts of the API's documents that the CLI shows, in light structs.

Fields that are not named here are skipped while decoding, so that a server may send more than this CLI knows.
Documents asked for with -o json never pass through these.
"""

from datetime import datetime
from typing import Any, Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")


class AsOf(Struct, frozen=True):
    """The moment of the log that an answer shows."""

    position: int = 0
    time: datetime | None = None


class Listing(Struct, Generic[T], frozen=True):
    """A list document."""

    items: list[T]
    asOf: AsOf = AsOf()
    next: str | int | None = None


class Single(Struct, Generic[T], frozen=True):
    """A document of one thing."""

    item: T
    asOf: AsOf = AsOf()


class Pending(Struct, frozen=True):
    """What runs now and what was asked for."""

    live: int
    asked: int


class Drift(Struct, frozen=True):
    """What the log says and what the host shows."""

    field: str
    recorded: str
    seen: str


class VmRow(Struct, frozen=True):
    """A VM in a list."""

    id: str
    name: str
    state: str
    host: str | None = None
    vcpus: int = 0
    memory: int = 0
    disk: int = 0
    addresses: list[str] = []
    labels: dict[str, str] = {}
    image: str | None = None
    created_at: datetime | None = None
    operation: str | None = None
    host_reachable: bool = True


class Disk(Struct, frozen=True):
    """A disk in a VM's specification."""

    name: str
    size: int
    storage: str = "local"
    image: dict[str, Any] | None = None


class Nic(Struct, frozen=True):
    """A network card in a VM's specification."""

    mac: str
    network: str | None = None
    address: str | None = None
    gateway: str | None = None


class Ready(Struct, frozen=True):
    """When the VM counts as up."""

    by: str = "agent"
    port: int = 80
    path: str = "/"
    within: float = 180.0


class Spec(Struct, frozen=True):
    """A VM's specification."""

    vcpus: int = 0
    memory: int = 0
    disks: list[Disk] = []
    nics: list[Nic] = []
    ready: Ready = Ready()
    max_vcpus: int = 0
    max_memory: int = 0


class Sight(Struct, frozen=True):
    """What a host showed of a VM."""

    host: str
    power: str
    reason: str = ""


class Frozen(Struct, frozen=True):
    """Why nobody can tell where a VM is."""

    operation: str
    why: str
    source: Sight
    destination: Sight
    since: datetime | None = None


class Snapshot(Struct, frozen=True):
    """A moment that a VM can be brought back to."""

    name: str
    number: int = 0
    parent: str | None = None
    current: bool = False
    quality: str = ""
    memory: bool = False
    power: str = ""
    origin: str = ""
    description: str = ""
    taken_at: datetime | None = None
    frozen: float | None = None
    layers: dict[str, int] = {}


class Difference(Struct, frozen=True):
    """What a VM was asked to be at a snapshot, and is asked to be now."""

    field: str
    then: str | None = None
    now: str | None = None


class SnapshotDetail(Snapshot, frozen=True):
    """A snapshot described."""

    vm_name: str = ""
    children: list[str] = []
    descendants: list[str] = []
    differs: list[Difference] = []
    spec: Spec = Spec()


class Schedule(Struct, frozen=True):
    """When snapshots are taken and how many are kept."""

    every: float
    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    quiesce: bool = False


class Vm(VmRow, frozen=True):
    """A VM described."""

    power: str = ""
    power_reason: str = ""
    pending: dict[str, Pending] = {}
    drift: list[Drift] = []
    epoch: int = 0
    version: int = 0
    observed_at: datetime | None = None
    eviction: str = "live"
    traces: list[str] = []
    frozen: Frozen | None = None
    spec: Spec = Spec()
    snapshots: list[Snapshot] = []
    layers_deep: int = 1
    layers_most: int = 32
    schedule: Schedule | None = None


class Step(Struct, frozen=True):
    """A step of an operation."""

    index: int
    label: str
    host: str = ""
    state: str = "waiting"


class Pace(Struct, frozen=True):
    """How a migration goes: sizes in bytes, rates in bytes per second, times in seconds."""

    elapsed: float = 0.0
    passes: int = 0
    total: int = 0
    remaining: int | None = None
    bandwidth: float | None = None
    dirty_rate: float | None = None
    converging: bool | None = None
    left: float | None = None
    downtime: float | None = None
    throttle: int = 0
    postcopy: bool = False


class Operation(Struct, frozen=True):
    """An operation."""

    id: str
    verb: str
    vm: str = ""
    vm_name: str = ""
    state: str = "running"
    code: str = ""
    message: str = ""
    actor: str = ""
    reason: str = ""
    arguments: dict[str, Any] = {}
    steps: list[Step] = []
    started_at: datetime | None = None
    ended_at: datetime | None = None
    blockers: list[str] = []
    pause: float | None = None
    pace: Pace | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("succeeded", "undone", "cancelled", "stuck")


class Capacity(Struct, frozen=True):
    """Amounts of a host's resources, memory in MiB."""

    vcpus: float = 0
    memory: float = 0
    local_gib: float = 0
    shared_gib: float = 0


class Facts(Struct, frozen=True):
    """What an agent says its host is."""

    hostname: str = ""
    machine_id: str = ""
    cpus: int = 0
    memory: int = 0
    local_gib: int = 0
    shared_gib: int = 0
    accel: str = ""
    libvirt: str = ""
    qemu: str = ""
    agent: str = ""
    networks: list[str] = []


class Certificate(Struct, frozen=True):
    """A host's newest certificate."""

    names: list[str]
    expires: datetime
    fingerprint: str = ""


class Host(Struct, frozen=True):
    """A host."""

    id: str
    name: str
    state: str
    agent: str = ""
    since: datetime | None = None
    cordoned: str | None = None
    vms: int = 0
    total: Capacity = Capacity()
    promised: Capacity = Capacity()
    labels: dict[str, str] = {}
    overcommit: dict[str, float] = {}
    unmanaged: list[str] = []
    facts: Facts | None = None
    certificate: Certificate | None = None
    version: int = 0
    drain: str | None = None
    maintenance: str | None = None


class Policy(Struct, frozen=True):
    """What holds for all hosts and VMs."""

    clear_migration: bool = False
    migrations_out: int = 0
    migrations_in: int = 0
    migrations: int = 0


class Cluster(Struct, frozen=True):
    """The cluster as its admins set it."""

    policy: Policy
    version: int = 0


class Image(Struct, frozen=True):
    """An image, sizes in bytes."""

    id: str
    name: str
    digest: str = ""
    format: str = ""
    size: int = 0
    virtual_size: int = 0
    source: str = ""
    added_at: datetime | None = None
    version: int = 0


class Token(Struct, frozen=True):
    """An API token."""

    id: str
    name: str
    role: str = ""
    holder: str = ""
    created_at: datetime | None = None
    expires: datetime | None = None
    revoked: bool = False


class Event(Struct, frozen=True):
    """An event of the log."""

    position: int
    time: datetime
    kind: str
    subject: str
    subject_name: str = ""
    version: int = 0
    schema: int = 1
    actor: str = ""
    reason: str = ""
    operation: str | None = None
    causation: int | None = None
    correlation: str | None = None
    request: str | None = None
    data: Any = None
    parent: int | None = None


class Accepted(Struct, frozen=True):
    """A change was recorded; `operation` carries it out, if it needs any work."""

    subject: str
    name: str = ""
    position: int = 0
    operation: str | None = None


class Verdict(Struct, frozen=True):
    """What placement thinks of a host."""

    name: str
    fits: bool
    score: float = 0.0
    reason: str = ""


class Prospect(Struct, frozen=True):
    """What a rollback would do; `memory` in MiB."""

    to: str
    lost: list[str] = []
    kept: list[str] = []
    stops: bool = False
    memory: int = 0
    boots: bool = False


class Plan(Struct, frozen=True):
    """What a change would do."""

    host: str | None = None
    verdicts: list[Verdict] = []
    steps: list[str] = []
    position: int = 0
    spec: Any = None
    rollback: Prospect | None = None
