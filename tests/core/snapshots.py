"""Public vocabulary for tests of snapshots: a VM with its files, and what is asked of it."""

import pytest

from tests.core.disks import Disks
from tests.core.drive import Answering, drive
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.vm import Operation, Vm, VmCommand
from vmorch.core.codec import unpack_event, unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.ids import OperationId, VmId
from vmorch.core.messages import Event, HostCommand
from vmorch.core.operation import Change
from vmorch.core.operations.create import DiskRequest
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.admission import admit_on_vm


class Guest:
    """A VM with two disks, which runs on the only host there is."""

    def __init__(self, **fields: object) -> None:
        self.history = History()
        self.host = self.history.host("h1")
        self.history.image()
        self.disks = Disks()
        second = DiskRequest(size=1)  # type: ignore[arg-type]
        self.id: VmId = self.history.create(asked("web", extra_disks=(second,), **fields))
        drive(self.history, self.id, self.disks.answer)

    @property
    def vm(self) -> Vm:
        return self.history.fleet.vms[self.id]

    @property
    def tree(self) -> dict[int, int | None]:
        return dict(self.vm.layers["vda"])

    @property
    def layer(self) -> int:
        """The layer of the root disk that the guest writes to."""
        assert self.vm.spec is not None
        return self.vm.spec.disks[0].layer

    def begin(self, command: VmCommand) -> Operation:
        """The operation that the command opens."""
        id = OperationId(f"op-{self.history.fleet.position}")
        self.history.take(admit_on_vm(self.history.fleet, self.vm, command, operation=id, who=WHO).changes)
        return self.vm.operations[id]

    def begin_facts(self, command: VmCommand) -> None:
        """A command that only states something."""
        admitted = admit_on_vm(self.history.fleet, self.vm, command, operation=OperationId("none"), who=WHO)
        assert not admitted.starts_operation
        self.history.take(admitted.changes)

    def promised(self) -> int:
        """MiB that its host promises to it."""
        return self.history.fleet.hosts[self.host].reservations[self.id].memory

    def ask(self, command: VmCommand, answer: Answering | None = None) -> Operation:
        """The operation that the command opens, once it is over."""
        self.begin(command)
        return drive(self.history, self.id, answer or self.disks.answer)

    def take(self, name: str, **fields: bool) -> Operation:
        return self.ask(SnapshotVm(name=name, **fields))  # type: ignore[arg-type]

    def delete(self, name: str, *, with_children: bool = False) -> Operation:
        return self.ask(DeleteSnapshot(snapshot=name, with_children=with_children))

    def back(self, to: str, answer: Answering | None = None, **fields: bool) -> Operation:
        return self.ask(RollbackVm(to=to, **fields), answer)

    def refused(self, command: VmCommand) -> str:
        with pytest.raises(Rejected) as caught:
            self.begin(command)
        return caught.value.code

    def write(self, value: int) -> None:
        """The guest overwrites the first block of its root disk."""
        self.disks.write("vda", 0, value)

    def read(self) -> int | None:
        return self.disks.seen()["vda"].get(0)


def labels(operation: Operation) -> list[str]:
    return [step.label for step in operation.steps]


def orders(operation: Operation) -> list[HostCommand]:
    return [unpack_host_command(step.command) for step in operation.steps]


def undos(operation: Operation) -> list[HostCommand | None]:
    return [None if step.undo is None else unpack_host_command(step.undo) for step in operation.steps]


def facts(changes: tuple[Change, ...]) -> list[Event]:
    return [unpack_event(each.event) for each in changes]


def kinds(operation: Operation) -> list[list[str]]:
    """What is appended with each step."""
    return [[event.kind for event in facts(step.then)] for step in operation.steps]
