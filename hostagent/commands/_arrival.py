"""Look for everything that would keep a guest from arriving, before anything moves. Changes nothing."""

from collections.abc import Iterator

import libvirt

from hostagent.commands._capabilities import machines
from hostagent.commands._host import Host
from hostagent.layout import opened, regular_file
from hostagent.pki import lacking
from hostagent.space import memory_available
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import PrepareArrival


def blockers(command: PrepareArrival, host: Host) -> tuple[str, ...]:
    """Everything in the way, each in words. Raises libvirtError."""
    looks = (_processor, _board, _memory, _networks, _shared_disks, _certificate)
    return tuple(blocker for look in looks for blocker in look(command, host))


def _processor(command: PrepareArrival, host: Host) -> Iterator[str]:
    # an emulated guest sees a processor that every QEMU can play
    if not command.cpu or host.domain_type != "kvm":
        return
    connection = host.link.queries
    try:
        connection.compareCPU(command.cpu, libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            raise
        yield f"its processor lacks what the source's has: {error.get_error_message()}"


def _board(command: PrepareArrival, host: Host) -> Iterator[str]:
    if command.machine and command.machine not in machines(host.link.queries):
        yield f"its QEMU has no machine type {command.machine}"


def _memory(command: PrepareArrival, host: Host) -> Iterator[str]:
    free = memory_available()
    if command.spec.memory > free:
        yield f"needs {command.spec.memory} MiB of memory, {free} are free"


def _networks(command: PrepareArrival, host: Host) -> Iterator[str]:
    active = host.link.queries.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
    known = {network.name() for network in active}
    for name in dict.fromkeys(nic.network or host.default_network for nic in command.spec.nics):
        if name is None:
            yield "a card names no network and it has no default one"
        elif name not in known:
            yield f"no active network {name}"


def _shared_disks(command: PrepareArrival, host: Host) -> Iterator[str]:
    for disk in command.spec.disks:
        if disk.storage != "shared":
            continue
        try:
            path = host.layout.disk(command.vm, disk)
            with opened(path.parent) as directory:
                seen = directory is not None and regular_file(directory, path.name) is not None
        except Rejected as refusal:
            yield f"disk {disk.name}: {refusal.reason}"
            continue
        if not seen:
            yield f"disk {disk.name} is not to be seen on shared storage"


def _certificate(command: PrepareArrival, host: Host) -> Iterator[str]:
    missing = lacking(host.pki_dir) if command.encrypted else ()
    if missing:
        yield f"it has no certificate, and the guest shall travel encrypted: {', '.join(missing)} not in {host.pki_dir}"
