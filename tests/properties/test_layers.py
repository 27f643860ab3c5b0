"""Layers and snapshots in any order of events: nothing that is kept changes, and the log has what is on disk."""

import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.disks import Contents, Disks
from tests.core.drive import Answering, advance
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.layering import current_parent, depth, descendants, parent_of, reductions, tree_of
from vmorch.core.aggregates.vm import Operation, StepTimedOut, Vm, VmCommand
from vmorch.core.codec import unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import DefineDomain, Done, Failed, RestoreGuest, StartDomain
from vmorch.core.ids import MiB, OperationId, SessionId, stream
from vmorch.core.layers import Drop, Merge, Tree, above, chain, reduced, spare, stands_for
from vmorch.core.messages import HostCommand
from vmorch.core.operation import Send, next_action
from vmorch.core.operations.create import DiskRequest
from vmorch.core.operations.delete_snapshot import DeleteSnapshot
from vmorch.core.operations.pause import PauseVm
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.resume import ResumeVm
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.start import StartVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.planning.admission import admit_on_vm
from vmorch.engine.reports import changes_of, order_id
from vmorch.wire.envelopes import Answered, Report

quiet = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any tree, with gaps in its numbers."""
    numbers = draw(st.lists(st.integers(1, 40), unique=True, max_size=12).map(sorted))
    tree: dict[int, int | None] = {0: None}
    for number in numbers:
        tree[number] = draw(st.sampled_from(sorted(tree)))
    return tree


@given(trees(), st.data())
def test_reducing_changes_nothing_of_what_a_kept_layer_shows(tree: Tree, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(sorted(tree)), min_size=1))
    blocks = st.dictionaries(st.integers(0, 5), st.integers(), max_size=6)
    held = {layer: data.draw(blocks) for layer in tree}

    def shown(tree: Tree, layer: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for each in reversed(chain(tree, layer)):
            found |= held[each]
        return found

    before = {layer: shown(tree, layer) for layer in kept}
    now = {layer: layer for layer in kept}
    for reduction in spare(tree, kept):
        match reduction:
            case Drop(layer=layer):
                assert not above(tree, layer)
                assert layer not in now.values()
                del held[layer]
            case Merge(top=top, into=into):
                assert above(tree, into) == [top]
                assert into not in now.values()
                held[into] |= held.pop(top)
        tree = reduced(tree, reduction)
        now = {layer: stands_for(reduction, standing) for layer, standing in now.items()}
        assert set(tree) == set(held)
    assert {layer: shown(tree, now[layer]) for layer in kept} == before
    for layer in set(tree) - set(now.values()):
        assert len(above(tree, layer)) > 1
    assert list(spare(tree, set(now.values()))) == []


@dataclass
class Told:
    """What a snapshot must show for as long as there is one."""

    disks: Contents
    ram: int | None


@dataclass
class Life:
    """A VM with its files, its operators and its bad luck."""

    chance: random.Random
    disks: Disks = field(default_factory=Disks)
    history: History = field(default_factory=History)
    told: dict[int, Told] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    clean: bool = True
    trouble: float = 0.0

    def __post_init__(self) -> None:
        self.host = self.history.host("h1")
        self.history.image()
        disk = DiskRequest(size=1)  # type: ignore[arg-type]
        self.id = self.history.create(asked("web", max_memory=MiB(4096), extra_disks=(disk,)))
        self.through()

    @property
    def vm(self) -> Vm:
        return self.history.fleet.vms[self.id]

    def through(self) -> Operation:
        """The operation under way comes to its end, in one of the ways there are."""
        id = self.vm.active
        assert id is not None
        fails = self.chance.randrange(8) if self.chance.random() < self.trouble else -1
        silent = self.chance.randrange(8) if self.chance.random() < self.trouble else -1
        while self.vm.active == id:
            operation = self.vm.operations[id]
            action = next_action(operation.steps, operation.progress)
            hangs = isinstance(action, Send) and not action.undo and action.index == silent
            if isinstance(action, Send) and hangs and self._hang(operation, action):
                continue
            advance(self.history, self.id, self._answer(fails))
        return self.vm.operations[id]

    def _answer(self, fails: int) -> Answering:
        def answer(index: int, undo: bool, command: HostCommand) -> Done | Failed:
            if index == fails and not undo:
                return Failed(code="libvirt-refused", message="bad luck")
            return self.disks.answer(index, undo, command)

        return answer

    def _hang(self, operation: Operation, action: Send) -> bool:
        """A step is waited for in vain. If anything follows from it, its answer comes later, and twice."""
        step = operation.steps[action.index]
        if not step.then and step.command.kind in (DefineDomain.kind, StartDomain.kind, RestoreGuest.kind):
            # what is configured then is not what the log says: such a VM has drifted
            return False
        timed_out = StepTimedOut(operation=operation.id, index=action.index, message="silent")
        self.history.record(stream("vm", self.id), timed_out)
        advance(self.history, self.id)
        assert self.vm.operations[operation.id].outcome == "stuck"
        if step.then:
            said = self.disks.answer(action.index, False, unpack_host_command(step.command))
            if isinstance(said, Done):
                item = Answered(
                    id=order_id(operation.id, action.index, undo=False, attempt=1), answer=said
                )
                report = Report(host=self.host, session=SessionId("session-h1"), through=1, items=(item, item))
                fleet = self.history.fleet
                self.history.take(changes_of(fleet, fleet.hosts[self.host], report))
                assert changes_of(fleet, fleet.hosts[self.host], report) == []
        return True

    def ask(self, command: VmCommand) -> Operation | None:
        """The ended operation; None if it was refused or had no steps."""
        fleet = self.history.fleet
        operation = OperationId(f"op-{fleet.position}")
        try:
            admission = admit_on_vm(fleet, self.vm, command, operation=operation, who=WHO)
        except Rejected as refusal:
            if refusal.code not in ("wrong-power-state", "config-differs", "chain-too-deep", "already-so"):
                raise
            return None
        self.history.take(admission.changes)
        return self.through() if admission.starts_operation else None

    def go_on(self) -> None:
        """Something happens."""
        if self.vm.power == "running":
            for _ in range(self.chance.randrange(4)):
                disk = self.chance.choice(["vda", "vdb"])
                self.disks.write(disk, self.chance.randrange(4), self.chance.randrange(10**6))
        names = list(self.vm.snapshots)
        chance = self.chance.random
        on = self.vm.power in ("running", "paused")
        resize = ResizeVm(memory=MiB(self.chance.choice([512, 1024])))
        deeds: list[VmCommand] = [StopVm(), StartVm(), PauseVm(), ResumeVm(), resize]
        deeds += 4 * [SnapshotVm(memory=on and chance() < 0.5)]
        for _ in range(4 if names else 0):
            name = self.chance.choice(names)
            deeds += [
                RollbackVm(to=name, safety_snapshot=chance() < 0.5, config_too=chance() < 0.7),
                DeleteSnapshot(snapshot=name, with_children=chance() < 0.3),
            ]
        before, seen, ram = self.vm, self.disks.seen(), self.disks.ram
        command = self.chance.choice(deeds)
        wanted = self.vm.snapshots[command.to] if isinstance(command, RollbackVm) else None
        ended = self.ask(command)
        self._remember(before, seen, ram)
        if ended is None:
            return
        if wanted is not None and self.vm.number > before.number:
            told = self.told[wanted.number]
            assert self.disks.seen() == told.disks
            if told.ram is not None:
                assert self.disks.ram == told.ram
        else:
            assert self.disks.seen() == seen
        if ended.outcome == "undone":
            assert (self.vm.spec, self.vm.layers, self.vm.snapshots, self.vm.number, self.vm.power) == (
                before.spec, before.layers, before.snapshots, before.number, before.power,
            )  # fmt: skip
            cut = isinstance(command, RollbackVm) and not command.safety_snapshot
            assert before.power != "running" or cut or self.disks.ram == ram
        if isinstance(command, DeleteSnapshot) or (isinstance(command, RollbackVm) and not command.safety_snapshot):
            self.clean = ended.outcome == "succeeded" or (self.clean and ended.outcome == "undone")

    def _remember(self, before: Vm, seen: Contents, ram: int) -> None:
        """What new snapshots hold is what the guest saw when they were asked for."""
        for each in self.vm.snapshots.values():
            if each.number in self.told:
                continue
            assert each.number not in self.numbers, "a number was used again"
            self.numbers.add(each.number)
            self.told[each.number] = Told(seen, ram if each.memory is not None else None)

    def check(self) -> None:
        """What holds whenever no operation is under way."""
        vm = self.vm
        assert vm.spec is not None
        for disk in vm.spec.disks:
            tree = tree_of(vm, disk.name)
            roots = [number for number, on in tree.items() if on is None]
            assert len(roots) == 1
            assert all(chain(tree, number)[-1] == roots[0] for number in tree)
            assert above(tree, disk.layer) == []
            left = {number: on for number, on in self.disks.on[disk.name].items() if number <= vm.number}
            assert left == tree
            assert self.disks.writes_to[disk.name] == disk.layer
            assert all(snapshot.layers[disk.name] in tree for snapshot in vm.snapshots.values())
            assert disk.layer not in {snapshot.layers[disk.name] for snapshot in vm.snapshots.values()}
        for snapshot in vm.snapshots.values():
            told = self.told[snapshot.number]
            assert self.disks.through(dict(snapshot.layers)) == told.disks
            if snapshot.memory is not None:
                assert self.disks.memories[snapshot.memory.number] == told.ram
        assert depth(vm) == max(len(chain(tree_of(vm, disk.name), disk.layer)) for disk in vm.spec.disks)
        if self.clean:
            assert list(reductions(vm)) == []
        self._check_family(vm)

    def _check_family(self, vm: Vm) -> None:
        parents = {name: parent_of(vm, each.layers["vda"]) for name, each in vm.snapshots.items()}
        for name, each in vm.snapshots.items():
            parent = parents[name]
            assert parent is None or vm.snapshots[parent].number < each.number
            found = set(descendants(vm, name))
            assert found == {
                other for other, above in parents.items() if above == name or (above is not None and above in found)
            }
        assert current_parent(vm) is None or current_parent(vm) in vm.snapshots


@quiet
@given(st.integers(0, 10**9))
def test_whatever_is_asked_every_snapshot_shows_what_was_there_when_it_was_taken(seed: int) -> None:
    life = Life(random.Random(seed))
    for _ in range(40):
        life.go_on()
        life.check()


@quiet
@given(st.integers(0, 10**9))
def test_whatever_fails_or_hangs_the_log_has_the_layers_that_are_on_disk(seed: int) -> None:
    life = Life(random.Random(seed))
    life.trouble = 0.3
    for _ in range(40):
        life.go_on()
        life.check()
