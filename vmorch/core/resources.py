"""What people and programs read about things: one shape each, computed from the fleet.

The API, the read models and the past all show these, so that they cannot differ. Additive within v1.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from vmorch.core.aggregates.cluster import Policy
from vmorch.core.aggregates.host import Capacity, Host
from vmorch.core.aggregates.image import Image
from vmorch.core.aggregates.layering import (
    MOST_LAYERS,
    ROOT,
    current_parent,
    depth,
    descendants,
    find_snapshot,
    parent_of,
)
from vmorch.core.aggregates.token import Token
from vmorch.core.aggregates.vm import Frozen, Operation, Vm
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Power, Sample
from vmorch.core.ids import HostId
from vmorch.core.layers import Quality
from vmorch.core.migration import pace
from vmorch.core.sealed import brief, briefly
from vmorch.core.snapshot import Origin, Schedule, Snapshot
from vmorch.core.spec import HostFacts, VmSpec
from vmorch.core.value import Value


class Pending(Value, frozen=True, kw_only=True):
    """A figure that was asked for but is not in force before the next start."""

    live: int
    asked: int


class DriftResource(Value, frozen=True, kw_only=True):
    """A difference between the log and the host."""

    field: str
    recorded: str
    seen: str


class SightResource(Value, frozen=True, kw_only=True):
    """What a host showed of a VM; `power` is unknown if it was not seen."""

    host: str
    power: str
    reason: str


class FrozenResource(Value, frozen=True, kw_only=True):
    """Why nobody can tell where a VM is, and what was seen at both ends of its migration."""

    operation: str
    why: str
    source: SightResource
    destination: SightResource
    since: datetime


class PaceResource(Value, frozen=True, kw_only=True):
    """A migration under way as a verdict: sizes in bytes, rates in bytes per second, times in seconds; what is not
    known is null, and so is `left` where no end is in sight."""

    elapsed: float
    passes: int
    total: int
    sent: int
    remaining: int | None
    bandwidth: float | None
    dirty_rate: float | None
    converging: bool | None
    left: float | None
    downtime: float | None
    throttle: int
    postcopy: bool


class SnapshotResource(Value, frozen=True, kw_only=True):
    """A moment that a VM can be brought back to. `parent` is the snapshot that it came from; what the guest is now
    came from the one that is `current`, or from none. `layers` are those that hold its disks, `memory` tells whether
    the guest's memory is kept too, `frozen` for how many seconds its file systems were held at rest."""

    name: str
    number: int
    parent: str | None
    current: bool
    quality: Quality
    memory: bool
    power: Power
    origin: Origin
    description: str
    taken_at: datetime | None
    frozen: float | None
    layers: Mapping[str, int]


class DifferenceResource(Value, frozen=True, kw_only=True):
    """What a VM was asked to be at a snapshot, and is asked to be now; null for what it had or has none of."""

    field: str
    then: str | None
    now: str | None


class SnapshotDetail(SnapshotResource, frozen=True, kw_only=True):
    """A snapshot with everything about it. `children` came from it directly, `descendants` through them as well;
    `differs` is what `--config-too` of a rollback brings back."""

    vm: str
    vm_name: str
    children: tuple[str, ...]
    descendants: tuple[str, ...]
    differs: tuple[DifferenceResource, ...]
    spec: VmSpec


class VmResource(Value, frozen=True, kw_only=True):
    """A VM as people see it. `state` is the operation's verb in progress, or else the power last seen.

    `snapshots` are in the order of their numbers, so that each comes after the one that it came from; `layers_deep`
    tells how many layers lie above each other under the guest, of which `layers_most` may.
    """

    id: str
    name: str
    state: str
    power: str
    power_reason: str
    host: str | None
    host_reachable: bool
    vcpus: int
    memory: int
    disk: int
    addresses: tuple[str, ...]
    labels: Mapping[str, str]
    image: str | None
    pending: Mapping[str, Pending]
    drift: tuple[DriftResource, ...]
    operation: str | None
    eviction: str
    traces: tuple[str, ...]
    frozen: FrozenResource | None
    epoch: int
    version: int
    created_at: datetime | None
    observed_at: datetime | None
    spec: VmSpec
    snapshots: tuple[SnapshotResource, ...]
    layers_deep: int
    layers_most: int
    schedule: Schedule | None


