"""How much of each budget is used, and by whom. Pure counting; what to do about it is the planners' affair."""

from collections.abc import Iterable

from vmorch.core.aggregates.budget import Budget, down, unavailable
from vmorch.core.aggregates.vm import Vm
from vmorch.core.planning.apartness import Selector, Selectors, selector_of


class Groups:
    """The budgets of a cluster, and which of them cover a VM."""

    def __init__(self, budgets: Iterable[Budget]) -> None:
        self.budgets = tuple(sorted(budgets, key=lambda budget: (budget.name, budget.id)))
        self._by_selector: dict[Selector, list[Budget]] = {}
        for budget in self.budgets:
            self._by_selector.setdefault(selector_of(budget.selector), []).append(budget)
        self._selectors = Selectors(self._by_selector)

    def of(self, vm: Vm) -> tuple[Budget, ...]:
        """The budgets that cover the VM."""
        found = [each for selector in self._selectors.matching(vm.labels) for each in self._by_selector[selector]]
        return tuple(sorted(found, key=lambda budget: (budget.name, budget.id)))


class Use:
    """VMs that are away, by the budget that covers them: those that will come back and those that will not by
    themselves."""

    def __init__(self, groups: Groups, vms: Iterable[Vm]) -> None:
        self.down: dict[str, list[str]] = {budget.id: [] for budget in groups.budgets}
        self.passing: dict[str, list[str]] = {budget.id: [] for budget in groups.budgets}
        if not groups.budgets:
            return
        for vm in vms:
            if vm.deleted_at is None and vm.spec is not None and unavailable(vm):
                for budget in groups.of(vm):
                    (self.down if down(vm) else self.passing)[budget.id].append(vm.name)

    def exhausted(self, budget: Budget) -> str:
        """Why nobody else of the group may be taken away for good, in words; empty if somebody may."""
        away = self.down[budget.id]
        return _words(budget, away) if len(away) >= budget.max_unavailable else ""

    def full(self, budget: Budget) -> str:
        """Why nobody else of the group may be taken away now, in words; empty if somebody may."""
        away = [*self.down[budget.id], *self.passing[budget.id]]
        return _words(budget, away) if len(away) >= budget.max_unavailable else ""


def _words(budget: Budget, away: list[str]) -> str:
    named = ", ".join(sorted(away)[:3]) + (f" and {len(away) - 3} more" if len(away) > 3 else "")
    return f"budget {budget.name} allows {budget.max_unavailable} of its VMs away at once: {named} already"
