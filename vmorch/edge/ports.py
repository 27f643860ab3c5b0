"""What the HTTP API needs of the rest, so that it can be read and tested without any of it.

Must not hold logic. Refusals come as Rejected, the log's troubles as LogError.
"""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from vmorch.core.aggregates.budget import CreateBudget
from vmorch.core.aggregates.drain import ActivateHost, ApplyPlan, Drain, PlanDrain
from vmorch.core.aggregates.image import ImageAdded
from vmorch.core.aggregates.maintenance import CancelMaintenance, Maintenance, StartMaintenance
from vmorch.core.aggregates.token import Role
from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.fleet import Fleet
from vmorch.core.ids import HostId, OperationId, Position, Stream
from vmorch.core.operations.create import CreateVm
from vmorch.core.planning.admission import Admission
from vmorch.core.planning.staleness import Touch
from vmorch.core.planning.upkeep import Foresight
from vmorch.engine.caller import Accepted, Caller
from vmorch.engine.handle import BackupCommand, PolicyChange, Tuning, VolumeCommand
from vmorch.engine.telemetry import Samples
from vmorch.views.filters import Filters
from vmorch.views.rows import Key, Row

Model = Literal["vms", "hosts", "images", "operations", "tokens", "drains"]
HostVerb = Literal["cordon", "uncordon", "label", "overcommit", "retire"]