class StepResource(Value, frozen=True, kw_only=True):
    """One step of an operation: `state` is waiting, running, looking (at both ends of a migration, for where the VM
    is), done, failed, undoing or undone."""

    index: int
    label: str
    host: str
    state: str


class OperationResource(Value, frozen=True, kw_only=True):
    """An operation as people see it. `state` is running, cancelling, undoing or its outcome. `blockers` is everything
    that stood in the way; `pace` tells of a migration under way, and only to whoever asks the server that heard of it.
    """

    id: str
    verb: str
    vm: str
    vm_name: str
    state: str
    code: str
    message: str
    actor: str
    reason: str
    arguments: Mapping[str, Any]
    steps: tuple[StepResource, ...]
    started_at: datetime
    ended_at: datetime | None
    blockers: tuple[str, ...] = ()
    pause: float | None = None
    """Seconds that the guest stood still while it was carried to another host."""
    pace: PaceResource | None = None


class CertificateResource(Value, frozen=True, kw_only=True):
    """A host's newest certificate: guests travel under these names until it expires."""

    fingerprint: str
    serial: str
    names: tuple[str, ...]
    expires: datetime


class HostResource(Value, frozen=True, kw_only=True):
    """A host as people see it. `state` is invited, active, cordoned, draining, maintenance, unreachable or retired;
    `drain` and `maintenance` are what is under way with it."""

    id: str
    name: str
    state: str
    agent: str
    since: datetime | None
    cordoned: str | None
    vms: int
    total: Capacity
    promised: Capacity
    labels: Mapping[str, str]
    overcommit: Mapping[str, float]
    unmanaged: tuple[str, ...]
    facts: HostFacts | None
    certificate: CertificateResource | None
    version: int
    drain: str | None = None
    maintenance: str | None = None


class ClusterResource(Value, frozen=True, kw_only=True):
    """What holds for the whole cluster, as its admins set it."""

    policy: Policy
    version: int


class ImageResource(Value, frozen=True, kw_only=True):
    """An image as people see it. Sizes in bytes."""

    id: str
    name: str
    digest: str
    format: str
    size: int
    virtual_size: int
    source: str
    added_at: datetime | None
    version: int


class TokenResource(Value, frozen=True, kw_only=True):
    """A token as people see it; nobody can see its secret again. `holder` is sealed, unless the reader may know it."""

    id: str
    name: str
    role: str
    holder: str = ""
    created_at: datetime | None
    expires: datetime | None
    revoked: bool


class EventResource(Value, frozen=True, kw_only=True):
    """An event as people see it; with the position of its `parent`, which it follows from, where that was asked for."""

    position: int
    time: datetime
    kind: str
    schema: int
    subject: str
    subject_name: str
    version: int
    actor: str
    reason: str
    operation: str | None
    causation: int | None
    correlation: str | None
    request: str | None
    data: Any
    parent: int | UnsetType | None = UNSET


class ActResource(Value, frozen=True, kw_only=True):
    """What somebody did: the verb of the operation that it began, or else the kind of its first event, with arguments
    or fields as `details`. `outcome` is `done`, `running`, or that of its operation, drain or maintenance."""

    position: int
    time: datetime
    actor: str
    what: str
    subject: str
    subject_name: str
    reason: str
    outcome: str
    code: str
    message: str
    operation: str | None
    request: str | None
    details: Any
    events: int


class WhyResource(Value, frozen=True, kw_only=True):
    """A field's value, what it was before, and the chain of causes: the event that changed it first, then what each
    follows from, up to the one that somebody did of his own accord. Without a field, of the last event."""

    subject: str
    name: str
    field: str | None
    value: Any
    before: Any
    causes: list[EventResource]


