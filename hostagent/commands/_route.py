"""Say to libvirt how a guest shall travel: where to, over what, with which disks, and how hard it may be pressed."""

import ipaddress
from typing import Any
from urllib.parse import quote

import libvirt
from msgspec import Struct

from hostagent.commands._host import Host
from hostagent.network_fs import is_network_fs
from vmorch.core.hostcommands import MigrateDomain

MOST_BANDWIDTH = (1 << 63) // (1 << 20) - 1
"""MiB/s that libvirt takes for no limit."""
_PORTS = {True: 16514, False: 16509}
_ALWAYS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
)


class Route(Struct, frozen=True):
    """The arguments of libvirt's call, and the port at which the destination's libvirt must answer."""

    uri: str
    parameters: dict[str, Any]
    flags: int
    port: int


def route(command: MigrateDomain, host: Host, *, postcopy: bool, shared: bool) -> Route:
    """The way of a passage; `shared`: the guest has disks on shared storage."""
    passage, address = command.passage, _in_uri(command.address)
    scheme, query = ("qemu+tls", f"?pkipath={quote(str(host.pki_dir))}") if passage.encrypted else ("qemu+tcp", "")
    # by the address that the certificate names; libvirt would take the name that the destination gives itself
    parameters: dict[str, Any] = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{address}"}
    flags = _ALWAYS
    if passage.encrypted:
        flags |= libvirt.VIR_MIGRATE_TLS
    if passage.slow_down:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if passage.bandwidth:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = passage.bandwidth
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = passage.bandwidth
    if postcopy:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    elif passage.connections > 1:
        # never both: a QEMU that switches over with several connections dies, and the guest with it
        flags |= libvirt.VIR_MIGRATE_PARALLEL
        parameters[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = passage.connections
    if command.copy:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(command.copy)
    if shared and not is_network_fs(host.layout.root("shared")):
        # libvirt knows network file systems only; that both hosts see the same storage was proven by its id
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    return Route(f"{scheme}://{address}/system{query}", parameters, flags, _PORTS[passage.encrypted])


def _in_uri(address: str) -> str:
    try:
        return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    except ValueError:
        return address
