"""A scripted control plane and hosts on a bus in memory, for tests of the agent."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from hostagent.agent import Agent
from hostagent.effects import Effects
from hostagent.hypervisor import Hypervisor
from hostagent.identity import JOURNAL
from hostagent.journal import Journal
from hostagent.pinning import Pins
from hostagent.session import Party
from hostagent.simulated_hypervisor import SimulatedHypervisor, no_seconds
from hostagent.threads import InPlace, Threads
from vmorch.bus.bus import to_sending_host
from vmorch.bus.keys import create, verifier
from vmorch.bus.memory import MemoryBus
from vmorch.core.backup import Target
from vmorch.core.codec import pack
from vmorch.core.hostcommands import Answer, CreateDisk, DefineDomain, StartDomain
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import CommandId, GiB, HostId, MiB, Position, SessionId, VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import DiskSpec, HostFacts, VmSpec
from vmorch.wire import subjects
from vmorch.wire.envelopes import (
    Answered,
    Confirmation,
    Heartbeat,
    Hello,
    Item,
    Order,
    Receipt,
    Report,
    Signer,
    Withdrawal,
    seal,
    unseal,
)

CLUSTER, HOST, INCARNATION, MACHINE = "lab", HostId("h1"), "first", "0123456789abcdef"
DISK = DiskSpec(name="vda", size=GiB(1))
SPEC = VmSpec(vcpus=1, max_vcpus=4, memory=MiB(128), max_memory=MiB(256), disks=(DISK,))
FACTS = HostFacts(
    hostname="h1",
    machine_id=MACHINE,
    cpus=8,
    memory=MiB(16384),
    local_gib=GiB(100),
    accel="simulated",
    address="h1",
    encrypts=True,
    machines=("pc-q35-7.1", "pc-q35-7.2"),
    local_dir="/var/lib/vmorch",
)


async def until(condition: Callable[[], object], within: float = 10.0) -> None:
    """Return as soon as the condition holds; fail if it never does."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


class ControlPlane:
    """Records what the host reports, confirms it as told, and sends what it is told to."""

    def __init__(self, bus: MemoryBus) -> None:
        self.keys = create("user")
        self.host_key = create("user")
        self.link = bus.link("server", subjects.server_inbox(CLUSTER))
        self.items: list[Item] = []
        self.arrived: list[float] = []
        self.reports: list[Report] = []
        self.beats: list[Heartbeat] = []
        self.session = SessionId("")
        self.incarnation = INCARNATION
        self.position = 0
        self.refuse: list[str] = []
        """Codes with which the next reports are refused."""
        self.lose = 0
        """How many of the next confirmations get lost after the report was recorded."""
        self.credentials = ""
        self.step = 1

    async def serve(self) -> None:
        await self.link.serve(subjects.reports(CLUSTER), self._report, reply_allowed=to_sending_host)
        await self.link.serve(subjects.heartbeats(CLUSTER), self._beat, reply_allowed=to_sending_host)

    async def _report(self, _subject: str, _reply: str, data: bytes) -> bytes | None:
        report: Report = unseal(data, Report, verifier(self.host_key.public))
        if self.refuse:
            return seal(Confirmation(code=self.refuse.pop(0), message="scripted"), self.keys)
        if report.items and isinstance(report.items[0], Hello):
            self.session = report.session
        elif report.session != self.session:
            return seal(Confirmation(code="stale-session"), self.keys)
        self.reports.append(report)
        self.items += report.items
        self.arrived += [time.monotonic()] * len(report.items)
        self.position += self.step * max(1, len(report.items))
        if self.lose:
            self.lose -= 1
            return None
        confirmation = Confirmation(
            through=report.through,
            position=Position(self.position),
            incarnation=self.incarnation,
            credentials=self.credentials,
        )
        return seal(confirmation, self.keys)

    async def _beat(self, _subject: str, _reply: str, data: bytes) -> None:
        self.beats.append(unseal(data, Heartbeat, verifier(self.host_key.public)))

    def answers(self) -> dict[CommandId, Answer]:
        """The first answer that came for each order."""
        found: dict[CommandId, Answer] = {}
        for item in self.items:
            if isinstance(item, Answered):
                found.setdefault(item.id, item.answer)
        return found

    def order(self, command: HostCommand, id: str = "", **changed: Any) -> Order:
        """An order as it would be sent now, but for what is changed."""
        order = Order(
            id=CommandId(id or str(uuid4())),
            host=HOST,
            session=self.session,
            incarnation=self.incarnation,
            epoch=1,
            deadline=30.0,
            command=pack(command),
        )
        return replace(order, **changed)

    async def send(self, said: Order | Withdrawal, signer: Signer | None = None) -> Receipt:
        """Send an order and return its receipt."""
        data = await self.link.request(subjects.command(CLUSTER, HOST), seal(said, signer or self.keys), 5.0)
        receipt: Receipt = unseal(data, Receipt, verifier(self.host_key.public))
        return receipt

    async def do(self, command: HostCommand, **changed: Any) -> Answer:
        """Have a command carried out and return its answer."""
        order = self.order(command, **changed)
        receipt = await self.send(order)
        assert receipt.accepted, receipt
        await until(lambda: order.id in self.answers())
        return self.answers()[order.id]

    async def withdraw(self, order: Order, command: HostCommand) -> Receipt:
        """Send the withdrawal of an order."""
        said = Withdrawal(
            id=order.id,
            host=HOST,
            session=self.session,
            incarnation=self.incarnation,
            lane=command.lane,
            vm=getattr(command, "vm", None),
        )
        return await self.send(said)