def vm_resource(fleet: Fleet, vm: Vm) -> VmResource:
    """A VM of the fleet, which must have been created."""
    assert vm.spec is not None
    host = None if vm.host is None else fleet.hosts.get(vm.host)
    images = {image.pin.digest: image.name for image in fleet.images.values() if image.pin and not image.removed}
    digest = next((disk.image.digest for disk in vm.spec.disks if disk.image), None)
    return VmResource(
        id=vm.id,
        name=vm.name,
        state=vm_state(fleet, vm),
        power=vm.power,
        power_reason=vm.power_reason,
        host=None if host is None else host.name,
        host_reachable=_reachable(fleet, vm),
        vcpus=vm.spec.vcpus,
        memory=vm.spec.memory,
        disk=vm.spec.disk_gib,
        addresses=vm.addresses,
        labels=vm.labels,
        image=None if digest is None else images.get(digest, digest),
        pending={field: Pending(live=live, asked=asked) for field, (live, asked) in vm.pending().items()},
        drift=tuple(DriftResource(field=d.field, recorded=d.recorded, seen=d.seen) for d in vm.drift),
        operation=vm.active,
        eviction=vm.spec.eviction,
        traces=tuple(sorted(_name(fleet, each) for each in vm.traces)),
        frozen=_frozen(fleet, vm.frozen),
        epoch=vm.epoch,
        version=vm.version,
        created_at=vm.created_at,
        observed_at=vm.observed_at,
        spec=shown(vm.spec),
        snapshots=snapshot_resources(vm),
        layers_deep=depth(vm),
        layers_most=MOST_LAYERS,
        schedule=vm.schedule,
    )


def snapshot_resources(vm: Vm) -> tuple[SnapshotResource, ...]:
    """A VM's snapshots in the order of their numbers."""
    current = current_parent(vm) if vm.snapshots else None
    ordered = sorted(vm.snapshots.values(), key=lambda each: each.number)
    return tuple(SnapshotResource(**_snapshot(vm, each, current)) for each in ordered)


def snapshot_detail(vm: Vm, name: str) -> SnapshotDetail:
    """One snapshot of a VM. Raises Rejected `no-such-snapshot`."""
    assert vm.spec is not None
    snapshot = find_snapshot(vm, name)
    after = descendants(vm, name)
    return SnapshotDetail(
        **_snapshot(vm, snapshot, current_parent(vm)),
        vm=vm.id,
        vm_name=vm.name,
        children=tuple(each for each in after if _parent(vm, vm.snapshots[each]) == name),
        descendants=tuple(after),
        differs=_differences(snapshot.spec, vm.spec),
        spec=shown(snapshot.spec),
    )


def _snapshot(vm: Vm, snapshot: Snapshot, current: str | None) -> dict[str, Any]:
    return {
        "name": snapshot.name,
        "number": snapshot.number,
        "parent": _parent(vm, snapshot),
        "current": snapshot.name == current,
        "quality": snapshot.quality,
        "memory": snapshot.memory is not None,
        "power": snapshot.power,
        "origin": snapshot.origin,
        "description": snapshot.description,
        "taken_at": snapshot.taken_at,
        "frozen": snapshot.frozen,
        "layers": snapshot.layers,
    }


def _parent(vm: Vm, snapshot: Snapshot) -> str | None:
    return parent_of(vm, snapshot.layers[ROOT])


def _differences(then: VmSpec, now: VmSpec) -> tuple[DifferenceResource, ...]:
    before, after = _asked(then), _asked(now)
    fields = [*before, *(field for field in after if field not in before)]
    return tuple(
        DifferenceResource(field=field, then=before.get(field), now=after.get(field))
        for field in fields
        if before.get(field) != after.get(field)
    )


