"""A whole cluster in one process: the real control plane and real agents over a log and a bus in memory."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hostagent.agent import Agent
from hostagent.effects import Effects
from hostagent.identity import JOURNAL
from hostagent.journal import Journal
from hostagent.pinning import Pins
from hostagent.session import Party
from hostagent.simulated_hypervisor import SimulatedHypervisor, no_seconds
from hostagent.simulated_site import Site
from hostagent.threads import Threads
from tests.core.world import DIGEST
from vmorch.bus.credentials import ControlKeys
from vmorch.bus.keys import create, verifier
from vmorch.bus.memory import MemoryBus
from vmorch.core.aggregates.image import ImageAdded
from vmorch.core.aggregates.vm import Operation, Vm, VmCommand
from vmorch.core.fleet import Fleet
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import GiB, MiB, OperationId, Position, SessionId
from vmorch.core.messages import HostCommand
from vmorch.core.operations.create import CreateVm
from vmorch.core.spec import HostFacts
from vmorch.engine.authority import ensure_authority
from vmorch.engine.caller import Accepted, Caller
from vmorch.engine.control import Control, Enrolled, Identity
from vmorch.engine.masterkey import MasterKey
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.log.interface import Log
from vmorch.log.keyring import Keyring, MemoryKeyring
from vmorch.log.memory import MemoryLog
from vmorch.system import SystemClock
from vmorch.wire import subjects

OPERATOR = Caller(actor="ada", role="operator", reason="test")
CLUSTER = "test"
TARGETS = {"main": "9" * 32}


async def until(condition: Callable[[], object], within: float = 20.0) -> None:
    """Return as soon as the condition holds; fail if it never does."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


