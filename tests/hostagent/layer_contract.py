"""What every hypervisor of the agent must do with layers of disks and kept memory, simulated or real.

A test module takes part by subclassing `LayerContract` and giving these fixtures: `hypervisor`; `image_pin` (an image
that FetchImage can fetch or has); `fill` and `content` (write to a layer and read through it, while nothing uses it);
`files` (the names of everything that the host keeps of a VM); `foreign_layer` (puts a layer of an unknown number on a
known one) and `lost_layer` (takes a layer away), each of which returns what undoes it; and `frozen_never` (makes a VM's
guest unable to freeze its file systems; where guests here have no operating system it need not do anything).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol
from uuid import uuid4

import pytest
from contract import Ordering, fetch, power_of, scope
from msgspec.structs import replace

from hostagent.hypervisor import Hypervisor
from vmorch.core.hostcommands import (
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    Done,
    DropLayers,
    Failed,
    MakeLayers,
    Memory,
    MergeLayers,
    RestoreGuest,
    ResumeDomain,
    SaveGuest,
    StartDomain,
    StopDomain,
    SuspendDomain,
    TakeSnapshot,
    UndefineDomain,
)
from vmorch.core.ids import GiB, MiB, VmId
from vmorch.core.layers import Drop, Merge, Tree, grown, reduced, stack, stands_for
from vmorch.core.messages import HostCommand
from vmorch.core.spec import DiskSpec, ImagePin, VmSpec

VDA, VDB = (DiskSpec(name=name, size=GiB(1)) for name in ("vda", "vdb"))
HIGHEST = 9
"""No test has layers or memories of higher numbers."""
FIRST, SECOND = Memory(number=1, storage="local"), Memory(number=2, storage="local")

Content = Mapping[int, int]
"""What the first few clusters of 64 KiB hold: cluster -> byte, zeros left out."""


class Fill(Protocol):
    """Writes a byte to a whole cluster of a layer."""

    def __call__(self, vm: VmId, disk: str, layer: int, cluster: int, byte: int) -> None: ...


class Look(Protocol):
    """What is read through a layer."""

    def __call__(self, vm: VmId, disk: str, layer: int) -> Content: ...


Files = Callable[[VmId], Collection[str]]
LayerOrder = TakeSnapshot | MakeLayers | DropLayers | MergeLayers
Damage = Callable[[VmId, str, int], Callable[[], None]]
"""Does something to a layer of a disk; what it returns undoes it."""


class Record:
    """What the control plane has recorded of a VM, and what it would order."""

    def __init__(self, vm: VmId, disks: tuple[DiskSpec, ...] = (VDA,)) -> None:
        self.vm = vm
        self.spec = VmSpec(vcpus=1, max_vcpus=2, memory=MiB(64), max_memory=MiB(64), disks=disks)
        self.trees: dict[str, Tree] = {disk.name: {0: None} for disk in disks}
        self.number = 0

    @property
    def told(self) -> dict[str, Any]:
        """What is told with every order about layers."""
        stacks = tuple(stack(disk, self.trees[disk.name]) for disk in self.spec.disks)
        return {"vm": self.vm, "stacks": stacks, "next": self.number + 1}

    def on(self, layers: Mapping[str, int]) -> VmSpec:
        """The spec with its guest writing to these layers."""
        disks = tuple(replace(disk, layer=layers.get(disk.name, disk.layer)) for disk in self.spec.disks)
        return replace(self.spec, disks=disks)

    def creation(self) -> tuple[HostCommand, ...]:
        """What makes the VM, switched off."""
        disks = [CreateDisk(vm=self.vm, disk=disk) for disk in self.spec.disks]
        return (*disks, DefineDomain(vm=self.vm, spec=self.spec))

    def take(self, **more: Any) -> TakeSnapshot:
        return TakeSnapshot(spec=self.on(dict.fromkeys(self.trees, self.number + 1)), **self.told, **more)

    def make(self, **on: int) -> MakeLayers:
        return MakeLayers(on=on, **self.told)

    def look(self) -> DropLayers:
        """With nothing to drop, a look whether everything is as recorded."""
        return DropLayers(**self.told)

    def drop(self, disk: str, *layers: int) -> DropLayers:
        return DropLayers(layers={disk: layers}, **self.told)

    def merge(self, disk: str, top: int, into: int) -> MergeLayers:
        written = next(each.layer for each in self.spec.disks if each.name == disk)
        spec = self.on({disk: stands_for(Merge(top, into), written)})
        return MergeLayers(spec=spec, disk=disk, top=top, into=into, **self.told)

    def carried_out(self, order: LayerOrder) -> None:
        """The order is done, and that is recorded."""
        match order:
            case TakeSnapshot(spec=spec, next=number):
                for disk in self.spec.disks:
                    self.trees[disk.name] = grown(self.trees[disk.name], number, disk.layer)
                self.spec, self.number = spec, number
            case MakeLayers(on=on, next=number):
                for name, below in on.items():
                    self.trees[name] = grown(self.trees[name], number, below)
                self.spec, self.number = self.on(dict.fromkeys(on, number)), number
            case DropLayers(layers=layers):
                for name, gone in layers.items():
                    for layer in gone:
                        self.trees[name] = reduced(self.trees[name], Drop(layer))
            case MergeLayers(disk=name, top=top, into=into, spec=spec):
                self.trees[name] = reduced(self.trees[name], Merge(top, into))
                self.spec = spec


class LayerContract(Ordering):
    """Tests for any hypervisor; see above for the fixtures."""

    @pytest.fixture
    def vm(self, hypervisor: Hypervisor) -> Iterator[VmId]:
        """A VM's id; nothing of it is left afterwards."""
        vm = VmId(str(uuid4()))
        yield vm
        for command in (StopDomain(vm=vm, grace=0, force=True), UndefineDomain(vm=vm), *deletions(vm)):
            hypervisor.execute(command, scope())

    @pytest.fixture
    def web(self, hypervisor: Hypervisor, vm: VmId) -> Record:
        """A VM that is off."""
        record = Record(vm)
        self.do(hypervisor, *record.creation())
        return record

    @pytest.fixture
    def running(self, hypervisor: Hypervisor, web: Record) -> Record:
        """A VM that runs."""
        self.do(hypervisor, StartDomain(vm=web.vm))
        return web

    def carry_out(self, hypervisor: Hypervisor, record: Record, order: LayerOrder) -> Done:
        """An order is done, in every way in which it can come, and recorded."""
        answer = self.reaches(hypervisor, order)
        record.carried_out(order)
        return answer

    def go_back(self, hypervisor: Hypervisor, record: Record, **on: int) -> None:
        """A VM that is off goes on above these layers."""
        self.carry_out(hypervisor, record, record.make(**on))
        self.do(hypervisor, DefineDomain(vm=record.vm, spec=record.spec))

    def stop(self, hypervisor: Hypervisor, record: Record) -> None:
        self.do(hypervisor, StopDomain(vm=record.vm, grace=0, force=True))

    def drifted(self, hypervisor: Hypervisor, order: HostCommand) -> Failed:
        """An order is refused because of differences, each of which is named."""
        answer = self.refused(hypervisor, order, "chain-drift")
        assert answer.blockers
        assert answer.message == "; ".join(answer.blockers)
        return answer

    def test_a_snapshot_keeps_what_was_written_and_the_guest_goes_on(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look
    ) -> None:
        fill(web.vm, "vda", 0, 1, 11)
        self.do(hypervisor, StartDomain(vm=web.vm))
        assert power_of(self.carry_out(hypervisor, web, web.take())) == "running"
        self.stop(hypervisor, web)
        fill(web.vm, "vda", 1, 1, 12)
        fill(web.vm, "vda", 1, 2, 13)
        assert content(web.vm, "vda", 0) == {1: 11}
        assert content(web.vm, "vda", 1) == {1: 12, 2: 13}
        assert power_of(self.do(hypervisor, StartDomain(vm=web.vm))) == "running"

    def test_a_vm_that_is_off_is_kept_too_and_starts_above_it(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look
    ) -> None:
        fill(web.vm, "vda", 0, 0, 1)
        assert power_of(self.carry_out(hypervisor, web, web.take())) == "off"
        fill(web.vm, "vda", 1, 0, 2)
        assert (content(web.vm, "vda", 0), content(web.vm, "vda", 1)) == ({0: 1}, {0: 2})
        self.do(hypervisor, StartDomain(vm=web.vm))
        self.carry_out(hypervisor, web, web.take())

    @pytest.mark.parametrize("memory", [None, FIRST])
    def test_a_halted_guest_stays_halted(
        self, hypervisor: Hypervisor, running: Record, memory: Memory | None
    ) -> None:
        self.do(hypervisor, SuspendDomain(vm=running.vm))
        seen = self.carry_out(hypervisor, running, running.take(memory=memory)).observed
        assert seen is not None
        assert (seen.power, seen.reason) == ("paused", "user")
        assert power_of(self.do(hypervisor, ResumeDomain(vm=running.vm))) == "running"

    def test_all_disks_are_kept_in_one_stroke(
        self, hypervisor: Hypervisor, vm: VmId, fill: Fill, content: Look
    ) -> None:
        web = Record(vm, (VDA, VDB))
        self.do(hypervisor, *web.creation())
        fill(vm, "vda", 0, 0, 1)
        fill(vm, "vdb", 0, 0, 2)
        self.do(hypervisor, StartDomain(vm=vm))
        self.carry_out(hypervisor, web, web.take())
        self.stop(hypervisor, web)
        fill(vm, "vda", 1, 0, 3)
        fill(vm, "vdb", 1, 1, 4)
        self.go_back(hypervisor, web, vda=0, vdb=0)
        assert (content(vm, "vda", 2), content(vm, "vdb", 2)) == ({0: 1}, {0: 2})
        assert (content(vm, "vda", 1), content(vm, "vdb", 1)) == ({0: 3}, {0: 2, 1: 4})
        self.do(hypervisor, StartDomain(vm=vm))
        self.carry_out(hypervisor, web, web.drop("vdb", 1))
        self.stop(hypervisor, web)
        assert content(vm, "vda", 1) == {0: 3}

    def test_a_disk_on_an_image_is_split_and_made_whole_again(
        self, hypervisor: Hypervisor, vm: VmId, image_pin: ImagePin, fill: Fill, content: Look
    ) -> None:
        web = Record(vm, (replace(VDA, image=image_pin, size=GiB(2)),))
        self.do(hypervisor, fetch(image_pin), *web.creation())
        fill(vm, "vda", 0, 0, 1)
        self.carry_out(hypervisor, web, web.take())
        fill(vm, "vda", 1, 1, 2)
        self.do(hypervisor, StartDomain(vm=vm))
        self.carry_out(hypervisor, web, web.take())
        self.carry_out(hypervisor, web, web.merge("vda", 1, 0))
        self.carry_out(hypervisor, web, web.merge("vda", 2, 0))
        self.stop(hypervisor, web)
        assert web.spec.disks[0].layer == 0
        found = content(vm, "vda", 0)
        assert (found[0], found[1]) == (1, 2)

    def test_the_way_back_and_the_way_forward_show_exactly_what_was_there(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look
    ) -> None:
        fill(web.vm, "vda", 0, 0, 1)
        self.carry_out(hypervisor, web, web.take())
        fill(web.vm, "vda", 1, 0, 2)
        self.do(hypervisor, StartDomain(vm=web.vm))
        # the new layer is made while the guest still runs above the old one
        back = web.make(vda=0)
        self.reaches(hypervisor, back)
        self.stop(hypervisor, web)
        web.carried_out(back)
        assert power_of(self.reaches(hypervisor, DefineDomain(vm=web.vm, spec=web.spec))) == "off"
        assert content(web.vm, "vda", 2) == {0: 1}
        self.do(hypervisor, StartDomain(vm=web.vm))
        self.stop(hypervisor, web)
        fill(web.vm, "vda", 2, 0, 3)
        self.go_back(hypervisor, web, vda=1)
        self.do(hypervisor, StartDomain(vm=web.vm))
        self.stop(hypervisor, web)
        assert [content(web.vm, "vda", layer) for layer in (0, 1, 2, 3)] == [{0: 1}, {0: 2}, {0: 3}, {0: 2}]

    @pytest.mark.parametrize("on", [True, False])
    def test_what_was_merged_is_read_through_the_lower_layer(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look, on: bool
    ) -> None:
        """Of the guest's own chain first one that it does not write to goes, then the one that it does."""
        for layer in range(3):
            fill(web.vm, "vda", layer, 0, 10 + layer)
            fill(web.vm, "vda", layer, layer + 1, 20 + layer)
            self.carry_out(hypervisor, web, web.take())
        fill(web.vm, "vda", 3, 4, 30)
        if on:
            self.do(hypervisor, StartDomain(vm=web.vm))
        self.carry_out(hypervisor, web, web.merge("vda", 2, 1))
        self.carry_out(hypervisor, web, web.merge("vda", 3, 1))
        assert hypervisor.observe(web.vm).power == ("running" if on else "off")
        assert (web.trees["vda"], web.spec.disks[0].layer) == ({0: None, 1: 0}, 1)
        self.stop(hypervisor, web)
        assert content(web.vm, "vda", 0) == {0: 10, 1: 20}
        assert content(web.vm, "vda", 1) == {0: 12, 1: 20, 2: 21, 3: 22, 4: 30}
        self.do(hypervisor, StartDomain(vm=web.vm))

    @pytest.mark.parametrize("on", [True, False])
    def test_everything_that_stood_on_a_merged_layer_stands_on_the_lower_one(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look, on: bool
    ) -> None:
        fill(web.vm, "vda", 0, 0, 1)
        self.carry_out(hypervisor, web, web.take())
        fill(web.vm, "vda", 1, 0, 2)
        self.carry_out(hypervisor, web, web.take())
        fill(web.vm, "vda", 2, 1, 3)
        self.go_back(hypervisor, web, vda=1)
        fill(web.vm, "vda", 3, 1, 4)
        if on:
            self.do(hypervisor, StartDomain(vm=web.vm))
        self.carry_out(hypervisor, web, web.merge("vda", 1, 0))
        self.stop(hypervisor, web)
        assert web.trees["vda"] == {0: None, 2: 0, 3: 0}
        assert (content(web.vm, "vda", 2), content(web.vm, "vda", 3)) == ({0: 2, 1: 3}, {0: 2, 1: 4})
        # the domain and its layers are as recorded, or nothing more could be done with them
        self.carry_out(hypervisor, web, web.drop("vda", 2))
        self.do(hypervisor, StartDomain(vm=web.vm))

    def test_a_branch_that_no_guest_uses_is_merged_under_a_running_one(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look
    ) -> None:
        self.carry_out(hypervisor, web, web.take())
        fill(web.vm, "vda", 1, 0, 1)
        self.carry_out(hypervisor, web, web.take())
        fill(web.vm, "vda", 2, 1, 2)
        self.go_back(hypervisor, web, vda=0)
        self.do(hypervisor, StartDomain(vm=web.vm))
        assert power_of(self.carry_out(hypervisor, web, web.merge("vda", 2, 1))) == "running"
        self.stop(hypervisor, web)
        assert content(web.vm, "vda", 1) == {0: 1, 1: 2}
        self.carry_out(hypervisor, web, web.drop("vda", 1))

    def test_a_layer_is_dropped_unless_somebody_needs_it(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look
    ) -> None:
        fill(web.vm, "vda", 0, 0, 1)
        self.carry_out(hypervisor, web, web.take())
        self.go_back(hypervisor, web, vda=0)
        for on in (False, True):
            self.refused(hypervisor, web.drop("vda", 2), "busy")
            self.refused(hypervisor, web.drop("vda", 0), "busy")
            if not on:
                self.do(hypervisor, StartDomain(vm=web.vm))
        self.carry_out(hypervisor, web, web.drop("vda", 1))
        self.stop(hypervisor, web)
        assert content(web.vm, "vda", 2) == {0: 1}
        self.do(hypervisor, StartDomain(vm=web.vm))

    def test_layers_are_made_and_dropped_where_there_is_no_domain(self, hypervisor: Hypervisor, web: Record) -> None:
        self.do(hypervisor, UndefineDomain(vm=web.vm))
        self.refused(hypervisor, web.take(), "no-domain")
        self.refused(hypervisor, web.make(vda=5), "chain-drift")
        self.carry_out(hypervisor, web, web.make(vda=0))
        self.carry_out(hypervisor, web, web.make(vda=0))
        self.refused(hypervisor, web.merge("vda", 1, 0), "no-domain")
        self.carry_out(hypervisor, web, web.drop("vda", 1))
        self.carry_out(hypervisor, web, web.drop("vda", 2))

    def test_a_layer_that_nobody_recorded_keeps_everything_from_being_touched(
        self, hypervisor: Hypervisor, running: Record, foreign_layer: Damage, files: Files
    ) -> None:
        self.carry_out(hypervisor, running, running.take())
        self.carry_out(hypervisor, running, running.take())
        move_away = foreign_layer(running.vm, "vda", 0)
        before = files(running.vm)
        for order in (running.take(), running.make(vda=0), running.merge("vda", 1, 0), running.look()):
            self.drifted(hypervisor, order)
        assert files(running.vm) == before
        move_away()
        self.do(hypervisor, running.look())
        self.carry_out(hypervisor, running, running.take())
        self.carry_out(hypervisor, running, running.merge("vda", 1, 0))

    def test_a_layer_that_is_gone_keeps_everything_from_being_touched(
        self, hypervisor: Hypervisor, web: Record, lost_layer: Damage, fill: Fill, content: Look
    ) -> None:
        fill(web.vm, "vda", 0, 0, 1)
        self.carry_out(hypervisor, web, web.take())
        self.carry_out(hypervisor, web, web.take())
        bring_back = lost_layer(web.vm, "vda", 1)
        for order in (web.take(), web.make(vda=0), web.merge("vda", 2, 1), web.look()):
            assert "layer 1 of vda is gone" in self.drifted(hypervisor, order).message
        assert power_of(self.refused(hypervisor, StartDomain(vm=web.vm), "libvirt-refused")) == "off"
        bring_back()
        self.carry_out(hypervisor, web, web.merge("vda", 2, 1))
        self.carry_out(hypervisor, web, web.merge("vda", 1, 0))
        assert content(web.vm, "vda", 0) == {0: 1}

    def test_a_disk_that_drifted_keeps_the_others_from_being_touched(
        self, hypervisor: Hypervisor, vm: VmId, foreign_layer: Damage, lost_layer: Damage, files: Files
    ) -> None:
        web = Record(vm, (VDA, VDB))
        self.do(hypervisor, *web.creation())
        self.carry_out(hypervisor, web, web.take())
        undo = foreign_layer(vm, "vdb", 0), lost_layer(vm, "vda", 0)
        before = files(vm)
        assert len(self.drifted(hypervisor, web.take()).blockers) == 2
        assert files(vm) == before
        for each in undo:
            each()
        self.carry_out(hypervisor, web, web.take())

    def test_no_domain_is_put_on_a_layer_that_others_stand_on(self, hypervisor: Hypervisor, web: Record) -> None:
        self.carry_out(hypervisor, web, web.take())
        below = DefineDomain(vm=web.vm, spec=web.on({"vda": 0}))
        self.refused(hypervisor, below, "chain-drift")
        self.do(hypervisor, StartDomain(vm=web.vm))
        self.refused(hypervisor, below, "chain-drift")
        self.do(hypervisor, web.look())

    def test_no_guest_starts_on_a_layer_that_others_stand_on(
        self, hypervisor: Hypervisor, web: Record, foreign_layer: Damage
    ) -> None:
        move_away = foreign_layer(web.vm, "vda", 0)
        assert power_of(self.refused(hypervisor, StartDomain(vm=web.vm), "chain-drift")) == "off"
        move_away()
        self.do(hypervisor, StartDomain(vm=web.vm))

    def test_a_domain_that_is_configured_elsewhere_is_not_touched(
        self, hypervisor: Hypervisor, web: Record, files: Files
    ) -> None:
        self.carry_out(hypervisor, web, web.take())
        self.do(hypervisor, web.make(vda=0), DefineDomain(vm=web.vm, spec=web.on({"vda": 2})))
        web.number = 2
        before = files(web.vm)
        for order in (web.take(), web.make(vda=0), web.merge("vda", 1, 0), web.look()):
            assert len(self.drifted(hypervisor, order).blockers) == 2
        assert files(web.vm) == before
        self.do(hypervisor, DefineDomain(vm=web.vm, spec=web.spec))
        self.carry_out(hypervisor, web, web.drop("vda", 2))
        self.carry_out(hypervisor, web, web.take())

    def test_a_guest_that_writes_elsewhere_is_not_touched(
        self, hypervisor: Hypervisor, web: Record, files: Files
    ) -> None:
        self.carry_out(hypervisor, web, web.take())
        self.do(
            hypervisor,
            web.make(vda=0),
            DefineDomain(vm=web.vm, spec=web.on({"vda": 2})),
            StartDomain(vm=web.vm),
        )
        before = files(web.vm)
        for order in (web.take(), web.merge("vda", 1, 0), web.drop("vda", 1), web.look()):
            self.drifted(hypervisor, order)
        self.refused(hypervisor, DefineDomain(vm=web.vm, spec=web.spec), "chain-drift")
        assert files(web.vm) == before
        assert hypervisor.observe(web.vm).power == "running"
        self.stop(hypervisor, web)
        self.carry_out(hypervisor, web, web.take())

    def test_what_an_attempt_left_that_came_to_nothing_does_no_harm(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look
    ) -> None:
        fill(web.vm, "vda", 0, 0, 1)
        self.do(hypervisor, web.make(vda=0))
        self.carry_out(hypervisor, web, web.take())
        fill(web.vm, "vda", 1, 0, 2)
        self.do(hypervisor, web.make(vda=1), web.look())
        self.go_back(hypervisor, web, vda=0)
        assert content(web.vm, "vda", 2) == {0: 1}
        # one that came as far as the configuration
        self.do(hypervisor, web.make(vda=1), DefineDomain(vm=web.vm, spec=web.on({"vda": 3})), web.look())
        self.refused(hypervisor, web.drop("vda", 3), "busy")
        self.go_back(hypervisor, web, vda=0)
        assert content(web.vm, "vda", 3) == {0: 1}
        self.do(hypervisor, StartDomain(vm=web.vm))

    def test_what_was_written_to_such_a_layer_is_not_thrown_away(
        self, hypervisor: Hypervisor, web: Record, fill: Fill, content: Look
    ) -> None:
        self.do(hypervisor, web.make(vda=0))
        fill(web.vm, "vda", 1, 0, 1)
        for order in (web.take(), web.make(vda=0), web.look()):
            self.drifted(hypervisor, order)
        assert content(web.vm, "vda", 1) == {0: 1}
        # who wants to have it dropped has named it
        self.reaches(hypervisor, web.drop("vda", 1))
        self.carry_out(hypervisor, web, web.take())

    def test_a_guest_that_cannot_freeze_is_not_kept(
        self, hypervisor: Hypervisor, running: Record, frozen_never: Callable[[VmId], None], files: Files
    ) -> None:
        frozen_never(running.vm)
        before = files(running.vm)
        assert power_of(self.refused(hypervisor, running.take(freeze=1.0), "freeze-failed")) == "running"
        assert files(running.vm) == before
        self.carry_out(hypervisor, running, running.take())

    def test_memory_of_a_guest_that_is_off_cannot_be_kept(
        self, hypervisor: Hypervisor, web: Record, files: Files
    ) -> None:
        before = files(web.vm)
        assert power_of(self.refused(hypervisor, web.take(memory=FIRST), "libvirt-refused")) == "off"
        assert power_of(self.refused(hypervisor, SaveGuest(vm=web.vm, memory=FIRST), "libvirt-refused")) == "off"
        assert files(web.vm) == before

    def test_a_guest_goes_on_from_memory_that_was_kept_with_its_disks(
        self, hypervisor: Hypervisor, running: Record, files: Files
    ) -> None:
        assert power_of(self.carry_out(hypervisor, running, running.take(memory=FIRST))) == "running"
        assert "memory.1" in files(running.vm)
        self.stop(hypervisor, running)
        self.carry_out(hypervisor, running, running.make(vda=0))
        restore = RestoreGuest(vm=running.vm, spec=running.spec, memory=FIRST)
        seen = self.reaches(hypervisor, restore).observed
        assert seen is not None
        assert (seen.power, seen.vcpus, seen.memory) == ("running", 1, 64)
        assert "memory.1" in files(running.vm)
        # guest and configuration are on the layer of the command, or nothing more could be done with them
        self.carry_out(hypervisor, running, running.take(memory=SECOND))
        self.carry_out(hypervisor, running, running.merge("vda", 3, 2))
        assert running.vm not in hypervisor.inventory().configuration

    def test_a_guest_is_saved_and_goes_on(
        self, hypervisor: Hypervisor, running: Record, files: Files
    ) -> None:
        save = SaveGuest(vm=running.vm, memory=FIRST)
        off = self.reaches(hypervisor, save).observed
        assert off is not None
        assert (off.power, off.reason) == ("off", "saved")
        assert power_of(self.refused(hypervisor, SaveGuest(vm=running.vm, memory=SECOND), "libvirt-refused")) == "off"
        again = RestoreGuest(vm=running.vm, spec=running.spec, memory=FIRST, spend=True)
        assert power_of(self.reaches(hypervisor, again)) == "running"
        assert "memory.1" not in files(running.vm)
        # a guest that was never saved needs none of it
        assert power_of(self.reaches(hypervisor, replace(again, memory=SECOND), already=True)) == "running"
        self.reaches(hypervisor, save)
        self.do(hypervisor, replace(again, spend=False), again)
        assert "memory.1" not in files(running.vm)
        self.carry_out(hypervisor, running, running.take())

    @pytest.mark.parametrize("was_halted", [True, False])
    def test_a_guest_comes_back_halted_if_it_shall_whatever_it_was(
        self, hypervisor: Hypervisor, running: Record, was_halted: bool
    ) -> None:
        if was_halted:
            self.do(hypervisor, SuspendDomain(vm=running.vm))
        self.do(hypervisor, SaveGuest(vm=running.vm, memory=FIRST))
        restore = RestoreGuest(vm=running.vm, spec=running.spec, memory=FIRST, halted=True, spend=True)
        seen = self.reaches(hypervisor, restore).observed
        assert seen is not None
        assert (seen.power, seen.reason) == ("paused", "user")
        self.carry_out(hypervisor, running, running.take(memory=FIRST))
        assert power_of(self.do(hypervisor, ResumeDomain(vm=running.vm))) == "running"

    def test_without_its_memory_or_its_disks_no_guest_is_restored(
        self, hypervisor: Hypervisor, running: Record, lost_layer: Damage
    ) -> None:
        self.carry_out(hypervisor, running, running.take())
        self.do(hypervisor, SaveGuest(vm=running.vm, memory=FIRST))
        restore = RestoreGuest(vm=running.vm, spec=running.spec, memory=FIRST, spend=True)
        assert power_of(self.refused(hypervisor, replace(restore, memory=SECOND), "memory-damaged")) == "off"
        over_kept = replace(restore, spec=running.on({"vda": 0}))
        assert power_of(self.refused(hypervisor, over_kept, "chain-drift")) == "off"
        bring_back = lost_layer(running.vm, "vda", 0)
        self.refused(hypervisor, restore, "libvirt-refused")
        bring_back()
        assert power_of(self.reaches(hypervisor, restore)) == "running"

    def test_kept_memory_is_dropped_with_layers_and_without(
        self, hypervisor: Hypervisor, running: Record, files: Files
    ) -> None:
        self.carry_out(hypervisor, running, running.take(memory=FIRST))
        self.carry_out(hypervisor, running, running.take(memory=SECOND))
        self.reaches(hypervisor, DropLayers(memory=(FIRST,), **running.told))
        assert {"memory.1", "memory.2"} & set(files(running.vm)) == {"memory.2"}
        self.reaches(hypervisor, DropLayers(vm=running.vm, stacks=(), next=3, memory=(FIRST, SECOND)))
        assert not {"memory.1", "memory.2"} & set(files(running.vm))

    def test_a_domain_that_is_not_here_is_neither_saved_nor_restored(self, hypervisor: Hypervisor, vm: VmId) -> None:
        web = Record(vm)
        self.refused(hypervisor, SaveGuest(vm=vm, memory=FIRST), "no-domain")
        self.refused(hypervisor, RestoreGuest(vm=vm, spec=web.spec, memory=FIRST), "no-domain")

    def test_a_deleted_vm_leaves_nothing_of_its_layers_and_memory(
        self, hypervisor: Hypervisor, vm: VmId, files: Files
    ) -> None:
        web = Record(vm, (VDA, VDB))
        self.do(hypervisor, *web.creation(), StartDomain(vm=vm))
        self.carry_out(hypervisor, web, web.take(memory=FIRST))
        self.carry_out(hypervisor, web, web.take())
        self.stop(hypervisor, web)
        self.go_back(hypervisor, web, vda=0, vdb=1)
        self.do(hypervisor, UndefineDomain(vm=vm))
        assert files(vm)
        self.do(hypervisor, DropLayers(vm=vm, stacks=(), next=4, memory=(FIRST,)))
        for disk in web.spec.disks:
            for layer in sorted(web.trees[disk.name], reverse=True):
                self.reaches(hypervisor, DeleteDisk(vm=vm, disk=replace(disk, layer=layer)))
        assert not files(vm)


def deletions(vm: VmId) -> Iterator[HostCommand]:
    """What leaves nothing of any VM that a test here makes."""
    memories = tuple(Memory(number=number, storage="local") for number in range(1, HIGHEST))
    yield DropLayers(vm=vm, stacks=(), next=HIGHEST, memory=memories)
    for disk in (VDA, VDB):
        yield from (DeleteDisk(vm=vm, disk=replace(disk, layer=layer)) for layer in range(HIGHEST, -1, -1))
