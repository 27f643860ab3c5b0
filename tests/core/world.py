"""Public vocabulary for tests of the core: fleets built from facts, as the log would deliver them."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from vmorch.core.aggregates.host import HostEnrolled, HostInvited, SessionStarted
from vmorch.core.aggregates.image import ImageAdded
from vmorch.core.codec import Fact, decode, encode, unpack_event
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Digest, GiB, HostId, MiB, OperationId, Position, SessionId, Stream, VmId, stream
from vmorch.core.messages import Event, Meta
from vmorch.core.operation import Change
from vmorch.core.operations.create import CreateVm
from vmorch.core.planning.admission import Who, admit_create
from vmorch.core.records import Recorded
from vmorch.core.spec import HostFacts

START = datetime(2026, 1, 1, tzinfo=UTC)
WHO = Who(actor="tester")
DIGEST = Digest("ab" * 32)


class History:
    """A log in a list and the fleet folded from it, through the codec as for real."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.facts: list[Fact] = []
        self.waited = timedelta()

    @property
    def now(self) -> datetime:
        """The time of the last event, or later if somebody waited since."""
        return START + timedelta(seconds=self.fleet.position) + self.waited

    def wait(self, seconds: float) -> None:
        """Let time pass in which nothing happens; otherwise each event takes a second."""
        self.waited += timedelta(seconds=seconds)

    def record(self, at: Stream, *events: Event) -> "History":
        for event in events:
            position = Position(self.fleet.position + 1)
            moment = START + timedelta(seconds=position) + self.waited
            new = encode(event, Meta(actor="tester", occurred_at=moment))
            record = Recorded(
                position=position,
                stream=at,
                version=self.fleet.version(at) + 1,
                kind=new.kind,
                schema=new.schema,
                data=new.data,
                meta=new.meta,
                recorded_at=moment,
            )
            fact = decode(record)
            self.facts.append(fact)
            self.fleet.apply(fact)
        return self

    def take(self, changes: Iterable[Change]) -> "History":
        for each in changes:
            self.record(each.stream, unpack_event(each.event))
        return self

    def host(self, name: str, *, cpus: int = 8, memory: int = 16384, disk: int = 100, **facts: object) -> HostId:
        """A connected host."""
        id = HostId(f"host-{name}")
        known: dict[str, object] = {
            "networks": ("lab",), "shared_gib": GiB(disk), "shared_id": "san", "encrypts": True, "address": name,
            "machines": ("pc-q35-7.2",), "qemu": "7.2.22", "libvirt": "9.0.0",
            "backup_targets": {"main": "7" * 32}, **facts,
        }  # fmt: skip
        said = HostFacts(
            hostname=name, machine_id=f"machine-{name}", cpus=cpus, memory=MiB(memory), local_gib=GiB(disk),
            **known,  # type: ignore[arg-type]
        )
        self.record(
            stream("host", id),
            HostInvited(name=name, token_hash="00", expires=START + timedelta(days=1)),
            HostEnrolled(key="U" + name, machine_id=said.machine_id),
            SessionStarted(session=SessionId(f"session-{name}"), facts=said),
        )
        return id

    def image(self, name: str = "tiny", *, virtual_size: int = 2**28) -> None:
        added = ImageAdded(
            name=name,
            digest=DIGEST,
            format="qcow2",
            size=2**24,
            virtual_size=virtual_size,
            source="file",
            expected=True,
        )
        self.record(stream("image", f"image-{name}"), added)

    def create(self, command: CreateVm, on: HostId | None = None) -> VmId:
        """Admit a VM and open its operation: where placement puts it, or as if this were the only host."""
        vm = VmId(f"vm-{command.name}")
        operation = OperationId(f"op-{self.fleet.position}")
        fleet = self.fleet
        if on is not None:
            fleet = fleet.copy()
            fleet.hosts = {on: fleet.hosts[on]}
        self.take(admit_create(fleet, command, vm=vm, operation=operation, who=WHO).changes)
        return vm


def asked(name: str, **fields: object) -> CreateVm:
    """A request for a small VM."""
    return CreateVm(**{"name": name, "image": "tiny", "memory": MiB(512), **fields})  # type: ignore[arg-type]
