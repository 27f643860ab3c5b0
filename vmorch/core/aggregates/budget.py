"""A budget: how many VMs of a group may be on the move or not running at once.

It bounds what vmorch does by itself, such as draining a host; what an operator asks of one VM is his own affair.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

from msgspec import Meta
from msgspec.structs import replace

from vmorch.core.aggregates.vm import Vm
from vmorch.core.errors import Rejected
from vmorch.core.messages import Command, Event, message
from vmorch.core.spec import LabelKey, LabelValue, Name
from vmorch.core.value import Value

Selector = Annotated[dict[LabelKey, LabelValue], Meta(min_length=1, max_length=32)]
# none at all would keep every host of the group from ever being drained
MaxUnavailable = Annotated[int, Meta(ge=1, le=10_000)]

CALM = frozenset({"attach-volume", "backup", "detach-volume", "grow-disk", "resize", "tidy"})
"""Operations that a guest runs through without a break."""


class Budget(Value, frozen=True, kw_only=True):
    """A budget, folded from its stream. Its group are the VMs that have all labels of `selector`."""

    id: str
    name: str = ""
    version: int = 0
    selector: Mapping[str, str] = {}
    max_unavailable: int = 1
    created_at: datetime | None = None
    deleted: bool = False

    def covers(self, vm: Vm) -> bool:
        """Whether the VM is one of the group."""
        return all(vm.labels.get(key) == value for key, value in self.selector.items())


def unavailable(vm: Vm) -> bool:
    """Whether a VM counts as away: not running, lost between two hosts, or in an operation that interrupts it."""
    return vm.power != "running" or vm.frozen is not None or _interrupted(vm)


def down(vm: Vm) -> bool:
    """Whether it is away and nothing is under way that will bring it back."""
    return vm.frozen is not None or (vm.power != "running" and not _interrupted(vm))


def _interrupted(vm: Vm) -> bool:
    return vm.active is not None and vm.operations[vm.active].verb not in CALM


class BudgetEvent(Event, frozen=True, kw_only=True):
    """A fact about one budget."""

    subject: ClassVar[str] = "budget"

    def apply(self, budget: Budget, at: datetime) -> Budget:
        """The budget after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("budget.created")
class BudgetCreated(BudgetEvent, frozen=True, kw_only=True):
    """At most `max_unavailable` VMs with these labels are taken away at once from now on."""

    name: str
    selector: Mapping[str, str]
    max_unavailable: int

    def apply(self, budget: Budget, at: datetime) -> Budget:
        return replace(
            budget,
            name=self.name,
            selector=self.selector,
            max_unavailable=self.max_unavailable,
            created_at=at,
            deleted=False,
        )


@message("budget.deleted")
class BudgetDeleted(BudgetEvent, frozen=True, kw_only=True):
    """The budget bounds nothing any more."""

    def apply(self, budget: Budget, at: datetime) -> Budget:
        return replace(budget, deleted=True)


@message("budget.create")
class CreateBudget(Command, frozen=True, kw_only=True):
    """A budget of this name for the VMs that have all of these labels."""

    verb = "create"
    summary = "Bound how many VMs of a group are away at once"

    name: Name
    selector: Selector
    max_unavailable: MaxUnavailable = 1


def delete(budget: Budget) -> list[BudgetEvent]:
    """Give the budget up. Raises Rejected `already-so`."""
    if budget.deleted:
        raise Rejected("already-so", f"budget {budget.name} is already deleted")
    return [BudgetDeleted()]
