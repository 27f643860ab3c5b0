"""Whether a host that was worked on is what it was, and can take VMs again. What only the host can tell it is asked."""

from vmorch.core.aggregates.host import RESOURCES, Host
from vmorch.core.spec import HostFacts


def ailments(host: Host, before: HostFacts | None) -> tuple[str, ...]:
    """Everything that speaks against returning the host to service; nothing if it is well."""
    if host.agent != "connected" or host.facts is None:
        return (f"its agent is {host.agent}",)
    found: list[str] = []
    if before is not None:
        found += _lost(before, host.facts)
    total, promised = host.total(), host.promised()
    for resource, unit in RESOURCES:
        held, all_ = getattr(promised, resource), getattr(total, resource)
        if held > all_:
            found.append(f"{held:g} {unit} of it are promised, and it has {all_:g}")
    return tuple(found)


def _lost(before: HostFacts, now: HostFacts) -> list[str]:
    """What the host had before and has no more. More of something is no ailment."""
    found = []
    for field, unit in (("cpus", "CPUs"), ("memory", "MiB of memory"), ("local_gib", "GiB of local disk")):
        was, has = getattr(before, field), getattr(now, field)
        # firmware and kernels keep a little more or less for themselves from one start to the next
        if has < was * 0.97:
            found.append(f"it has {has:g} {unit}, and had {was:g}")
    if before.shared_id and now.shared_id != before.shared_id:
        found.append(f"it does not see the shared storage {before.shared_id} any more")
    gone = [network for network in before.networks if network not in now.networks]
    if gone:
        found.append(f"it has no network {', '.join(gone)} any more")
    if before.encrypts and not now.encrypts:
        found.append("it has no certificate any more")
    if before.accel != now.accel:
        found.append(f"it runs guests with {now.accel}, and did with {before.accel}")
    return found
