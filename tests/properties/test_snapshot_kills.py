"""Agents that die in the steps of snapshots: before the effect or after it, the end is that of an undisturbed life."""

import random
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.core.drive import Answering
from tests.properties.test_snapshot_content import Life, quiet
from vmorch.core.aggregates.vm import Vm
from vmorch.core.hostcommands import Answer
from vmorch.core.hypervisor import expect, resolve
from vmorch.core.messages import HostCommand


@dataclass
class Killed(Life):
    """The same life with an agent that dies in about every other step, once in each."""

    fate: random.Random = field(default_factory=random.Random)

    def answer(self, failing: int) -> Answering:
        carried_out, died = super().answer(failing), set[tuple[int, bool]]()

        def answer(index: int, undo: bool, command: HostCommand) -> Answer:
            refused = index == failing and not undo
            if refused or (index, undo) in died or self.fate.random() < 0.5:
                return carried_out(index, undo, command)
            died.add((index, undo))
            if self.fate.random() < 0.5:
                self.host, _ = expect(self.host, command)
            # the next agent only looks; what it finds undone is sent again
            return resolve(self.host, command)

        return answer


def shape(vm: Vm) -> tuple[object, ...]:
    """What a VM is, without when and in how many events it came to be so."""
    snapshots = {name: replace(each, taken_at=None) for name, each in vm.snapshots.items()}
    return vm.power, vm.spec, vm.layers, snapshots, vm.number, [each.outcome for each in vm.operations.values()]


@quiet
@given(st.integers(0, 10**9))
def test_whenever_an_agent_dies_in_a_step_the_end_is_the_same(seed: int) -> None:
    sound, killed = Life(random.Random(seed), 0.2), Killed(random.Random(seed), 0.2, fate=random.Random(seed + 1))
    for _ in range(20):
        for each in (sound, killed):
            each.go_on()
            each.check()
        assert killed.host == sound.host
        assert shape(killed.vm) == shape(sound.vm)
