"""The state of everything, folded from the log: the same fold serves the present, the past and every read model.

Must not read or write anything; `apply` is the only way in and takes facts in log order.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from msgspec.structs import force_setattr, replace

import vmorch.core.operations  # noqa: F401  registers every operation's facts before the first is read
from vmorch.core.aggregates import cluster as clusters
from vmorch.core.aggregates.backup import Backup, BackupAbandoned, BackupBegun, BackupDeleted, BackupEvent
from vmorch.core.aggregates.budget import Budget, BudgetCreated, BudgetDeleted, BudgetEvent
from vmorch.core.aggregates.cluster import Cluster, ClusterEvent
from vmorch.core.aggregates.drain import Drain, DrainEvent, DrainPlanned, MoveBegun
from vmorch.core.aggregates.erasure import ErasureEvent, Erasures
from vmorch.core.aggregates.host import Host, HostCertified, HostEnrolled, HostEvent, HostInvited, HostRetired
from vmorch.core.aggregates.image import Image, ImageAdded, ImageEvent, ImageRemoved
from vmorch.core.aggregates.maintenance import AWAY, SETTLED, Maintenance, MaintenanceEvent
from vmorch.core.aggregates.token import Token, TokenCreated, TokenEvent, TokenRevoked
from vmorch.core.aggregates.vm import Operation, Vm, VmCreated, VmDeleted, VmEvent
from vmorch.core.aggregates.volume import (
    StraySetAside,
    Volume,
    VolumeCreated,
    VolumeDeleted,
    VolumeEvent,
    VolumeKept,
)
from vmorch.core.codec import Fact, unpack_event
from vmorch.core.errors import Rejected
from vmorch.core.ids import (
    BackupId,
    DrainId,
    HostId,
    ImageId,
    OperationId,
    Position,
    Stream,
    VmId,
    VolumeId,
    split_stream,
)
from vmorch.core.messages import Event
from vmorch.core.operation import Change
from vmorch.core.operations.rename import VmRenamed
from vmorch.core.records import NameClaim
from vmorch.core.value import Value

CERTIFIED = "certificate"
"""The scope of the names in certificates."""
KEPT_DELETED = 1000
"""How many deleted VMs the state remembers, so that it does not grow with the length of the log."""

KEPT_DRAINS = 100
"""How many drains, and how many maintenances, that are over the state remembers; the log has all."""

KEPT_PLANS = 1000
"""How many drains that were planned and never begun the state remembers. A plan is begun within moments or not at all:
nobody decides about one while so many are made."""

T = TypeVar("T", Vm, Host, Image, Token, Budget, Backup, Volume)
S = TypeVar("S", bound=Value)
AFTERMATH = frozenset({"settle", "tidy"})
"""Operations that nobody asked for: a migration before them is why."""

K = TypeVar("K", bound=str)
P = TypeVar("P", Drain, Maintenance)


class Fleet:
    """Everything that there is as of `position`. States are immutable; only the tables change. `causes` tells which
    drain an operation belongs to."""

    def __init__(self) -> None:
        self.position = Position(0)
        self.recorded_at: datetime | None = None
        self.vms: dict[VmId, Vm] = {}
        self.hosts: dict[HostId, Host] = {}
        self.images: dict[ImageId, Image] = {}
        self.tokens: dict[str, Token] = {}
        self.budgets: dict[str, Budget] = {}
        self.backups: dict[BackupId, Backup] = {}
        self.volumes: dict[VolumeId, Volume] = {}
        self.drains: dict[DrainId, Drain] = {}
        self.causes: dict[OperationId, DrainId] = {}
        self.maintenances: dict[str, Maintenance] = {}
        self.cluster = Cluster()
        self.erasures = Erasures()
        self.versions: dict[Stream, int] = {}
        self.operations: dict[OperationId, VmId] = {}
        self._deleted: deque[VmId] = deque()
        self._over: deque[DrainId] = deque()
        self._through: deque[str] = deque()
        self._planned: OrderedDict[DrainId, None] = OrderedDict()

    def apply(self, fact: Fact) -> None:
        """Take the next fact. Facts of kinds that no aggregate knows only move the position on."""
        # naming the kind of each id would be a call for each event of a long log
        id: Any = fact.stream.partition("/")[2]
        at, version, event = fact.recorded_at, fact.version, fact.event
        fold = _FOLDS.get(event.subject)
        if fold is not None:
            fold(self, id, event, version, at)
        self.versions[fact.stream] = version
        self.position = fact.position
        self.recorded_at = at

    def _host(self, id: HostId, event: HostEvent, version: int, at: datetime) -> None:
        host = self.hosts.get(id) or Host(id=id, name="")
        self.hosts[id] = _versioned(event.apply(host, at), host, version)

    def _image(self, id: ImageId, event: ImageEvent, version: int, at: datetime) -> None:
        image = self.images.get(id) or Image(id=id)
        self.images[id] = _versioned(event.apply(image, at), image, version)

    def _token(self, id: str, event: TokenEvent, version: int, at: datetime) -> None:
        token = self.tokens.get(id) or Token(id=id)
        self.tokens[id] = _versioned(event.apply(token, at), token, version)

    def _budget(self, id: str, event: BudgetEvent, version: int, at: datetime) -> None:
        budget = self.budgets.get(id) or Budget(id=id)
        self.budgets[id] = _versioned(event.apply(budget, at), budget, version)

    def _cluster(self, _id: str, event: ClusterEvent, version: int, at: datetime) -> None:
        self.cluster = _versioned(event.apply(self.cluster, at), self.cluster, version)

    def _audit(self, _id: str, event: ErasureEvent, version: int, at: datetime) -> None:
        self.erasures = _versioned(event.apply(self.erasures, at), self.erasures, version)

    def _vm(self, id: VmId, event: VmEvent, version: int, at: datetime) -> None:
        vm = self.vms.get(id) or Vm(id=id)
        after = _versioned(event.apply(vm, at), vm, version)
        self.vms[id] = after
        if after.active is not None and after.active != vm.active:
            self.operations[after.active] = id
            for operation in vm.operations:
                if operation in after.operations:
                    break  # the oldest are forgotten first
                self.operations.pop(operation, None)
        if after.deleted_at is not None and vm.deleted_at is None:
            self._deleted.append(id)
            if len(self._deleted) > KEPT_DELETED:
                # a fleet may hold a part of the VMs only
                gone = self.vms.pop(self._deleted.popleft(), None)
                for operation in () if gone is None else gone.operations:
                    self.operations.pop(operation, None)

    def _backup(self, id: BackupId, event: BackupEvent, version: int, at: datetime) -> None:
        known = self.backups.get(id)
        if known is None and not isinstance(event, BackupBegun):
            # what was found out of a backup came after it was deleted
            return
        before = known or Backup(id=id)
        after = _versioned(event.apply(before, at), before, version)
        if after.gone:
            self.backups.pop(id, None)
        else:
            self.backups[id] = after

    def _volume(self, id: VolumeId, event: VolumeEvent, version: int, at: datetime) -> None:
        known = self.volumes.get(id)
        if known is None and not isinstance(event, VolumeCreated | VolumeKept | StraySetAside):
            # what carried the work on a directory that nobody owned gives back a volume that never was
            return
        before = known or Volume(id=id)
        after = _versioned(event.apply(before, at), before, version)
        if after.gone:
            self.volumes.pop(id, None)
        else:
            self.volumes[id] = after

    def _drain(self, id: DrainId, event: DrainEvent, version: int, at: datetime) -> None:
        known = self.drains.get(id)
        if known is None and not isinstance(event, DrainPlanned):
            # of a plan that was forgotten
            return
        drain = known or Drain(id=id)
        after = _versioned(event.apply(drain, at), drain, version)
        self.drains[id] = after
        if after.state == "planned":
            self._planned[id] = None
            if len(self._planned) > KEPT_PLANS:
                del self.drains[self._planned.popitem(last=False)[0]]
        else:
            self._planned.pop(id, None)
        if isinstance(event, MoveBegun):
            self.causes[event.operation] = id
        if after.ended_at is not None and drain.ended_at is None:
            self._over.append(id)
            if len(self._over) > KEPT_DRAINS:
                gone = self.drains.pop(self._over.popleft())
                for operation in gone.operations:
                    self.causes.pop(operation, None)

    def _maintenance(self, id: str, event: MaintenanceEvent, version: int, at: datetime) -> None:
        before = self.maintenances.get(id) or Maintenance(id=id)
        after = _versioned(event.apply(before, at), before, version)
        self.maintenances[id] = after
        if after.ended_at is not None and before.ended_at is None:
            self._through.append(id)
            if len(self._through) > KEPT_DRAINS:
                del self.maintenances[self._through.popleft()]

    def skip(self, stream: Stream, version: int, position: Position, at: datetime) -> None:
        """Move on past an event without looking into it."""
        self.versions[stream] = version
        self.position = position
        self.recorded_at = at

    def version(self, stream: Stream) -> int:
        """The version of a stream; 0 if it does not exist."""
        return self.versions.get(stream, 0)

    def copy(self) -> "Fleet":
        """The fleet at this moment, unaffected by later facts."""
        other = Fleet()
        other.position, other.recorded_at = self.position, self.recorded_at
        other.vms, other.hosts = dict(self.vms), dict(self.hosts)
        other.images, other.tokens = dict(self.images), dict(self.tokens)
        other.budgets, other.drains, other.causes = dict(self.budgets), dict(self.drains), dict(self.causes)
        other.maintenances = dict(self.maintenances)
        other.backups = dict(self.backups)
        other.volumes = dict(self.volumes)
        other.cluster, other.erasures = self.cluster, self.erasures
        other.versions, other.operations = dict(self.versions), dict(self.operations)
        other._deleted, other._over = deque(self._deleted), deque(self._over)
        other._through = deque(self._through)
        other._planned = OrderedDict(self._planned)
        return other

    def ended(self) -> tuple[tuple[VmId, ...], tuple[DrainId, ...], tuple[str, ...]]:
        """The deleted VMs, and the drains and maintenances that are over, as long as they are remembered, oldest
        first."""
        return tuple(self._deleted), tuple(self._over), tuple(self._through)

    def end(self, deleted: deque[VmId], over: deque[DrainId], through: deque[str]) -> None:
        """Take over what `ended` told of another fleet."""
        self._deleted, self._over, self._through = deleted, over, through
        planned = (id for id, drain in self.drains.items() if drain.state == "planned")
        self._planned = OrderedDict.fromkeys(planned)

    def draining(self, host: HostId) -> DrainId | None:
        """The drain under way that empties the host."""
        for drain in self.drains.values():
            if drain.running and drain.plan and drain.plan.purpose == "drain" and host in drain.plan.hosts:
                return drain.id
        return None

    def maintained(self, host: HostId) -> Maintenance | None:
        """The maintenance under way that the host is a part of and not through with."""
        for found in self.maintenances.values():
            station = found.stations.get(host)
            if found.running and station is not None and station.phase not in SETTLED:
                return found
        return None

    def away(self, host: HostId) -> str | None:
        """The maintenance in which the host is being worked on, so that it may be off."""
        found = self.maintained(host)
        return found.id if found is not None and found.stations[host].phase in AWAY else None

    def cause(self, operation: OperationId) -> str | None:
        """The undertaking that an operation belongs to: a drain, or the maintenance that the drain is a part of."""
        id = self.causes.get(operation)
        if id is None:
            found = self.operation(operation)
            if found is not None and found[1].verb in AFTERMATH:
                # what a migration left is settled and tidied on its account
                before = [each.id for each in found[0].operations.values() if each.id in self.causes]
                id = self.causes[before[-1]] if before else None
        drain = None if id is None else self.drains.get(id)
        return None if drain is None else drain.parent or drain.id

    def operation(self, id: OperationId) -> tuple[Vm, Operation] | None:
        """An operation that a VM's state still remembers, with its VM."""
        vm = self.vms.get(self.operations.get(id, VmId("")))
        found = None if vm is None else vm.operations.get(id)
        return None if vm is None or found is None else (vm, found)

    def find(self, kind: str, ref: str) -> Stream:
        """The stream of a thing by its kind and its name, id, or what else names such a thing. Raises Rejected
        `bad-request` for what is no kind, and what is raised for a thing that is not there."""
        finders: Mapping[str, Callable[[str], Any]] = {
            "vm": self.find_vm, "host": self.find_host, "image": self.find_image, "volume": self.find_volume,
            "backup": self.find_backup, "token": self.find_token, "budget": self.find_budget,
            "drain": self.find_drain, "maintenance": self.find_maintenance,
        }  # fmt: skip
        if kind == "cluster":
            return clusters.STREAM
        if kind not in finders or not ref:
            kinds = ", ".join(finders)
            raise Rejected("bad-request", f"{kind}/{ref} names nothing", hint=f"KIND/NAME; kinds: {kinds}, cluster")
        return Stream(f"{kind}/{finders[kind](ref).id}")

    def find_vm(self, name: str) -> Vm:
        """The VM of this name, id or unique id prefix. Raises Rejected `no-such-vm` or `ambiguous-name`."""
        living = [vm for vm in self.vms.values() if vm.deleted_at is None and vm.spec is not None]
        return _find("vm", name, living)

    def find_host(self, name: str) -> Host:
        """The host of this name, id or unique id prefix. Raises Rejected `no-such-host` or `ambiguous-name`."""
        return _find("host", name, [host for host in self.hosts.values() if not host.retired])

    def find_image(self, name: str) -> Image:
        """The image of this name, digest, id or unique prefix of an id or digest. Raises Rejected."""
        living = [image for image in self.images.values() if not image.removed]
        by_digest = [image for image in living if image.pin and image.pin.digest == name.removeprefix("sha256:")]
        return by_digest[0] if by_digest else _find("image", name, living)

    def find_token(self, name: str) -> Token:
        """The token of this name or id. Raises Rejected `no-such-token`."""
        return _find("token", name, [token for token in self.tokens.values() if not token.revoked])

    def find_budget(self, name: str) -> Budget:
        """The budget of this name or id. Raises Rejected `no-such-budget`."""
        return _find("budget", name, [budget for budget in self.budgets.values() if not budget.deleted])

    def find_backup(self, name: str) -> Backup:
        """The backup of this name, id or unique id prefix. Raises Rejected `no-such-backup` or `ambiguous-name`."""
        return _find("backup", name, self.backups.values())

    def find_volume(self, name: str) -> Volume:
        """The volume of this name, id or unique id prefix. Raises Rejected `no-such-volume` or `ambiguous-name`."""
        return _find("volume", name, self.volumes.values())

    def find_maintenance(self, id: str) -> Maintenance:
        """The maintenance with this id or unique part of it. Raises Rejected `no-such-maintenance` or
        `ambiguous-name`."""
        return _find_by_part("maintenance", id, self.maintenances, "vmorch host maintenance list")

    def find_drain(self, id: str) -> Drain:
        """The drain or plan with this id or unique part of it. Raises Rejected `no-such-drain` or `ambiguous-name`."""
        return _find_by_part("drain", id, self.drains, "vmorch drain list")



