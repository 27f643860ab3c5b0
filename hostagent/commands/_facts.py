"""Say what this host is."""

import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import libvirt

from hostagent.commands._capabilities import machines, processor
from hostagent.commands._host import Host
from hostagent.identity import machine_id
from hostagent.pki import lacking
from hostagent.shared import shared_id
from hostagent.space import storage_gib
from vmorch.core.ids import GiB, MiB
from vmorch.core.spec import HostFacts


def host_facts(host: Host) -> HostFacts:
    """What the host is and holds. Raises libvirtError."""
    connection = host.link.queries
    cpus = connection.getInfo()[2]
    # getInfo() knows a memory size too, but a wrong one on some machines with several memory nodes
    memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)["total"] // 1024
    layout = host.layout
    shares = "shared" in layout.storages
    hostname = connection.getHostname() or socket.gethostname()
    return HostFacts(
        hostname=hostname,
        machine_id=machine_id(),
        cpus=cpus,
        memory=MiB(memory),
        local_gib=storage_gib(layout, "local"),
        shared_gib=storage_gib(layout, "shared") if shares else GiB(0),
        shared_id=shared_id(layout.root("shared")) if shares else "",
        accel="kvm" if host.domain_type == "kvm" else "tcg",
        libvirt=_dotted(connection.getLibVersion()),
        qemu=_dotted(connection.getVersion()),
        agent=_own_version(),
        networks=tuple(sorted(_networks(connection))),
        address=host.address or hostname,
        encrypts=not lacking(host.pki_dir),
        cpu=processor(connection),
        machines=machines(connection),
        local_dir=str(layout.root("local").parent),
        shared_dir=str(layout.root("shared").parent) if shares else "",
        backup_targets=host.targets.ids(),
    )


def _networks(connection: Any) -> list[str]:
    active = libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE
    return [network.name() for network in connection.listAllNetworks(active)]


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _own_version() -> str:
    try:
        return version("vmorch")
    except PackageNotFoundError:
        return "source"
