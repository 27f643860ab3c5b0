"""Many simulated hosts in one process: real agents, journals, keys and wire over simulated hypervisors.

What a host remembers (identity, journal, domains) lies in a directory of its own and outlives the process.
Must not need root, libvirt or anything else of this machine.

    python -m hostagent.simulated --hosts 3 --server http://127.0.0.1:8080 --token-file tokens
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import click
import structlog
from msgspec import Struct

from hostagent import hosting
from hostagent import identity as files
from hostagent.effects import Effects, real_effects
from hostagent.enrolment import EnrolmentError, enroll
from hostagent.identity import Identity
from hostagent.logs import log_to_stderr
from hostagent.simulated_hypervisor import SimulatedHypervisor, kept_host, typical_seconds
from hostagent.simulated_site import Site
from vmorch.bus import keys
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import GiB, MiB
from vmorch.core.messages import HostCommand
from vmorch.core.spec import HostFacts

HOST_FILE = "host.json"
NETWORKS, MACHINES = ("default",), ("pc-q35-7.1", "pc-q35-7.2")
TARGETS = {"main": "5" * 32}
_ENROLMENTS_AT_ONCE = 8


class SimulatedHostConfig(Struct, frozen=True, kw_only=True):
    """One simulated host. `token` is needed only while `directory` holds no identity."""

    name: str
    directory: Path
    server_url: str
    token: str = ""
    cpus: int = 16
    memory: MiB = MiB(64 * 1024)
    local_gib: GiB = GiB(1000)
    shared_gib: GiB = GiB(0)
    seconds: Callable[[HostCommand], float] = typical_seconds

    @property
    def machine_id(self) -> str:
        """The machine's id: always the same for a name."""
        return sha256(f"simulated host {self.name}".encode()).hexdigest()[:32]

    @property
    def facts(self) -> HostFacts:
        """What the host says it is."""
        return HostFacts(
            hostname=self.name,
            machine_id=self.machine_id,
            cpus=self.cpus,
            memory=self.memory,
            local_gib=self.local_gib,
            shared_gib=self.shared_gib,
            shared_id="simulated-shared" if self.shared_gib else "",
            accel="simulated",
            networks=NETWORKS,
            address=self.name,
            encrypts=True,
            machines=MACHINES,
            local_dir="/var/lib/vmorch",
            shared_dir="/srv/vmorch" if self.shared_gib else "",
            backup_targets=TARGETS,
        )


async def run_simulated_hosts(
    hosts: list[SimulatedHostConfig],
    stop: asyncio.Event,
    begun: Callable[[str, SimulatedHypervisor], None] = lambda name, hypervisor: None,
) -> None:
    """Enrol those hosts that are not yet, and be the agent of all of them until `stop`. `begun` is called with
    each host's name when orders can come, and with its hypervisor, of which faults can be asked.

    Raises an ExceptionGroup of EnrolmentError, BadKey and NotEnrolled.
    """
    effects, site = real_effects(), Site()
    enrolling = asyncio.Semaphore(_ENROLMENTS_AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        for config in hosts:
            tasks.create_task(_run(config, effects, site, stop, enrolling, begun), name=config.name)


async def _run(
    config: SimulatedHostConfig,
    effects: Effects,
    site: Site,
    stop: asyncio.Event,
    enrolling: asyncio.Semaphore,
    begun: Callable[[str, SimulatedHypervisor], None],
) -> None:
    async with enrolling:
        identity, pair = await effects.blocking.run(lambda: _enrolled(config))
    free = {"local": config.local_gib * 1024} | ({"shared": config.shared_gib * 1024} if config.shared_gib else {})
    new = LibvirtHost(free=free, available=config.memory, networks=NETWORKS, machines=MACHINES, targets=TARGETS)
    state, keep = kept_host(config.directory / HOST_FILE, new)
    hypervisor = SimulatedHypervisor(config.facts, state, seconds=config.seconds, keep=keep, site=site)
    await hosting.host(
        identity, pair, config.directory, hypervisor, effects, stop, lambda: begun(config.name, hypervisor)
    )


def _enrolled(config: SimulatedHostConfig) -> tuple[Identity, keys.KeyPair]:
    if not (config.directory / files.IDENTITY).exists():
        if not config.token:
            raise EnrolmentError("no-token", f"{config.name} is not enrolled and has no token")
        enroll(config.server_url, config.token, config.directory, name=config.name, machine_id=config.machine_id)
    return files.load_identity(config.directory), keys.load(config.directory / files.KEY, "user")


@click.command(
    epilog="""\b
Example: three hosts of a development server, with a token for each of them in a file
  python -m hostagent.simulated --hosts 3 --server http://127.0.0.1:8080 --token-file tokens
"""
)
@click.option("--hosts", "count", type=click.IntRange(1, 10_000), default=3, show_default=True)
@click.option("--server", required=True, help="http(s)://host:port or unix:/path of the control plane.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One enrolment token a line, for sim-1, sim-2 ... in this order.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("simulated-hosts"),
    show_default=True,
    help="Holds a directory for each host; what is there is continued.",
)
def main(count: int, server: str, token_file: Path | None, directory: Path) -> None:
    """Run simulated hosts until interrupted."""
    log_to_stderr()
    tokens = token_file.read_text().split() if token_file else []
    hosts = [
        SimulatedHostConfig(
            name=f"sim-{index + 1}",
            directory=directory / f"sim-{index + 1}",
            server_url=server,
            token=tokens[index] if index < len(tokens) else "",
        )
        for index in range(count)
    ]

    async def serve() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await run_simulated_hosts(hosts, stop)

    try:
        asyncio.run(serve())
    except* (EnrolmentError, keys.BadKey, files.NotEnrolled) as errors:
        for error in _leaves(errors):
            code = getattr(error, "code", "fault")
            structlog.get_logger().error("simulated host not started", code=code, error=str(error))
        raise SystemExit(1) from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for each in error.exceptions:
        yield from _leaves(each)


if __name__ == "__main__":
    main()