class Enrolled(Protocol):
    """What a host is told when it is admitted."""

    @property
    def host(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def cluster(self) -> str: ...
    @property
    def incarnation(self) -> str: ...
    @property
    def server_key(self) -> str: ...
    @property
    def nats_url(self) -> str: ...
    @property
    def credentials(self) -> str: ...


class Drains(Protocol):
    """What may be asked about emptying hosts, and about what bounds that."""

    async def plan(self, command: PlanDrain, caller: Caller) -> Accepted: ...

    async def apply(self, ref: str, command: ApplyPlan, caller: Caller) -> Accepted: ...

    def foresee(self, command: PlanDrain, caller: Caller, fleet: Fleet) -> Drain:
        """The plan that would be made in a fleet of the past; nothing is recorded."""

    async def touches(self, drain: Drain, fleet: Fleet | None = None) -> Sequence[Touch]:
        """The events since a plan was made that touch it, up to now or to a fleet of the past."""

    async def discard(self, ref: str, caller: Caller) -> Accepted: ...

    async def cancel(self, ref: str, caller: Caller) -> Accepted: ...

    async def activate(self, ref: str, command: ActivateHost, caller: Caller) -> Accepted: ...

    async def past(self, ref: str, until: Position | None = None) -> Drain | None:
        """A drain that the state no longer remembers."""

    async def create_budget(self, command: CreateBudget, caller: Caller) -> Accepted: ...

    async def delete_budget(self, ref: str, caller: Caller) -> Accepted: ...


class Upkeep(Protocol):
    """What may be asked about maintenance."""

    def foresee(self, command: StartMaintenance, fleet: Fleet | None = None) -> Sequence[Foresight]:
        """The groups that `start` would make now, or in a fleet of the past; nothing is recorded."""

    async def start(self, command: StartMaintenance, caller: Caller) -> Accepted: ...

    async def work_done(self, ref: str, caller: Caller) -> Accepted: ...

    async def cancel(self, ref: str, command: CancelMaintenance, caller: Caller) -> Accepted: ...

    async def past(self, id: str, until: Position | None = None) -> Maintenance | None:
        """A maintenance that the state no longer remembers."""


class Erasing(Protocol):
    """What may be asked about erasure."""

    async def erase(self, ref: str, caller: Caller) -> Accepted:
        """Record that a subject is erased, and destroy its key."""


class Keys(Protocol):
    """What opens what the log holds sealed."""

    async def reveal(self, texts: Collection[str]) -> Mapping[str, str]:
        """Each text as whoever may read it sees it, or why it cannot be read."""


class Control(Protocol):
    """The commands of the control plane and its live state."""

    @property
    def fleet(self) -> Fleet:
        """The state now; read only."""

    @property
    def poisoned(self) -> Mapping[Stream, str]:
        """Streams with an event that the live state cannot read, and why: nothing is decided on them."""

    async def create_vm(self, command: CreateVm, caller: Caller) -> Accepted: ...

    async def plan_create(self, command: CreateVm, caller: Caller, fleet: Fleet | None = None) -> Admission:
        """What `create_vm` would do now, or in a fleet of the past; nothing is appended."""

    async def on_vm(self, ref: str, command: VmCommand, caller: Caller) -> Accepted: ...

    async def plan_on_vm(
        self, ref: str, command: VmCommand, caller: Caller, fleet: Fleet | None = None
    ) -> Admission:
        """What `on_vm` would do now, or in a fleet of the past; nothing is appended."""

    async def on_backup(self, ref: str, command: BackupCommand, caller: Caller) -> Accepted: ...

    async def plan_on_backup(
        self, ref: str, command: BackupCommand, caller: Caller, fleet: Fleet | None = None
    ) -> Admission:
        """What `on_backup` would do, or would have done in a fleet of the past; nothing is appended."""

    async def on_volumes(self, ref: str, command: VolumeCommand, caller: Caller) -> Accepted: ...

    async def plan_on_volumes(
        self, ref: str, command: VolumeCommand, caller: Caller, fleet: Fleet | None = None
    ) -> Admission:
        """What `on_volumes` would do, or would have done in a fleet of the past; nothing is appended."""

    async def cancel(self, operation: OperationId, caller: Caller) -> Accepted: ...

    async def tune(self, operation: OperationId, tuning: Tuning, caller: Caller) -> Accepted: ...

    @property
    def samples(self) -> Samples:
        """How far long work has come."""

    @property
    def drains(self) -> Drains:
        """Drains, plans and budgets."""

    @property
    def upkeep(self) -> Upkeep:
        """Maintenances."""

    @property
    def erasing(self) -> Erasing:
        """Erasure."""

    @property
    def keys(self) -> Keys:
        """The keys of subjects."""

    async def invite_host(self, name: str, caller: Caller) -> tuple[Accepted, str, datetime]:
        """The host's one-time token and when it expires."""

    async def enrol_host(self, token: str, key: str, machine_id: str) -> Enrolled: ...

    async def renew_host(self, id: HostId) -> str:
        """New bus credentials for a host that has proven its key."""

    async def certify_host(self, id: HostId, csr: str) -> bytes:
        """A certificate for a host that has proven its key, sealed for it."""

    def revoked(self) -> bytes:
        """The list of certificates that are to be trusted no more, signed and sealed."""

    async def set_policy(self, wanted: PolicyChange, caller: Caller) -> Accepted: ...

    async def on_host(self, ref: str, verb: HostVerb, arguments: dict[str, Any], caller: Caller) -> Accepted: ...

    async def add_image(self, event: ImageAdded, caller: Caller) -> Accepted: ...

    async def remove_image(self, ref: str, caller: Caller) -> Accepted: ...

    async def create_token(
        self, name: str, role: Role, expires: datetime | None, caller: Caller, holder: str = ""
    ) -> tuple[Accepted, str]:
        """The token's secret, told once."""

    async def note_reading(self, what: str, query: Mapping[str, str], caller: Caller) -> None:
        """Record that the caller reads what reads are recorded of."""

    async def revoke_token(self, ref: str, caller: Caller) -> Accepted: ...

    async def settled(self, position: Position, timeout: float) -> bool:
        """Whether the read models reached `position` within `timeout` seconds."""

    def changes(self) -> AsyncGenerator[Position, None]:
        """The fleet's position at once, and again whenever it has moved."""


class Rows(Protocol):
    """A page of a read model, as of `position`. Each doc is a JSON document."""

    @property
    def position(self) -> Position: ...
    @property
    def time(self) -> datetime | None: ...
    @property
    def docs(self) -> Sequence[bytes]: ...


class ProjectionStatus(Protocol):
    """How far a follower of the log is; `poisoned` names streams with an event that it cannot read, `trouble` what
    keeps all of it from going on."""

    @property
    def name(self) -> str: ...
    @property
    def position(self) -> Position: ...
    @property
    def poisoned(self) -> Mapping[Stream, str]: ...
    @property
    def trouble(self) -> str: ...


class ReadModels(Protocol):
    """The lists that people read, computed from the log."""

    async def rows(self, model: Model, filters: Filters, limit: int, after: str | None = None) -> Rows:
        """At most `limit` rows. `after` is NAME/ID of the last row of the page before."""

    async def over(
        self, model: Model, filters: Filters, limit: int, after: str | None, ended: datetime, but: Collection[str]
    ) -> list[bytes]:
        """Operations or drains that were over before `ended` and are not among `but`, newest first."""

    async def row(self, model: Model, id: str) -> bytes | None:
        """One row's JSON document."""

    async def everything(self) -> tuple[Position, dict[Key, Row]]:
        """Every row, and the position that they show."""

    async def status(self) -> Sequence[ProjectionStatus]: ...

    async def rebuild(self) -> object:
        """Drop every read model and compute it from the log again."""


class Follower(Protocol):
    """Whatever follows the log beside the read models."""

    async def status(self) -> ProjectionStatus: ...


class Bus(Protocol):
    """The link to the hosts, as far as its health goes."""

    @property
    def connected(self) -> bool: ...
