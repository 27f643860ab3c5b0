"""Take a domain's persistent configuration from the host, with what was kept for it; a running one goes on until it
stops."""

from typing import Any

import libvirt

from hostagent.commands._domain import find, observe
from hostagent.commands._errors import is_absent
from hostagent.commands._host import Host
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import RUN_RECORD, SEED, SERIAL_LOG, clean, is_clean
from vmorch.core.hostcommands import Done, Observed, UndefineDomain

_EVERYTHING_OF_IT = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
_KEPT = SEED, SERIAL_LOG, RUN_RECORD


def _reached(command: UndefineDomain, host: Host) -> bool:
    return _is_reached(find(host, command.vm), command, host)


def _is_reached(domain: Any, command: UndefineDomain, host: Host) -> bool:
    if domain is None:
        return is_clean(host.layout.vm("local", command.vm), *_KEPT)
    return not domain.isPersistent()


@handles(UndefineDomain, reached=_reached)
def undefine_domain(command: UndefineDomain, host: Host, scope: Scope) -> Done:
    domain = find(host, command.vm)
    already = _is_reached(domain, command, host)
    if domain is not None and not already:
        _undefine(domain)
    seen = Observed(power="absent") if domain is None else observe(host, domain)
    if seen.power == "absent":
        _forget(command, host)
    return Done(observed=seen, already=already)


def _undefine(domain: Any) -> None:
    try:
        domain.undefineFlags(_EVERYTHING_OF_IT)
    except libvirt.libvirtError as error:
        # the call of an agent that died may have been under way in the daemon and come first
        if not is_absent(error):
            raise


def _forget(command: UndefineDomain, host: Host) -> None:
    clean(host.layout.vm("local", command.vm), *_KEPT)
    host.runs.forget(command.vm)