def _asked(spec: VmSpec) -> dict[str, str]:
    """What a spec asks for in words; which layers its disks are written to is no part of that."""
    told = shown(spec)
    return {
        "vcpus": str(spec.vcpus),
        "max_vcpus": str(spec.max_vcpus),
        "memory": f"{spec.memory} MiB",
        "max_memory": f"{spec.max_memory} MiB",
        **{f"disk {disk.name}": f"{disk.size} GiB {disk.storage}" for disk in spec.disks},
        **{f"card {nic.mac}": f"{nic.network or 'host default'} {nic.address or 'dhcp'}" for nic in spec.nics},
        **({} if told.seed is None else {"seed": _words(told.seed)}),
        "ready": _words(spec.ready),
        "placing": _words(spec.placing),
        "eviction": spec.eviction,
    }


def _words(value: Struct) -> str:
    return msgspec.json.encode(value).decode()


def _name(fleet: Fleet, id: HostId) -> str:
    host = fleet.hosts.get(id)
    return id if host is None else host.name


def _frozen(fleet: Fleet, frozen: Frozen | None) -> FrozenResource | None:
    if frozen is None:
        return None
    ends = ((frozen.source, frozen.source_seen), (frozen.destination, frozen.destination_seen))
    source, destination = (
        SightResource(
            host=_name(fleet, end),
            power="unknown" if seen is None else seen.power,
            reason="not seen" if seen is None else seen.reason,
        )
        for end, seen in ends
    )
    return FrozenResource(
        operation=frozen.operation, why=frozen.why, source=source, destination=destination, since=frozen.since
    )


def pace_resource(sample: Sample) -> PaceResource:
    """What a sample says about a migration's end."""
    found = pace(sample)

    def known(value: float) -> float | None:
        return None if value < 0 else value

    return PaceResource(
        elapsed=sample.elapsed,
        passes=found.passes,
        total=sample.total,
        sent=sample.sent,
        remaining=None if found.remaining < 0 else found.remaining,
        bandwidth=known(found.bandwidth),
        dirty_rate=known(found.dirty_rate),
        converging=found.converging,
        left=found.left,
        downtime=known(found.downtime),
        throttle=found.throttle,
        postcopy=found.postcopy,
    )


DOING = {
    "create": "creating",
    "start": "starting",
    "stop": "stopping",
    "reboot": "rebooting",
    "pause": "pausing",
    "resume": "resuming",
    "delete": "deleting",
    "resize": "resizing",
    "migrate": "migrating",
    "snapshot": "snapshotting",
    "delete-snapshot": "deleting-snapshot",
    "rollback": "rolling-back",
    "settle": "settling",
    "tidy": "tidying",
    "backup": "backing-up",
    "restore": "restoring",
    "verify-backup": "verifying-backup",
    "delete-backup": "deleting-backup",
    "attach-volume": "attaching",
    "detach-volume": "detaching",
    "grow-disk": "growing-disk",
    "create-volume": "creating-volume",
    "clone-volume": "cloning-volume",
    "resize-volume": "resizing-volume",
    "delete-volume": "deleting-volume",
    "restore-volume": "restoring-volume",
    "find-strays": "looking",
    "set-aside": "setting-aside",
}


def shown(spec: VmSpec) -> VmSpec:
    """A spec without what only its guest shall read, sealed or not."""
    if spec.seed is None or not spec.seed.user_data:
        return spec
    return replace(spec, seed=replace(spec.seed, user_data=brief(spec.seed.user_data)))


def vm_state(fleet: Fleet, vm: Vm) -> str:
    """What a VM is doing, or else the power last seen."""
    if vm.deleted_at is not None:
        return "deleted"
    active = vm.operations.get(vm.active) if vm.active else None
    if active is not None:
        return DOING.get(active.verb, active.verb)
    if vm.frozen is not None:
        return "unknown"
    return vm.power if vm.power == "off" or _reachable(fleet, vm) else "unknown"