def names_touched(fleet: Fleet, changes: Iterable[Change]) -> tuple[tuple[NameClaim, ...], tuple[NameClaim, ...]]:
    """The names that changes take and give up, as (claims, releases) for one append."""
    claims: list[NameClaim] = []
    releases: list[NameClaim] = []
    for each in changes:
        event = unpack_event(each.event)
        taken = _name_taken(event)
        if taken is not None:
            claims.append(NameClaim(scope=_scope(each.stream), name=taken, stream=each.stream))
        held = name_held(fleet, each.stream)
        if held and isinstance(event, FREEING):
            releases.append(NameClaim(scope=_scope(each.stream), name=held, stream=each.stream))
        _certified(fleet, each.stream, event, claims, releases)
    return tuple(claims), tuple(releases)


FREEING = (
    VmDeleted, VmRenamed, HostRetired, ImageRemoved, TokenRevoked, BudgetDeleted, BackupDeleted, BackupAbandoned,
    VolumeDeleted,
)  # fmt: skip
"""Events after which a name can be given to another."""


def _certified(
    fleet: Fleet, at: Stream, event: Event, claims: list[NameClaim], releases: list[NameClaim]
) -> None:
    """The names in hosts' certificates: two servers that sign at once must not give one name to two hosts."""
    host = fleet.hosts.get(HostId(split_stream(at)[1])) if isinstance(event, HostEvent) else None
    if host is None:
        return
    if isinstance(event, HostCertified):
        new = [name for name in event.names if name not in host.certified_names]
        claims += [NameClaim(scope=CERTIFIED, name=name, stream=at) for name in new]
    elif isinstance(event, HostEnrolled | HostRetired):
        releases += [NameClaim(scope=CERTIFIED, name=name, stream=at) for name in host.certified_names]