def effects(*, threads: bool = True) -> Effects:
    """Real time and threads (or all calls in place), countable ids."""
    numbers = itertools.count(1)
    prefix = uuid4().hex[:8]
    return Effects(
        clock=time.monotonic,
        wall=time.time,
        new_id=lambda: f"session-{prefix}-{next(numbers)}",
        chance=lambda: 0.5,
        blocking=Threads() if threads else InPlace(),
    )


TARGET = Target(name="main", id="7" * 32)


H = TypeVar("H", bound=SimulatedHypervisor)


def simulated(kind: type[H] = SimulatedHypervisor, **options: object) -> H:  # type: ignore[assignment]
    """A host of its own where everything happens at once."""
    targets = {TARGET.name: TARGET.id}
    host = LibvirtHost(networks=(), machines=FACTS.machines, available=FACTS.memory, targets=targets)
    return kind(FACTS, host, **({"seconds": no_seconds} | options))  # type: ignore[arg-type]


class Process:
    """One life of an agent, from its start to its end."""

    def __init__(self, agent: Agent, journal: Journal, credentials: list[str]) -> None:
        self.agent = agent
        self.journal = journal
        self.credentials = credentials


@asynccontextmanager
async def agent(
    bus: MemoryBus,
    plane: ControlPlane,
    directory: Path,
    hypervisor: Hypervisor,
    *,
    grace: float = 5.0,
    threads: bool = True,
) -> AsyncIterator[Process]:
    """An agent that runs inside of the block; its journal stays in the directory."""
    journal = Journal(directory / JOURNAL)
    received: list[str] = []

    async def new_credentials(credentials: str) -> None:
        received.append(credentials)

    party = Party(CLUSTER, HOST, plane.host_key, verifier(plane.keys.public))
    pins = Pins(journal, INCARNATION, MACHINE, plane.host_key.public)
    being = Agent(party, journal, hypervisor, pins, effects(threads=threads), new_credentials)
    link = bus.link("host", subjects.inbox(HOST), on_state=being.connection_changed)
    running = asyncio.create_task(being.run(link))
    try:
        yield Process(being, journal, received)
        if running.done():
            running.result()
    finally:
        await being.close(grace)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        journal.close()


@asynccontextmanager
async def host(
    directory: Path,
    hypervisor: Hypervisor,
    *,
    earlier: ControlPlane | None = None,
    grace: float = 5.0,
    threads: bool = True,
) -> AsyncIterator[tuple[ControlPlane, Process, MemoryBus]]:
    """A control plane and one agent that has said hello. With `earlier`, that control plane goes on."""
    bus = MemoryBus()
    plane = ControlPlane(bus)
    if earlier is not None:
        plane.keys, plane.host_key = earlier.keys, earlier.host_key
        plane.position, plane.incarnation = earlier.position, earlier.incarnation
    await plane.serve()
    async with agent(bus, plane, directory, hypervisor, grace=grace, threads=threads) as process:
        await until(lambda: plane.session)
        yield plane, process, bus


def new_vm() -> VmId:
    """A VM's id."""
    return VmId(str(uuid4()))


def provisioning(vm: VmId) -> list[HostCommand]:
    """What makes a VM run."""
    return [CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC), StartDomain(vm=vm)]
