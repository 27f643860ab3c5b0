"""Find a domain of ours and say what is seen of it, with the fewest calls that can tell.

None of these waits for the guest, its agent or QEMU's monitor: a guest that hangs must not hang its observers.
"""

from typing import Any

import libvirt

from hostagent.commands._aside import Call
from hostagent.commands._errors import is_absent
from hostagent.commands._host import Host
from hostagent.commands._qemu import UNHELD, qemu_of
from hostagent.domain_xml import NAMESPACE, Marker, Told, read_marker
from hostagent.layout import is_vm_id
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Observed, Power
from vmorch.core.ids import MiB, VmId

_POWER: dict[int, Power] = {
    libvirt.VIR_DOMAIN_NOSTATE: "unknown",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_SHUTDOWN: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
}


_ARRIVING = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)
"""What a guest shows that is on its way here; one that is not may show the same."""
_ARRIVAL_SECONDS = 1.0


def _reasons() -> dict[tuple[int, int], str]:
    prefixes = {
        libvirt.VIR_DOMAIN_PAUSED: "VIR_DOMAIN_PAUSED_",
        libvirt.VIR_DOMAIN_SHUTOFF: "VIR_DOMAIN_SHUTOFF_",
        libvirt.VIR_DOMAIN_CRASHED: "VIR_DOMAIN_CRASHED_",
    }
    return {
        (state, value): name.removeprefix(prefix).lower().replace("_", " ")
        for state, prefix in prefixes.items()
        for name, value in vars(libvirt).items()
        if name.startswith(prefix) and not name.endswith(("_UNKNOWN", "_LAST"))
    }


_REASONS = {
    **_reasons(),
    # why else a domain runs is left out: it changes with every resume and interests nobody
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY): "postcopy",
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED): "postcopy failed",
}


def find(host: Host, vm: VmId, connection: Any = None) -> Any | None:
    """Our domain, None if there is none. Raises Rejected `not-ours` if another one holds its uuid or name."""
    connection = connection or host.link.calls
    domain = lookup(connection, vm)
    if domain is None:
        if _named(connection, vm) is not None:
            raise Rejected("not-ours", f"a domain named {vm} that vmorch did not make stands here")
        return None
    try:
        marker = marker_of(host, domain)
    except libvirt.libvirtError as error:
        if is_absent(error):  # it went away in this moment
            return None
        raise
    if marker is None:
        raise _not_ours(vm)
    return domain


def _not_ours(vm: VmId) -> Rejected:
    return Rejected("not-ours", f"the domain {vm} was not made by this cluster's agent")


def need(host: Host, vm: VmId) -> Any:
    """Our domain. Raises Rejected `no-domain` or `not-ours`."""
    domain = find(host, vm)
    if domain is None:
        raise Rejected("no-domain", f"no domain {vm} on this host")
    return domain


def tell(host: Host, domain: Any, vm: VmId) -> Told:
    """What libvirt tells of our domain. Raises Rejected `not-ours`, libvirtError."""
    told = Told(domain.XMLDesc(0))
    if told.marker is None or told.marker.cluster != host.cluster:
        raise _not_ours(vm)
    return told


def marker_of(host: Host, domain: Any, flags: int = 0) -> Marker | None:
    """What the domain says of itself if it is ours."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    marker = read_marker(text)
    return marker if marker is not None and marker.cluster == host.cluster else None


def observe(host: Host, domain: Any) -> Observed:
    """What is seen of a domain of ours now; `absent` if it went away meanwhile."""
    try:
        state, reason = domain.state()
        if domain_is_active(state):
            _, _, memory, vcpus, _ = domain.info()
            return _seen_active(host, domain, state, reason, vcpus, memory)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return Observed(power="absent")
        raise
    return seen_off(host, VmId(domain.name()), state, reason)


def observe_vm(host: Host, vm: VmId) -> Observed:
    """What is seen of a VM now, asked on the connection for questions. Raises Rejected `not-ours`."""
    if not is_vm_id(vm):
        return Observed(power="absent")
    domain = find(host, vm, host.link.queries)
    return Observed(power="absent") if domain is None else observe(host, domain)


def domain_is_active(state: int) -> bool:
    """Whether a domain in this state has a QEMU."""
    return _POWER.get(state, "unknown") in ("running", "paused")


def is_arriving(host: Host, domain: Any, state: int, reason: int) -> bool:
    """Whether the guest is on its way here. Answers within a second, also when its QEMU does not."""
    if (state, reason) != _ARRIVING:
        return False
    vm = VmId(domain.name())
    asked = host.asking.get(vm)
    if asked is None or asked.over.is_set():
        # libvirt refuses figures of an arrival at once; of any other domain it would ask QEMU
        asked = host.asking[vm] = Call(domain.jobStats)
    if not asked.over.wait(_ARRIVAL_SECONDS):
        return True
    host.asking.pop(vm, None)
    return asked.error is not None and asked.error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED


def _seen_active(host: Host, domain: Any, state: int, reason: int, vcpus: int, memory_kib: int) -> Observed:
    """An active domain's state in our words, with the addresses that its guest named last."""
    vm = VmId(domain.name())
    host.runs.active(vm)
    return Observed(
        power=_POWER.get(state, "unknown"),
        reason=_REASONS.get((state, reason), ""),
        vcpus=vcpus,
        memory=MiB(memory_kib // 1024),
        addresses=host.runs.of(vm).addresses,
        moving=host.passages.moving(vm) or is_arriving(host, domain, state, reason),
    )


def seen_off(host: Host, vm: VmId, state: int, reason: int) -> Observed:
    """An inactive domain's state in our words; `unknown` if its guest runs on without libvirt."""
    if qemu_of(vm) is not None:
        return Observed(power="unknown", reason=UNHELD)
    why = host.runs.ended(vm, _REASONS.get((state, reason), ""))
    power = _POWER.get(state, "unknown")
    return Observed(power="crashed" if power == "off" and why == "crashed" else power, reason=why)


def lookup(connection: Any, vm: VmId) -> Any | None:
    """The domain of that uuid, whoever made it."""
    try:
        return connection.lookupByUUIDString(vm)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise


def _named(connection: Any, vm: VmId) -> Any | None:
    try:
        return connection.lookupByName(vm)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise
