"""Add vCPUs to a running domain."""

import libvirt

from hostagent.commands._domain import find, need, observe
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Done, SetVcpus


def _reached(command: SetVcpus, host: Host) -> bool:
    domain = find(host, command.vm)
    return domain is not None and observe(host, domain).vcpus == command.vcpus


@handles(SetVcpus, reached=_reached)
def set_vcpus(command: SetVcpus, host: Host, scope: Scope) -> Done:
    domain = need(host, command.vm)
    seen = observe(host, domain)
    if seen.vcpus == command.vcpus:
        return Done(observed=seen, already=True)
    if command.vcpus < seen.vcpus:
        # guests rarely let go of one, and an emulating QEMU 7.2 corrupts its memory when they do
        raise Rejected(
            "libvirt-refused", f"the domain has {seen.vcpus} vCPUs; none is taken from a running guest"
        )
    domain.setVcpusFlags(command.vcpus, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return Done(observed=observe(host, domain))