def _name_taken(event: Event) -> str | None:
    naming = VmCreated | VmRenamed | HostInvited | ImageAdded | TokenCreated | BudgetCreated | BackupBegun
    if isinstance(event, naming | VolumeCreated | VolumeKept | StraySetAside):
        return event.name
    return None


def name_held(fleet: Fleet, stream: Stream) -> str:
    """The name that the subject of a stream has; empty if it is not known."""
    kind, id = split_stream(stream)
    held: Vm | Host | Image | Token | Budget | Backup | Volume | None = None
    match kind:
        case "vm":
            held = fleet.vms.get(VmId(id))
        case "host":
            held = fleet.hosts.get(HostId(id))
        case "image":
            held = fleet.images.get(ImageId(id))
        case "token":
            held = fleet.tokens.get(id)
        case "budget":
            held = fleet.budgets.get(id)
        case "backup":
            held = fleet.backups.get(BackupId(id))
        case "volume":
            held = fleet.volumes.get(VolumeId(id))
    return "" if held is None else held.name


_FOLDS: Mapping[str, Callable[[Fleet, Any, Any, int, datetime], None]] = {
    "vm": Fleet._vm, "host": Fleet._host, "image": Fleet._image, "token": Fleet._token, "drain": Fleet._drain,
    "maintenance": Fleet._maintenance, "budget": Fleet._budget, "backup": Fleet._backup, "volume": Fleet._volume,
    "cluster": Fleet._cluster, "audit": Fleet._audit,
}  # fmt: skip
"""How the facts about each kind of thing are folded."""


