"""Let a halted domain's vCPUs run, unless its other half may run elsewhere."""

from typing import Any

from hostagent.commands._domain import observe
from hostagent.commands._host import Host
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Observed
from vmorch.core.migration import HALTED


def check_whole(seen: Observed) -> None:
    """Raises Rejected if the domain is halted by a migration: to resume it could make two of it."""
    if seen.power == "paused" and seen.reason in HALTED:
        raise Rejected("libvirt-refused", f"the domain is paused for {seen.reason}; it may run on another host")


def resume(host: Host, domain: Any) -> Observed:
    """What is seen of the domain that runs again. Raises Rejected if it does not."""
    domain.resume()
    after = observe(host, domain)
    if after.power == "paused":
        # libvirt answers with success even if the disk that stopped the guest is still full
        raise Rejected("libvirt-refused", f"the domain paused again at once: {after.reason}")
    return after
