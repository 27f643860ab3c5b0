"""What has changed on the host since it was last told: a pure difference of two looks.

Must not look by itself, and must not judge: drift is a fact to report, never one to repair here.
"""

from collections.abc import Callable, Mapping

from msgspec import Struct, structs

from hostagent.hypervisor import Inventory
from vmorch.core.hostcommands import Observed
from vmorch.core.ids import VmId
from vmorch.core.spec import HostFacts
from vmorch.wire.envelopes import Seen

SIZES = ("memory", "local_gib", "shared_gib")
SAME_SIZE = 0.05
"""Up to which part of it a size is the same: file systems with quotas or snapshots grow and shrink all the time."""

Differences = Mapping[str, tuple[str, str]]


class LastSeen(Struct, frozen=True):
    """What was last told of a domain."""

    observed: Observed
    configuration: dict[str, tuple[str, str]]


def changes(before: Mapping[VmId, LastSeen], now: Inventory, settled: Callable[[VmId], bool]) -> tuple[Seen, ...]:
    """What to tell, ordered by VM. A VM that is not `settled` is left out: an order works on it, and the
    order's answer will carry what is seen then. A domain that is nowhere to be found is told as absent."""
    found = (
        _change(vm, before.get(vm), now.domains.get(vm, Observed(power="absent")), now.configuration.get(vm, {}))
        for vm in sorted(before.keys() | now.domains.keys())
        if settled(vm)
    )
    return tuple(seen for seen in found if seen is not None)


def another(said: HostFacts, now: HostFacts) -> bool:
    """Whether a host is not what it said any more."""
    for size in SIZES:
        before, after = getattr(said, size), getattr(now, size)
        if abs(after - before) > before * SAME_SIZE:
            return True
    return structs.replace(now, **{size: getattr(said, size) for size in SIZES}) != said


def change(vm: VmId, before: LastSeen | None, observed: Observed) -> Seen | None:
    """What to tell after a look at one domain that did not include its configuration."""
    return _change(vm, before, observed, before.configuration if before is not None else {})


def _change(vm: VmId, before: LastSeen | None, observed: Observed, found: Differences) -> Seen | None:
    if before is None:
        before = LastSeen(Observed(power="absent"), {})
        if observed == before.observed:
            return None
    known = before.configuration if observed.power != "absent" else {}
    differs = dict(found) if observed.power != "absent" else {}
    if observed == before.observed and differs == known:
        return None
    return Seen(vm=vm, observed=observed, configuration=differs if differs != known else None)