def _versioned(after: S, before: S, version: int) -> S:
    """The state that a fact made of another one, with its version."""
    if after is before:
        return replace(before, version=version)
    # made just now and nobody else's yet; another copy of all its fields would be a tenth of a long fold
    force_setattr(after, "version", version)
    return after


def _scope(stream: Stream) -> str:
    return split_stream(stream)[0]


def _find_by_part(kind: str, id: str, among: Mapping[K, P], hint: str) -> P:
    for known, each in among.items():
        if known == id:
            return each
    # ids begin with the time: those made together differ at their ends
    found = [known for known in among if known.startswith(id) or known.endswith(id)]
    if len(id) < 4 or not found:
        raise Rejected(f"no-such-{kind}", f"no {kind} has the id {id}", hint=hint)
    if len(found) > 1:
        raise Rejected("ambiguous-name", f"{id!r} matches {len(found)} of them", facts={"ids": list(found)})
    return among[found[0]]


def _find(kind: str, name: str, among: Iterable[T]) -> T:
    exact = [each for each in among if name in (each.name, each.id)]
    found = exact or [each for each in among if len(name) >= 4 and each.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Rejected("ambiguous-name", f"{name!r} matches {len(found)} {kind}s", facts={"ids": [x.id for x in found]})
    raise Rejected(f"no-such-{kind}", f"no {kind} is called {name!r}", hint=f"vmorch {kind} list")
