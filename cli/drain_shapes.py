"""The parts of drains, plans and budgets that the CLI shows, in light structs; see `cli.shapes`."""

from datetime import datetime

from msgspec import Struct


class DrainRow(Struct, frozen=True):
    """A drain or plan in a list. `vms` counts VMs by their states."""

    id: str
    state: str
    purpose: str = "drain"
    hosts: list[str] = []
    vms: dict[str, int] = {}
    waves: int = 0
    estimate: float = 0.0
    survivable: bool = True
    on_blocked: str = "refuse"
    actor: str = ""
    reason: str = ""
    position: int = 0
    planned_at: datetime | None = None
    started_at: datetime | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state not in ("planned", "running", "ending")


class Cause(Struct, frozen=True):
    """What keeps a VM from moving, and the hosts that this speaks against."""

    why: str
    hosts: list[str] = []
    number: int = 0

    @property
    def text(self) -> str:
        """In words."""
        if not self.hosts:
            return self.why
        more = f" and {self.number - 3} more" if self.number > 3 else ""
        return f"{', '.join(self.hosts[:3])}{more}: {self.why}"


class DrainVm(Struct, frozen=True):
    """One VM of a drain."""

    vm: str
    name: str
    state: str
    source: str
    destination: str | None = None
    host: str | None = None
    how: str | None = None
    wave: int | None = None
    memory: int = 0
    estimate: float = 0.0
    why: str = ""
    operation: str | None = None
    doing: str = ""
    waits_for: str = ""
    code: str = ""
    message: str = ""
    causes: list[Cause] = []

    @property
    def over(self) -> bool:
        """Whether it is known what became of it."""
        return self.state not in ("planned", "waiting", "moving")

    @property
    def reasons(self) -> str:
        """Why it did not go, in words; empty if it did."""
        said = [self.message] if self.message else [self.code] if self.code else []
        return "; ".join([*said, *(cause.text for cause in self.causes)])


class HostAfter(Struct, frozen=True):
    """How full a host will be."""

    host: str
    vms: int = 0
    memory: float = 0.0
    vcpus: float = 0.0
    disk: float = 0.0
    memory_before: float = 0.0


class HostLoss(Struct, frozen=True):
    """VMs without a place if this host were lost."""

    host: str
    vms: list[str] = []


class Touch(Struct, frozen=True):
    """An event that makes a plan stale."""

    position: int
    kind: str
    subject: str
    actor: str = ""
    reason: str = ""
    detail: str = ""


class Drain(DrainRow, frozen=True):
    """A drain described."""

    lines: list[DrainVm] = []
    after: list[HostAfter] = []
    losses: list[HostLoss] = []
    on_local_disks: int = 0
    max_parallel: int | None = None
    limit: float | None = None
    kept: int = 0
    touched: list[Touch] = []


class Budget(Struct, frozen=True):
    """A budget."""

    id: str
    name: str
    selector: dict[str, str] = {}
    max_unavailable: int = 1
    vms: int = 0
    away: list[str] = []
    created_at: datetime | None = None
