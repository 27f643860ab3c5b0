"""Look at every domain of the host at once."""

import contextlib
from collections.abc import Iterator
from typing import Any

import libvirt

from hostagent.commands._domain import domain_is_active, marker_of, observe, seen_off
from hostagent.commands._errors import is_absent
from hostagent.commands._host import Host
from hostagent.domain_xml import Told
from hostagent.hypervisor import Inventory
from hostagent.layout import is_vm_id
from vmorch.core.hostcommands import Observed
from vmorch.core.ids import VmId


def take_inventory(host: Host) -> Inventory:
    """Every domain: ours with what differs from its definition, all others by name. Raises libvirtError."""
    connection = host.link.queries
    domains: dict[VmId, Observed] = {}
    configuration: dict[VmId, dict[str, tuple[str, str]]] = {}
    unmanaged: list[str] = []
    # the state group alone: it is answered from memory, any other would wait for a QEMU that hangs
    for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
        name = domain.name()
        with _skipped_if_gone():
            if not is_vm_id(name) or marker_of(host, domain) is None:
                unmanaged.append(name)
                continue
            vm = VmId(name)
            domains[vm] = _seen(host, domain, stats["state.state"], stats["state.reason"])
            # a guest on its way here gets its configuration at the end
            if not domains[vm].moving and (differs := _differences(host, domain)):
                configuration[vm] = differs
    return Inventory(domains=domains, configuration=configuration, unmanaged=tuple(sorted(unmanaged)))


def _seen(host: Host, domain: Any, state: int, reason: int) -> Observed:
    if domain_is_active(state):
        return observe(host, domain)
    return seen_off(host, VmId(domain.name()), state, reason)


def _differences(host: Host, domain: Any) -> dict[str, tuple[str, str]]:
    if not domain.isPersistent():
        return {"persistent": ("yes", "no")}
    marker = marker_of(host, domain, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    if marker is None:
        return {"marker": ("present", "missing")}
    found = Told(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).figures
    return {
        field: (marker.figures.get(field, ""), found.get(field, ""))
        for field in sorted(marker.figures.keys() | found.keys())
        if marker.figures.get(field) != found.get(field)
    }


@contextlib.contextmanager
def _skipped_if_gone() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if not is_absent(error):
            raise
