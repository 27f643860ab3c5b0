"""What people and programs read about things: one shape each, computed from the fleet.

The API, the read models and the past all show these, so that they cannot differ. Additive within v1.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from vmorch.core.aggregates.cluster import Policy
from vmorch.core.aggregates.host import Capacity, Host
from vmorch.core.aggregates.image import Image
from vmorch.core.aggregates.token import Token
from vmorch.core.aggregates.vm import Frozen, Operation, Vm
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Sample
from vmorch.core.ids import HostId
from vmorch.core.migration import pace
from vmorch.core.spec import HostFacts, VmSpec


class Pending(Struct, frozen=True, kw_only=True):
    """A figure that was asked for but is not in force before the next start."""

    live: int
    asked: int


class DriftResource(Struct, frozen=True, kw_only=True):
    """A difference between the log and the host."""

    field: str
    recorded: str
    seen: str


class SightResource(Struct, frozen=True, kw_only=True):
    """What a host showed of a VM; `power` is unknown if it was not seen."""

    host: str
    power: str
    reason: str


class FrozenResource(Struct, frozen=True, kw_only=True):
    """Why nobody can tell where a VM is, and what was seen at both ends of its migration."""

    operation: str
    why: str
    source: SightResource
    destination: SightResource
    since: datetime


class PaceResource(Struct, frozen=True, kw_only=True):
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


class VmResource(Struct, frozen=True, kw_only=True):
    """A VM as people see it. `state` is the operation's verb in progress, or else the power last seen."""

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


class StepResource(Struct, frozen=True, kw_only=True):
    """One step of an operation: `state` is waiting, running, looking (at both ends of a migration, for where the VM
    is), done, failed, undoing or undone."""

    index: int
    label: str
    host: str
    state: str


class OperationResource(Struct, frozen=True, kw_only=True):
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


class CertificateResource(Struct, frozen=True, kw_only=True):
    """A host's newest certificate: guests travel under these names until it expires."""

    fingerprint: str
    serial: str
    names: tuple[str, ...]
    expires: datetime


class HostResource(Struct, frozen=True, kw_only=True):
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


class ClusterResource(Struct, frozen=True, kw_only=True):
    """What holds for the whole cluster, as its admins set it."""

    policy: Policy
    version: int


class ImageResource(Struct, frozen=True, kw_only=True):
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


class TokenResource(Struct, frozen=True, kw_only=True):
    """A token as people see it; nobody can see its secret again."""

    id: str
    name: str
    role: str
    created_at: datetime | None
    expires: datetime | None
    revoked: bool


class EventResource(Struct, frozen=True, kw_only=True):
    """An event as people see it."""

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


def veiled(data: Any) -> Any:
    """Plain data in which every `user_data` is replaced by its size and digest: it may hold a guest's secrets."""
    if isinstance(data, dict):
        return {key: _veil(value) if key == "user_data" else veiled(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [veiled(each) for each in data]
    return data


def _veil(text: Any) -> str:
    raw = str(text).encode()
    return f"({len(raw)} bytes, sha256 {hashlib.sha256(raw).hexdigest()[:12]})" if raw else ""


def vm_resource(fleet: Fleet, vm: Vm) -> VmResource:
    """A VM of the fleet, which must have been created."""
    assert vm.spec is not None
    host = None if vm.host is None else fleet.hosts.get(vm.host)
    images = {image.pin.digest: image.name for image in fleet.images.values() if image.pin and not image.removed}
    digest = next((disk.image.digest for disk in vm.spec.disks if disk.image), None)
    reachable = host is not None and host.agent == "connected"
    active = vm.operations.get(vm.active) if vm.active else None
    return VmResource(
        id=vm.id,
        name=vm.name,
        state=_vm_state(vm, active, reachable),
        power=vm.power,
        power_reason=vm.power_reason,
        host=None if host is None else host.name,
        host_reachable=reachable,
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
        spec=_shown(vm.spec),
    )


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
    "settle": "settling",
    "tidy": "tidying",
}


def _shown(spec: VmSpec) -> VmSpec:
    if spec.seed is None or not spec.seed.user_data:
        return spec
    return replace(spec, seed=replace(spec.seed, user_data=_veil(spec.seed.user_data)))


def _vm_state(vm: Vm, active: Operation | None, reachable: bool) -> str:
    if vm.deleted_at is not None:
        return "deleted"
    if active is not None:
        return DOING.get(active.verb, active.verb)
    if vm.frozen is not None:
        return "unknown"
    return vm.power if reachable or vm.power == "off" else "unknown"


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
        arguments=veiled(operation.arguments),
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
        created_at=token.created_at,
        expires=token.expires,
        revoked=token.revoked,
    )