class Clock(SystemClock):
    """The machine's clocks, of which the one on the wall can be put forward, for the log as for the control plane."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


class SimulatedHost:
    """One host: its hypervisor and journal outlive its agent, which can be started and stopped."""

    def __init__(self, cluster: "Cluster", name: str, directory: Path, memory: int) -> None:
        self.cluster, self.name, self.directory = cluster, name, directory
        self.keys = create("user")
        free = {"local": 1000 * 1024, "shared": 1000 * 1024}
        self.facts = HostFacts(
            hostname=name,
            machine_id=f"machine-{name}",
            cpus=16,
            memory=MiB(memory),
            local_gib=GiB(1000),
            shared_gib=GiB(1000),
            shared_id="san",
            accel="simulated",
            networks=("lab",),
            address=name,
            encrypts=True,
            machines=("pc-q35-7.2",),
            local_dir="/var/lib/vmorch",
            backup_targets=TARGETS,
        )
        host = LibvirtHost(free=free, available=MiB(memory), machines=self.facts.machines, targets=TARGETS)
        self.hypervisor = SimulatedHypervisor(self.facts, host, seconds=cluster.takes, site=cluster.site)
        self.enrolled: Enrolled | None = None

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """The host's agent, as long as the block lasts."""
        control = self.cluster.control
        if self.enrolled is None:
            _, token, _ = await control.invite_host(self.name, OPERATOR)
            self.enrolled = await control.enrol_host(token, self.keys.public, self.facts.machine_id)
        host = self.enrolled.host
        self.directory.mkdir(parents=True, exist_ok=True)
        journal = Journal(self.directory / JOURNAL)

        async def keep(_credentials: str) -> None: ...

        party = Party(CLUSTER, host, self.keys, verifier(self.enrolled.server_key))
        pins = Pins(journal, self.enrolled.incarnation, self.facts.machine_id, self.keys.public)
        agent = Agent(party, journal, self.hypervisor, pins, self.cluster.effects, keep)
        link = self.cluster.bus.link(self.name, subjects.inbox(host), on_state=agent.connection_changed)
        running = asyncio.create_task(agent.run(link))
        try:
            yield agent
        finally:
            await agent.close(1.0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await link.close()
            journal.close()


class Cluster:
    """A control plane that can be stopped and started on the same log."""

    def __init__(self, log: Log, directory: Path, clock: Clock | None = None) -> None:
        self.log, self.directory = log, directory
        self.clock = clock or Clock()
        self.bus = MemoryBus()
        self.keys = ControlKeys(
            operator=create("operator"), account=create("account"), system=create("account"), server=create("user"),
            log=create("account"), publisher=create("user"),
        )
        self.authority = ensure_authority(directory / "authority", CLUSTER, datetime.now(UTC))
        numbers = itertools.count(1)
        self.ids = lambda: f"{next(numbers):08d}-0000-7000-8000-000000000000"
        self.keyring: Keyring = MemoryKeyring()
        drawn = itertools.count(1)
        self.random = lambda size: next(drawn).to_bytes(size, "big")
        sessions = itertools.count(1)
        self.effects = Effects(
            clock=time.monotonic,
            wall=time.time,
            new_id=lambda: SessionId(f"session-{next(sessions)}"),
            chance=lambda: 0.5,
            blocking=Threads(),
        )
        self.control: Control
        self.hosts: dict[str, SimulatedHost] = {}
        self.site = Site()
        self.seconds: Callable[[HostCommand], float] = no_seconds
        """How long host commands take, for hosts that are there and those to come."""
        self._lives = itertools.count(1)

    def takes(self, command: HostCommand) -> float:
        return self.seconds(command)

    @property
    def fleet(self) -> Fleet:
        return self.control.fleet

    @asynccontextmanager
    async def plane(self) -> AsyncIterator[Control]:
        """The control plane, as long as the block lasts."""
        link = self.bus.link(f"server-{next(self._lives)}", subjects.server_inbox(CLUSTER))
        identity = Identity(cluster=CLUSTER, nats_url="memory", keys=self.keys, authority=self.authority)

        async def reached(position: Position, seconds: float) -> bool:
            return True

        keys = SubjectKeys(self.keyring, MasterKey(b"m" * 32), self.random)
        self.control = Control(
            self.log, link, reached, identity, self.clock, self.ids, lambda seed: f"secret-of-{seed}", keys
        )
        await self.control.start()
        running = asyncio.create_task(self.control.run())
        try:
            yield self.control
            if running.done():
                running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await link.close()

    def host(self, name: str, memory: int = 65536) -> SimulatedHost:
        """A host of this cluster, made at the first call."""
        if name not in self.hosts:
            self.hosts[name] = SimulatedHost(self, name, self.directory / name, memory)
        return self.hosts[name]

    async def image(self, name: str = "tiny") -> None:
        added = ImageAdded(
            name=name, digest=DIGEST, format="qcow2", size=2**24, virtual_size=2**28, source="file", expected=True
        )
        await self.control.add_image(added, OPERATOR)

    async def create(self, name: str, **fields: object) -> Accepted:
        command = CreateVm(**{"name": name, "image": "tiny", "memory": MiB(512), **fields})  # type: ignore[arg-type]
        return await self.control.create_vm(command, OPERATOR)

    async def do(self, name: str, command: VmCommand) -> Operation:
        """Have a command done on a VM and return its operation once it is over."""
        accepted = await self.control.on_vm(name, command, OPERATOR)
        assert accepted.operation is not None
        return await self.over(accepted.operation)

    async def over(self, operation: OperationId, within: float = 20.0) -> Operation:
        """The operation once it is over."""
        await until(lambda: self.operation(operation).outcome is not None, within)
        return self.operation(operation)

    def operation(self, id: OperationId) -> Operation:
        found = self.fleet.operation(id)
        assert found is not None
        return found[1]

    def vm(self, name: str) -> Vm:
        return self.fleet.find_vm(name)


@asynccontextmanager
async def cluster(directory: Path, *names: str) -> AsyncIterator[Cluster]:
    """A running cluster with an image and these hosts connected."""
    clock = Clock()
    made = Cluster(MemoryLog("first", clock.now), directory, clock)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(made.plane())
        await made.image()
        for name in names:
            await stack.enter_async_context(made.host(name).agent())
        await until(lambda: sum(host.agent == "connected" for host in made.fleet.hosts.values()) == len(names))
        yield made