def _reachable(fleet: Fleet, vm: Vm) -> bool:
    host = None if vm.host is None else fleet.hosts.get(vm.host)
    return host is not None and host.agent == "connected"


def operation_resource(
    fleet: Fleet, vm: Vm, operation: Operation, sample: Sample | None = None
) -> OperationResource:
    """An operation of a VM; `sample` is the newest that was told of it."""
    progress = operation.progress
    state: str = operation.outcome or "running"
    if operation.outcome is None and progress.failed is not None:
        state = "undoing"
    elif operation.outcome is None and progress.cancel:
        state = "cancelling"
    steps = []
    for index, each in enumerate(operation.steps):
        host = fleet.hosts.get(each.host)
        steps.append(
            StepResource(
                index=index,
                label=each.label,
                host=each.host if host is None else host.name,
                state=_step_state(operation, index),
            )
        )
    return OperationResource(
        id=operation.id,
        verb=operation.verb,
        vm=vm.id,
        vm_name=vm.name,
        state=state,
        code=operation.code or (progress.failed.code if progress.failed else ""),
        message=operation.message or (progress.failed.message if progress.failed else ""),
        actor=operation.actor,
        reason=operation.reason,
        arguments=briefly(operation.arguments),
        steps=tuple(steps),
        started_at=operation.started_at,
        ended_at=operation.ended_at,
        blockers=progress.failed.blockers if progress.failed else (),
        pause=operation.pause,
        pace=None if sample is None or operation.outcome is not None else pace_resource(sample),
    )


def _step_state(operation: Operation, index: int) -> str:
    progress = operation.progress
    if index in progress.undone:
        return "undone"
    if index < progress.done:
        return "done"
    if index == progress.done and progress.failed is not None:
        return "failed"
    if index == progress.done and operation.outcome is None:
        return "looking" if progress.over else "running"
    return "waiting"


def host_resource(fleet: Fleet, host: Host) -> HostResource:
    """A host of the fleet."""
    state: str = host.agent
    drain, maintenance = fleet.draining(host.id), fleet.maintained(host.id)
    if host.retired:
        state = "retired"
    elif fleet.away(host.id):
        state = "maintenance"
    elif host.agent == "connected":
        state = "draining" if drain else "active" if host.cordoned is None else "cordoned"
    return HostResource(
        id=host.id,
        name=host.name,
        state=state,
        agent=host.agent,
        since=host.since,
        cordoned=host.cordoned,
        vms=len(host.reservations),
        total=host.total(),
        promised=host.promised(),
        labels=host.labels,
        overcommit={
            "cpu": host.overcommit.cpu,
            "memory": host.overcommit.memory,
            "disk": host.overcommit.disk,
        },
        unmanaged=host.unmanaged,
        facts=host.facts,
        certificate=_certificate(host),
        version=host.version,
        drain=drain,
        maintenance=None if maintenance is None else maintenance.id,
    )


def _certificate(host: Host) -> CertificateResource | None:
    if not host.certificates:
        return None
    newest = host.certificates[-1]
    return CertificateResource(
        fingerprint=newest.fingerprint, serial=newest.serial, names=newest.names, expires=newest.expires
    )


def cluster_resource(fleet: Fleet) -> ClusterResource:
    """The cluster's policy."""
    return ClusterResource(policy=fleet.cluster.policy, version=fleet.cluster.version)


def image_resource(image: Image) -> ImageResource:
    """An image, which must have been added."""
    assert image.pin is not None
    return ImageResource(
        id=image.id,
        name=image.name,
        digest=image.pin.digest,
        format=image.pin.format,
        size=image.pin.size,
        virtual_size=image.pin.virtual_size,
        source=image.source,
        added_at=image.added_at,
        version=image.version,
    )


def token_resource(token: Token) -> TokenResource:
    """A token without anything secret."""
    return TokenResource(
        id=token.id,
        name=token.name,
        role=token.role,
        holder=token.holder,
        created_at=token.created_at,
        expires=token.expires,
        revoked=token.revoked,
    )
