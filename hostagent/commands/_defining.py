"""Compare and set a domain's persistent configuration."""

from typing import Any

import libvirt

from hostagent.commands._host import Host
from hostagent.domain_xml import NEWEST, Definition, Told, build, digest
from hostagent.layout import SEED, SERIAL_LOG, make_directory
from vmorch.core.ids import VmId
from vmorch.core.spec import VmSpec


def is_defined(host: Host, domain: Any, spec: VmSpec) -> bool:
    """Whether our domain's persistent configuration is this."""
    found = _configuration(domain)
    return _is_wanted(domain, found, _definition(host, VmId(domain.name()), spec, found.machine))


def define(host: Host, vm: VmId, domain: Any | None, spec: VmSpec) -> Any | None:
    """The domain, once its persistent configuration was made this; None if it was this already."""
    if domain is None:
        return _set(host, _definition(host, vm, spec))
    found = _configuration(domain)
    wanted = _definition(host, vm, spec, found.machine)
    return None if _is_wanted(domain, found, wanted) else _set(host, wanted)


def redefine(host: Host, vm: VmId, spec: VmSpec, told: Told) -> None:
    """The persistent configuration is this, whatever it was. Of what is told of the domain it keeps the machine
    type."""
    _set(host, _definition(host, vm, spec, told.machine))


def _set(host: Host, wanted: Definition) -> Any:
    make_directory(host.layout.vm("local", wanted.vm))
    return host.link.calls.defineXMLFlags(build(wanted), 0)


def _definition(host: Host, vm: VmId, spec: VmSpec, machine: str = NEWEST) -> Definition:
    local = host.layout.vm("local", vm)
    return Definition(
        vm=vm,
        spec=spec,
        cluster=host.cluster,
        domain_type=host.domain_type,
        disks=tuple((disk.name, host.layout.disk(vm, disk)) for disk in spec.disks),
        seed=None if spec.seed is None else local / SEED,
        serial_log=local / SERIAL_LOG,
        default_network=host.default_network,
        machine=machine,
    )


def _is_wanted(domain: Any, found: Told, wanted: Definition) -> bool:
    marker = found.marker
    if marker is None or marker.cluster != wanted.cluster or marker.digest != digest(wanted):
        return False
    return marker.figures == found.figures and bool(domain.isPersistent())


def _configuration(domain: Any) -> Told:
    return Told(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
