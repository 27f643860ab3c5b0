"""Which hosts a VM must keep off because of who is there, kept up to date while a plan is made.

The rule is placement's own: a VM keeps away from those that have the labels it names, and they from it. Here it is
answered for many VMs and hosts without comparing each with each. Must not know about capacity.
"""

from collections.abc import Iterable, Mapping

from vmorch.core.aggregates.vm import Vm
from vmorch.core.ids import HostId

Selector = frozenset[tuple[str, str]]


def selector_of(labels: Mapping[str, str]) -> Selector:
    """Labels to be found together, as a value that can be looked up."""
    return frozenset(labels.items())


class Selectors:
    """A set of selectors that tells quickly which of them a VM's labels answer to."""

    def __init__(self, selectors: Iterable[Selector]) -> None:
        self._by_item: dict[tuple[str, str], list[Selector]] = {}
        for selector in sorted(set(selectors), key=sorted):
            if selector:
                # one of its items is enough to find it by; the rest is compared
                self._by_item.setdefault(min(selector), []).append(selector)

    def matching(self, labels: Mapping[str, str]) -> list[Selector]:
        """Those of which every item is among the labels."""
        if not self._by_item:
            return []
        items = labels.items()
        return [each for item in items for each in self._by_item.get(item, ()) if each <= items]


class Apartness:
    """Who keeps whom off which host. A VM counts on every host that it was added to."""

    def __init__(self, vms: Iterable[Vm]) -> None:
        away = {selector_of(vm.spec.placing.away_from) for vm in vms if vm.spec and vm.spec.placing.away_from}
        self._selectors = Selectors(away)
        self._matched: dict[Selector, dict[HostId, int]] = {each: {} for each in away}
        """Where VMs stand that a selector means."""
        self._wanting: dict[Selector, dict[HostId, int]] = {each: {} for each in away}
        """Where VMs stand that want to be away from those."""

    def concerns(self, vm: Vm) -> bool:
        """Whether any VM keeps the other off at all."""
        assert vm.spec is not None
        return bool(vm.spec.placing.away_from) or bool(self._selectors.matching(vm.labels))

    def add(self, vm: Vm, host: HostId, count: int = 1) -> None:
        """The VM stands on the host too, from now on; with `count` -1 no longer."""
        assert vm.spec is not None
        for selector in self._selectors.matching(vm.labels):
            at = self._matched[selector]
            at[host] = at.get(host, 0) + count
        if vm.spec.placing.away_from:
            at = self._wanting[selector_of(vm.spec.placing.away_from)]
            at[host] = at.get(host, 0) + count

    def forbidden(self, vm: Vm) -> frozenset[HostId]:
        """The hosts that the VM must keep off."""
        assert vm.spec is not None
        own = selector_of(vm.spec.placing.away_from)
        found = {host for host, count in self._matched.get(own, {}).items() if count}
        for selector in self._selectors.matching(vm.labels):
            found |= {host for host, count in self._wanting[selector].items() if count}
        return frozenset(found)


def apart(one: Vm, other: Vm) -> bool:
    """Whether two VMs must not stand on the same host."""
    return _wants_off(one, other) or _wants_off(other, one)


def _wants_off(one: Vm, other: Vm) -> bool:
    away = one.spec.placing.away_from if one.spec else {}
    return bool(away) and away.items() <= other.labels.items()
