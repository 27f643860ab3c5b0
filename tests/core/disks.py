"""One VM's files on a host, for tests: what every layer holds, block by block, and what the guest sees of it.

It knows nothing of how the control plane reckons. Whatever would lose or mix data is an error of the test.
"""

from collections.abc import Callable

from tests.core.drive import well
from vmorch.core.hostcommands import (
    CreateDisk,
    DefineDomain,
    Done,
    DropLayers,
    Failed,
    LayerCommand,
    MakeLayers,
    MergeLayers,
    RestoreGuest,
    SaveGuest,
    StartDomain,
    StopDomain,
    TakeSnapshot,
)
from vmorch.core.messages import HostCommand
from vmorch.core.spec import VmSpec

Blocks = dict[int, int]
Contents = dict[str, Blocks]


class Disks:
    """The files of one VM, and its guest."""

    def __init__(self) -> None:
        self.on: dict[str, dict[int, int | None]] = {}
        self.held: dict[str, dict[int, Blocks]] = {}
        self.writes_to: dict[str, int] = {}
        self.memories: dict[int, int] = {}
        self.runs = False
        self.ram = 0
        self.orders: list[HostCommand] = []

    def write(self, disk: str, block: int, value: int) -> None:
        """The guest writes."""
        assert self.runs
        assert not self._above(disk, self.writes_to[disk]), "a guest writes to a layer that others need"
        self.held[disk][self.writes_to[disk]][block] = value
        self.ram = value

    def shown(self, disk: str, layer: int) -> Blocks:
        """What a disk holds for whoever reads it through this layer."""
        below = self.on[disk][layer]
        return {**({} if below is None else self.shown(disk, below)), **self.held[disk][layer]}

    def seen(self) -> Contents:
        """What the guest sees of its disks."""
        return {disk: self.shown(disk, layer) for disk, layer in self.writes_to.items()}

    def through(self, layers: dict[str, int]) -> Contents:
        """What a guest would see that stood on these layers."""
        return {disk: self.shown(disk, layer) for disk, layer in layers.items()}

    def answer(self, index: int, undo: bool, command: HostCommand) -> Done | Failed:
        """Carry out an order, as a step of an operation is answered."""
        self.orders.append(command)
        if isinstance(command, LayerCommand):
            drift = self._drift(command)
            if drift:
                return Failed(code="chain-drift", message=drift)
        match command:
            case CreateDisk(disk=disk):
                self.on[disk.name], self.held[disk.name] = {0: None}, {0: {}}
            case DefineDomain(spec=spec):
                self._define(spec)
            case StartDomain() if not self.runs:
                self.runs, self.ram = True, 0
            case StopDomain():
                self.runs = False
            case TakeSnapshot(spec=spec, memory=memory):
                for disk in spec.disks:
                    self._make(disk.name, disk.layer, self.writes_to[disk.name])
                if memory is not None:
                    self.memories[memory.number] = self.ram
                self.writes_to = {disk.name: disk.layer for disk in spec.disks}
            case MakeLayers(on=on, next=number):
                for name, below in on.items():
                    self._make(name, number, below)
            case DropLayers(layers=layers, memory=memory):
                for each in memory:
                    del self.memories[each.number]
                for name, numbers in layers.items():
                    for number in numbers:
                        self._drop(name, number)
            case MergeLayers(disk=name, top=top, into=into, spec=spec):
                self._merge(name, top, into)
                self._define(spec, merged=True)
            case SaveGuest(memory=memory):
                assert self.runs
                self.memories[memory.number], self.runs = self.ram, False
            case RestoreGuest(spec=spec, memory=memory, spend=spend):
                if not self.runs:
                    self._define(spec)
                    self.runs, self.ram = True, self.memories[memory.number]
                if spend:
                    self.memories.pop(memory.number, None)
        return well(index, undo, command)

    def _drift(self, command: LayerCommand) -> str:
        """What is otherwise than the order says; empty if nothing is, and then what an earlier attempt left is gone."""
        for stack in command.stacks:
            name = stack.disk.name
            assert command.next not in stack.tree
            unused = {command.next} - {self.writes_to[name]} - set(self.on[name].values())
            there = {number: on for number, on in self.on[name].items() if number not in unused}
            if there != stack.tree or self.writes_to[name] != stack.disk.layer:
                return f"{name}: {self.on[name]} {self.writes_to[name]}, not {stack.tree} {stack.disk.layer}"
            for number in unused:
                self._drop(name, number)
        return ""

    def _define(self, spec: VmSpec, *, merged: bool = False) -> None:
        now = {disk.name: disk.layer for disk in spec.disks}
        assert not self.runs or merged or now == self.writes_to, "a running guest does not change its files"
        for name, layer in now.items():
            assert layer in self.on[name]
        self.writes_to = now

    def _make(self, disk: str, number: int, on: int) -> None:
        assert on in self.on[disk]
        self.on[disk][number], self.held[disk][number] = on, {}

    def _drop(self, disk: str, number: int) -> None:
        assert not self._above(disk, number), "a layer is dropped that others need"
        assert self.writes_to[disk] != number, "a layer is dropped that the guest writes to"
        self.on[disk].pop(number, None)
        self.held[disk].pop(number, None)

    def _merge(self, disk: str, top: int, into: int) -> None:
        assert self.on[disk][top] == into
        assert self._above(disk, into) == [top], "others that stand on the layer would see what is merged into it"
        self.held[disk][into] |= self.held[disk].pop(top)
        del self.on[disk][top]
        self.on[disk] = {number: into if on == top else on for number, on in self.on[disk].items()}
        if self.writes_to[disk] == top:
            self.writes_to[disk] = into

    def _above(self, disk: str, layer: int) -> list[int]:
        return [number for number, on in self.on[disk].items() if on == layer]


def failing(disks: Disks, kind: type[HostCommand], code: str = "libvirt-refused") -> Callable[..., Done | Failed]:
    """A host on which one kind of order does not work."""

    def answer(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if isinstance(command, kind) and not undo:
            return Failed(code=code, message="no")
        return disks.answer(index, undo, command)

    return answer
