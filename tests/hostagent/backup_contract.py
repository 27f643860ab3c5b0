"""What every hypervisor of the agent must do with backups, simulated or real.

A test module takes part by subclassing `BackupContract` and giving the fixtures of `LayerContract` and these:
`target` (one that the host sees, empty at first); `guest_writes` (has a running guest write a byte to a whole cluster);
`damage` (changes a byte of a disk's backup); and `kept` (the names of everything in the target).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol
from uuid import uuid4

import pytest
from contract import Ordering, fetch, scope
from layer_contract import HIGHEST, VDA, VDB, Content, Fill, LayerOrder, Look, Record
from msgspec.structs import replace

from hostagent.hypervisor import Hypervisor
from vmorch.core.backup import Saved, Target
from vmorch.core.hostcommands import (
    AwaitReady,
    DefineDomain,
    DeleteDisk,
    DropBackup,
    Failed,
    RestoreDisk,
    StartDomain,
    StopDomain,
    SuspendDomain,
    TakeBackup,
    UndefineDomain,
    VerifyBackup,
)
from vmorch.core.ids import BackupId, GiB, VmId
from vmorch.core.spec import DiskSpec, ImagePin, ReadySpec


class Write(Protocol):
    """Has a running guest write a byte to a whole cluster of a disk."""

    def __call__(self, vm: VmId, disk: str, cluster: int, byte: int) -> None: ...


Damage = Callable[[BackupId, str], None]
Kept = Callable[[], Collection[str]]
Restore = Callable[..., Mapping[str, Content]]


def new_id() -> BackupId:
    return BackupId(str(uuid4()))


class BackupContract(Ordering):
    """Tests for any hypervisor; see above for the fixtures."""

    @pytest.fixture
    def vm(self, hypervisor: Hypervisor) -> Iterator[VmId]:
        """A VM's id; nothing of it is left afterwards."""
        vm = VmId(str(uuid4()))
        yield vm
        self.cleared(hypervisor, vm)

    @pytest.fixture
    def record(self, hypervisor: Hypervisor, vm: VmId) -> Record:
        """A VM with two disks, which runs."""
        record = Record(vm, (VDA, VDB))
        self.do(hypervisor, *record.creation(), StartDomain(vm=vm))
        return record

    @pytest.fixture
    def restored(self, hypervisor: Hypervisor, target: Target, content: Look) -> Iterator[Restore]:
        """What disks hold that are made from a chain of backups."""
        made: list[VmId] = []

        def restore(*chain: Saved) -> Mapping[str, Content]:
            vm = VmId(str(uuid4()))
            made.append(vm)
            for disk in chain[-1].disks:
                order = self.restoring(vm, target, chain, disk.name)
                assert not self.do(hypervisor, order).already
                assert self.do(hypervisor, order).already
            return {disk.name: content(vm, disk.name, 0) for disk in chain[-1].disks}

        yield restore
        for vm in made:
            self.cleared(hypervisor, vm)

    def cleared(self, hypervisor: Hypervisor, vm: VmId) -> None:
        disks = [replace(disk, layer=layer) for disk in (VDA, VDB) for layer in range(HIGHEST, -1, -1)]
        deletions = [DeleteDisk(vm=vm, disk=disk) for disk in disks]
        for command in (StopDomain(vm=vm, grace=0, force=True), UndefineDomain(vm=vm), *deletions):
            hypervisor.execute(command, scope())

    def restoring(
        self, vm: VmId, target: Target, chain: tuple[Saved, ...], disk: str
    ) -> RestoreDisk:
        size = GiB(chain[-1].disks[0].size >> 30)
        return RestoreDisk(vm=vm, disk=DiskSpec(name=disk, size=size), target=target, chain=chain)

    def order(self, record: Record, target: Target, *chain: Saved, **more: Any) -> TakeBackup:
        return TakeBackup(
            **record.told, backup=new_id(), target=target, name="nightly", vm_name="web", spec=record.spec,
            chain=chain, **more,
        )  # fmt: skip

    def take(
        self, hypervisor: Hypervisor, record: Record, target: Target, *chain: Saved, **more: Any
    ) -> Saved:
        """A backup, asked for twice; nobody who asks again gets another one."""
        order = self.order(record, target, *chain, **more)
        answer = self.do(hypervisor, order)
        assert answer.saved is not None
        assert answer.saved.backup == order.backup
        again = self.do(hypervisor, order)
        assert (again.already, again.saved) == (True, answer.saved)
        return answer.saved

    def carry_out(self, hypervisor: Hypervisor, record: Record, order: LayerOrder) -> None:
        self.do(hypervisor, order)
        record.carried_out(order)

    def stop(self, hypervisor: Hypervisor, record: Record) -> None:
        self.do(hypervisor, StopDomain(vm=record.vm, grace=0, force=True))

    def start(self, hypervisor: Hypervisor, record: Record) -> None:
        self.do(hypervisor, StartDomain(vm=record.vm))

    def test_each_backup_gives_back_what_the_disks_held_then(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore
    ) -> None:
        guest_writes(record.vm, "vda", 1, 11)
        guest_writes(record.vm, "vdb", 2, 12)
        first = self.take(hypervisor, record, target)
        assert (first.kind, first.why) == ("full", "it is the first")
        guest_writes(record.vm, "vda", 1, 21)
        guest_writes(record.vm, "vda", 3, 22)
        second = self.take(hypervisor, record, target, first)
        assert (second.kind, second.why) == ("incremental", "")
        guest_writes(record.vm, "vdb", 2, 0)
        third = self.take(hypervisor, record, target, first, second)
        assert third.kind == "incremental"
        guest_writes(record.vm, "vda", 5, 99)

        assert restored(first) == {"vda": {1: 11}, "vdb": {2: 12}}
        assert restored(first, second) == {"vda": {1: 21, 3: 22}, "vdb": {2: 12}}
        assert restored(first, second, third) == {"vda": {1: 21, 3: 22}, "vdb": {}}
        assert [disk.size for disk in first.disks] == [1 << 30, 1 << 30]
        assert len({disk.content for disk in (*first.disks, *second.disks)}) == 3
        for chain in ((first,), (first, second), (first, second, third)):
            self.do(hypervisor, VerifyBackup(target=target, chain=chain))

    def test_a_disk_on_an_image_is_backed_up_whole(
        self, hypervisor: Hypervisor, vm: VmId, image_pin: ImagePin, target: Target, guest_writes: Write,
        restored: Restore,
    ) -> None:  # fmt: skip
        record = Record(vm, (replace(VDA, image=image_pin, size=GiB(2)),))
        self.do(hypervisor, fetch(image_pin), *record.creation(), StartDomain(vm=vm))
        guest_writes(vm, "vda", 0, 5)
        first = self.take(hypervisor, record, target)
        self.stop(hypervisor, record)
        second = self.take(hypervisor, record, target, first)
        assert restored(first) == restored(second)
        assert restored(first)["vda"][0] == 5

    def test_what_is_written_above_a_snapshot_and_merged_again_is_in_the_next_one(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore
    ) -> None:
        guest_writes(record.vm, "vda", 0, 1)
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 1, 2)
        self.carry_out(hypervisor, record, record.take())
        guest_writes(record.vm, "vda", 2, 3)
        second = self.take(hypervisor, record, target, first)
        guest_writes(record.vm, "vda", 3, 4)
        self.carry_out(hypervisor, record, record.take())
        guest_writes(record.vm, "vda", 0, 5)
        self.carry_out(hypervisor, record, record.merge("vda", 1, 0))
        self.carry_out(hypervisor, record, record.merge("vda", 2, 0))
        guest_writes(record.vm, "vda", 4, 6)
        third = self.take(hypervisor, record, target, first, second)
        assert (first.kind, second.kind) == ("full", "incremental")
        assert restored(first, second)["vda"] == {0: 1, 1: 2, 2: 3}
        chain = (first, second, third) if third.kind == "incremental" else (third,)
        assert restored(*chain)["vda"] == {0: 5, 1: 2, 2: 3, 3: 4, 4: 6}

    def test_layers_that_nobody_noted_writes_in_make_the_next_one_full(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore
    ) -> None:
        guest_writes(record.vm, "vda", 0, 1)
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 1, 2)
        self.stop(hypervisor, record)
        self.carry_out(hypervisor, record, record.take())
        self.start(hypervisor, record)
        guest_writes(record.vm, "vda", 2, 3)
        second = self.take(hypervisor, record, target, first)
        assert (second.kind, second.why) == ("full", "the writes to vda since the last one are not noted")
        assert restored(second)["vda"] == {0: 1, 1: 2, 2: 3}
        guest_writes(record.vm, "vda", 4, 7)
        third = self.take(hypervisor, record, target, second)
        assert third.kind == "incremental"
        assert restored(second, third)["vda"] == restored(second)["vda"] | {4: 7}

    @pytest.mark.parametrize("on", [True, False])
    def test_a_layer_that_nobody_noted_writes_in_is_noted_when_it_is_merged(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore, on: bool
    ) -> None:
        guest_writes(record.vm, "vda", 0, 1)
        first = self.take(hypervisor, record, target)
        self.stop(hypervisor, record)
        self.carry_out(hypervisor, record, record.take())
        self.start(hypervisor, record)
        guest_writes(record.vm, "vda", 1, 2)
        if not on:
            self.stop(hypervisor, record)
        for disk in ("vda", "vdb"):
            self.carry_out(hypervisor, record, record.merge(disk, 1, 0))
        if not on:
            self.start(hypervisor, record)
        guest_writes(record.vm, "vda", 2, 3)
        second = self.take(hypervisor, record, target, first)
        assert second.kind == "incremental"
        assert restored(first, second)["vda"] == {0: 1, 1: 2, 2: 3}

    def test_one_of_a_vm_that_is_off_is_full_and_the_next_can_stand_on_it(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, fill: Fill,
        restored: Restore,
    ) -> None:  # fmt: skip
        guest_writes(record.vm, "vda", 0, 1)
        first = self.take(hypervisor, record, target)
        self.stop(hypervisor, record)
        fill(record.vm, "vda", 0, 1, 2)
        second = self.take(hypervisor, record, target, first)
        assert (second.kind, second.why) == ("full", "the VM is off")
        self.start(hypervisor, record)
        guest_writes(record.vm, "vdb", 2, 3)
        third = self.take(hypervisor, record, target, second)
        assert third.kind == "incremental"
        assert restored(second) == {"vda": {0: 1, 1: 2}, "vdb": {}}
        assert restored(second, third) == {"vda": {0: 1, 1: 2}, "vdb": {2: 3}}

    def test_writes_are_noted_through_a_restart_and_while_the_guest_is_halted(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore
    ) -> None:
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 0, 1)
        self.stop(hypervisor, record)
        self.start(hypervisor, record)
        guest_writes(record.vm, "vda", 1, 2)
        self.do(hypervisor, SuspendDomain(vm=record.vm))
        second = self.take(hypervisor, record, target, first)
        assert second.kind == "incremental"
        assert restored(first, second)["vda"] == {0: 1, 1: 2}

    def test_a_full_one_is_made_for_a_reason_and_says_it(
        self, hypervisor: Hypervisor, record: Record, target: Target
    ) -> None:
        first = self.take(hypervisor, record, target)
        assert self.take(hypervisor, record, target, first, full="it was asked for").why == "it was asked for"
        third = self.take(hypervisor, record, target, self.gone(hypervisor, target, first))
        assert (third.kind, third.why) == ("full", f"{first.backup} is not in its target any more")

    def gone(self, hypervisor: Hypervisor, target: Target, saved: Saved) -> Saved:
        order = DropBackup(target=target, backup=saved.backup)
        assert not self.do(hypervisor, order).already
        assert self.do(hypervisor, order).already
        return saved

    def test_one_that_comes_to_nothing_leaves_nothing_and_the_next_is_right(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore,
        kept: Kept, frozen_never: Callable[[VmId], None],
    ) -> None:  # fmt: skip
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 0, 1)
        frozen_never(record.vm)
        before = set(kept())
        order = self.order(record, target, first, freeze=1.0)
        assert self.refused(hypervisor, order, "freeze-failed").observed is not None
        assert set(kept()) == before
        self.do(hypervisor, DropBackup(target=target, backup=order.backup))
        guest_writes(record.vm, "vda", 1, 2)
        second = self.take(hypervisor, record, target, first)
        assert second.kind == "incremental"
        assert restored(first, second)["vda"] == {0: 1, 1: 2}

    def test_one_whose_answer_was_lost_can_be_passed_over(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore
    ) -> None:
        """The control plane may never have heard of a backup that a host made; the one before it goes on to count."""
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 0, 1)
        self.gone(hypervisor, target, self.take(hypervisor, record, target, first))
        guest_writes(record.vm, "vda", 1, 2)
        third = self.take(hypervisor, record, target, first)
        assert third.kind == "incremental"
        assert restored(first, third)["vda"] == {0: 1, 1: 2}

    def test_a_changed_byte_is_found_and_nothing_is_restored_from_it(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, damage: Damage, files: Any
    ) -> None:
        guest_writes(record.vm, "vda", 0, 1)
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 1, 2)
        second = self.take(hypervisor, record, target, first)
        damage(first.backup, "vda")
        for order in (
            VerifyBackup(target=target, chain=(first,)),
            VerifyBackup(target=target, chain=(first, second)),
            self.restoring(other := VmId(str(uuid4())), target, (first, second), "vda"),
        ):
            answer: Failed = self.refused(hypervisor, order, "backup-damaged")
            assert [blocker for blocker in answer.blockers if "vda" in blocker and first.backup in blocker]
        assert not files(other)
        # the other disk is whole
        self.do(hypervisor, self.restoring(other, target, (first, second), "vdb"))
        self.cleared(hypervisor, other)

    def test_what_is_gone_is_found(self, hypervisor: Hypervisor, record: Record, target: Target) -> None:
        first = self.gone(hypervisor, target, self.take(hypervisor, record, target))
        assert first.backup in self.refused(
            hypervisor, VerifyBackup(target=target, chain=(first,)), "backup-damaged"
        ).message

    def test_nothing_goes_to_a_target_that_is_not_the_one_that_was_meant(
        self, hypervisor: Hypervisor, record: Record, target: Target, kept: Kept
    ) -> None:
        before = set(kept())
        for wrong in (replace(target, name="elsewhere"), replace(target, id="f" * 32)):
            self.refused(hypervisor, self.order(record, wrong), "no-such-target")
            self.refused(hypervisor, DropBackup(target=wrong, backup=new_id()), "no-such-target")
        assert set(kept()) == before

    def test_a_vm_whose_layers_are_not_as_recorded_is_not_backed_up(
        self, hypervisor: Hypervisor, record: Record, target: Target, kept: Kept,
        foreign_layer: Callable[[VmId, str, int], Callable[[], None]],
    ) -> None:  # fmt: skip
        before = set(kept())
        mend = foreign_layer(record.vm, "vda", 0)
        assert self.refused(hypervisor, self.order(record, target), "chain-drift").blockers
        assert set(kept()) == before
        mend()
        self.take(hypervisor, record, target)

    def test_a_restored_vm_starts_and_goes_on_running(
        self, hypervisor: Hypervisor, record: Record, target: Target
    ) -> None:
        saved = self.take(hypervisor, record, target)
        other = VmId(str(uuid4()))
        spec = replace(record.spec, nics=())
        disks = [self.restoring(other, target, (saved,), disk.name) for disk in spec.disks]
        ready = AwaitReady(vm=other, ready=ReadySpec(by="none"), nics=(), steady=0.5)
        self.do(hypervisor, *disks, DefineDomain(vm=other, spec=spec), StartDomain(vm=other), ready)
        self.do(hypervisor, SuspendDomain(vm=other))
        self.refused(hypervisor, replace(ready, ready=ReadySpec(by="none", within=1)), "not-ready")
        self.cleared(hypervisor, other)

