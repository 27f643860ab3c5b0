"""Give the host a domain's persistent configuration."""

from typing import Any

import libvirt

from hostagent.commands._domain import find, marker_of, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.domain_xml import Definition, build, digest, read_figures, read_machine
from hostagent.hypervisor import Scope
from hostagent.layout import SEED, SERIAL_LOG, make_directory
from vmorch.core.hostcommands import DefineDomain, Done


def _definition(command: DefineDomain, host: Host, machine: str) -> Definition:
    local, spec = host.layout.vm("local", command.vm), command.spec
    return Definition(
        vm=command.vm,
        spec=spec,
        cluster=host.cluster,
        domain_type=host.domain_type,
        disks=tuple((disk.name, host.layout.disk(disk.storage, command.vm, disk.name)) for disk in spec.disks),
        seed=None if spec.seed is None else local / SEED,
        serial_log=local / SERIAL_LOG,
        default_network=host.default_network,
        machine=machine,
    )


def _is_defined(host: Host, domain: Any, xml: str, wanted: Definition) -> bool:
    if not domain.isPersistent():
        return False
    marker = marker_of(host, domain, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    return marker is not None and marker.digest == digest(wanted) and marker.figures == read_figures(xml)


def _xml(domain: Any) -> str:
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def _reached(command: DefineDomain, host: Host) -> bool:
    domain = find(host, command.vm)
    if domain is None:
        return False
    xml = _xml(domain)
    return _is_defined(host, domain, xml, _definition(command, host, read_machine(xml)))


@handles(DefineDomain, reached=_reached)
def define_domain(command: DefineDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    xml = None if domain is None else _xml(domain)
    wanted = _definition(command, host, read_machine(xml))
    if domain is not None and xml is not None and _is_defined(host, domain, xml, wanted):
        return Done(observed=observe(host, domain), already=True)
    make_directory(host.layout.vm("local", command.vm))
    domain = host.link.calls.defineXMLFlags(build(wanted), 0)
    return Done(observed=observe(host, domain))
