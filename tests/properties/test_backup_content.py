"""Backups among all else that happens to a guest, on the model of a host: each gives back what was there then."""

import random
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.core.drive import drive
from tests.core.world import WHO
from tests.properties.test_snapshot_content import Life, quiet
from vmorch.core.aggregates.backup import chain_of, saved_of
from vmorch.core.hostcommands import Done, RestoreDisk, VerifyBackup
from vmorch.core.hypervisor import content, expect
from vmorch.core.ids import BackupId, GiB, OperationId, VmId
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.planning.admission import admit_delete_backup
from vmorch.core.spec import DiskSpec

SHELF = {"main": "7" * 32}


@dataclass
class Shelved(Life):
    """A VM that is backed up now and then, and what its disks held at each time."""

    shelf: dict[BackupId, dict[str, dict[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.host = replace(self.host, targets=SHELF)
        super().__post_init__()

    def go_on(self) -> None:
        super().go_on()
        if self.chance.random() < 0.5:
            self.back_up()
        if self.chance.random() < 0.1:
            self.drop()

    def back_up(self) -> None:
        held = {name: dict(clusters) for name, clusters in self.now.items()}
        ended = self.ask(BackUpVm(full=self.chance.random() < 0.1))
        if ended is not None and ended.outcome == "succeeded":
            self.shelf[BackupId(ended.id)] = held
        else:
            assert self.trouble or ended is None

    def drop(self) -> None:
        fleet = self.history.fleet
        if not fleet.backups:
            return
        backup = fleet.backups[self.chance.choice(list(fleet.backups))]
        operation, vm = OperationId(f"op-{fleet.position}"), VmId(f"vm-{fleet.position}")
        command = DeleteBackup(with_children=True)
        admission = admit_delete_backup(fleet, backup, command, vm=vm, operation=operation, who=WHO)
        self.history.take(admission.changes)
        drive(self.history, vm, self.answer(-1))

    def check(self) -> None:
        super().check()
        backups = self.history.fleet.backups
        kept = self.host.backups.get(SHELF["main"], {})
        assert set(kept) == set(backups)
        for id, backup in backups.items():
            assert backup.target is not None
            chain = saved_of(chain_of(backups, id))
            _, answer = expect(self.host, VerifyBackup(target=backup.target, chain=chain))
            assert isinstance(answer, Done), answer
            for name, held in self.shelf[id].items():
                disk = DiskSpec(name=name, size=GiB(1))
                order = RestoreDisk(vm=VmId("again"), disk=disk, target=backup.target, chain=chain)
                after, answer = expect(self.host, order)
                assert isinstance(answer, Done), answer
                assert content(after, VmId("again"), disk) == {at: byte for at, byte in held.items() if byte}


@quiet
@given(st.integers(0, 10**9))
def test_whatever_happens_each_backup_gives_back_what_was_there(seed: int) -> None:
    life = Shelved(random.Random(seed))
    for _ in range(20):
        life.go_on()
        life.check()


@quiet
@given(st.integers(0, 10**9))
def test_whatever_a_host_refuses_no_backup_changes(seed: int) -> None:
    life = Shelved(random.Random(seed), trouble=0.4)
    for _ in range(20):
        life.go_on()
        life.check()
