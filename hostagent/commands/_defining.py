"""Compare and set a domain's persistent configuration."""

from typing import Any

import libvirt

from hostagent.commands._host import Host
from hostagent.domain_xml import Definition, build, digest, find_marker, read_figures, read_machine
from hostagent.layout import SEED, SERIAL_LOG, make_directory
from vmorch.core.ids import VmId
from vmorch.core.spec import VmSpec


def is_defined(host: Host, domain: Any, spec: VmSpec) -> bool:
    """Whether our domain's persistent configuration is this."""
    xml = _xml(domain)
    return _is_wanted(domain, xml, _definition(host, VmId(domain.name()), spec, read_machine(xml)))


def define(host: Host, vm: VmId, domain: Any | None, spec: VmSpec) -> Any | None:
    """The domain, once its persistent configuration was made this; None if it was this already."""
    xml = None if domain is None else _xml(domain)
    wanted = _definition(host, vm, spec, read_machine(xml))
    if domain is not None and xml is not None and _is_wanted(domain, xml, wanted):
        return None
    return _set(host, wanted)


def redefine(host: Host, vm: VmId, spec: VmSpec, told: str) -> None:
    """The persistent configuration is this, whatever it was. `told` is the domain's XML, of which it keeps the machine
    type."""
    _set(host, _definition(host, vm, spec, read_machine(told)))


def _set(host: Host, wanted: Definition) -> Any:
    make_directory(host.layout.vm("local", wanted.vm))
    return host.link.calls.defineXMLFlags(build(wanted), 0)


def _definition(host: Host, vm: VmId, spec: VmSpec, machine: str) -> Definition:
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


def _is_wanted(domain: Any, xml: str, wanted: Definition) -> bool:
    marker = find_marker(xml)
    if marker is None or marker.cluster != wanted.cluster or marker.digest != digest(wanted):
        return False
    return marker.figures == read_figures(xml) and bool(domain.isPersistent())


def _xml(domain: Any) -> str:
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
