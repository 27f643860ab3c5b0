"""Backups as decisions: what the next one stands on, who does it, what is recorded of what came of it."""

import pytest

from tests.core.drive import Answering, drive, well
from tests.core.world import WHO, History, asked
from vmorch.core.aggregates.backup import Backup
from vmorch.core.aggregates.vm import Operation, Vm, VmObserved
from vmorch.core.backup import Saved, SavedDisk
from vmorch.core.backup_resources import backup_detail, backup_resource
from vmorch.core.codec import unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet, names_touched
from vmorch.core.hostcommands import Done, DropBackup, Failed, Observed, RestoreDisk, TakeBackup
from vmorch.core.ids import BackupId, Digest, OperationId, VmId, stream
from vmorch.core.messages import HostCommand
from vmorch.core.operations.back_up import BackUpVm
from vmorch.core.operations.create import DiskRequest, NicRequest
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.rollback import RollbackVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.operations.verify_backup import ProveBackup
from vmorch.core.planning.admission import (
    Admission,
    admit_delete_backup,
    admit_on_vm,
    admit_restore,
    admit_verify,
)
from vmorch.core.planning.backups import MOST_IN_CHAIN


def saved(order: TakeBackup) -> Saved:
    """What a host says that found everything for what it was asked."""
    why = order.full or ("" if order.chain else "it is the first")
    disks = tuple(
        SavedDisk(name=disk.name, size=disk.size << 30, bytes=1000, sha256=Digest("a" * 64), content=Digest("b" * 64))
        for disk in order.spec.disks
    )
    return Saved(backup=order.backup, kind="full" if why else "incremental", disks=disks, why=why)


def making(index: int, undo: bool, command: HostCommand) -> Done | Failed:
    if isinstance(command, TakeBackup) and not undo:
        return Done(observed=Observed(power="running"), saved=saved(command))
    return well(index, undo, command)


class Site:
    """A VM with two disks on the first of two hosts, both of which see one target."""

    def __init__(self) -> None:
        self.history = History()
        self.first, self.second = self.history.host("h1"), self.history.host("h2")
        self.history.image()
        fixed = NicRequest(address="10.0.0.5/24")
        disks = (DiskRequest(size=1),)  # type: ignore[arg-type]
        self.vm_id = self.history.create(asked("web", extra_disks=disks, nics=(fixed,)), on=self.first)
        drive(self.history, self.vm_id)

    @property
    def fleet(self) -> Fleet:
        return self.history.fleet

    @property
    def vm(self) -> Vm:
        return self.fleet.vms[self.vm_id]

    def begin(self, command: BackUpVm | SnapshotVm | RollbackVm | StopVm) -> Operation:
        id = OperationId(f"op-{self.fleet.position:06d}")
        self.history.take(admit_on_vm(self.fleet, self.vm, command, operation=id, who=WHO).changes)
        return self.vm.operations[id]

    def ask(self, command: BackUpVm | SnapshotVm | RollbackVm | StopVm, answer: Answering = making) -> Operation:
        self.begin(command)
        return drive(self.history, self.vm_id, answer)

    def take(self, name: str, **fields: object) -> Backup:
        operation = self.ask(BackUpVm(name=name, **fields))  # type: ignore[arg-type]
        assert operation.outcome == "succeeded", operation
        return self.fleet.find_backup(name)

    def backup(self, name: str) -> Backup:
        return self.fleet.find_backup(name)

    def restore(self, name: str, to: str = "again", **fields: object) -> Admission:
        command = RestoreBackup(name=to, **fields)  # type: ignore[arg-type]
        return admit_restore(
            self.fleet, self.backup(name), command, vm=VmId(f"vm-{to}"), operation=self.next(), who=WHO
        )

    def verify(self, name: str, *, boot: bool = False) -> Admission:
        command = ProveBackup(boot=boot)
        vm = VmId("vm-verifier")
        return admit_verify(self.fleet, self.backup(name), command, vm=vm, operation=self.next(), who=WHO)

    def delete(self, name: str, *, with_children: bool = False) -> Admission:
        command = DeleteBackup(with_children=with_children)
        vm = VmId(f"vm-deleter-{self.fleet.position}")
        return admit_delete_backup(self.fleet, self.backup(name), command, vm=vm, operation=self.next(), who=WHO)

    def next(self) -> OperationId:
        return OperationId(f"op-{self.fleet.position:06d}")

    def carry(self, admission: Admission, answer: Answering = well) -> Operation:
        self.history.take(admission.changes)
        return drive(self.history, admission.vm, answer)


@pytest.fixture
def site() -> Site:
    return Site()


def refused(code: str) -> "pytest.RaisesExc[Rejected]":
    return pytest.raises(Rejected, check=lambda error: error.code == code)


def orders(admission: Admission) -> list[HostCommand]:
    return [unpack_host_command(step.command) for step in admission.plan.steps]


def labels(admission: Admission) -> list[str]:
    return [step.label for step in admission.plan.steps]


def test_each_backup_stands_on_the_one_before_it(site: Site) -> None:
    one, two, three = site.take("one"), site.take("two"), site.take("three")
    assert [each.parent for each in (one, two, three)] == [None, one.id, two.id]
    assert backup_detail(site.fleet, three).chain == ("one", "two", "three")
    shown = backup_resource(site.fleet, one)
    assert (shown.state, shown.kind, shown.why, shown.children) == ("whole", "full", "it is the first", ("two",))
    assert (shown.bytes, shown.size) == (2000, 2 << 30)


def test_a_host_that_cannot_tell_what_was_written_makes_a_full_one_and_its_reason_is_kept(site: Site) -> None:
    site.take("one")

    def lost(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        said = making(index, undo, command)
        if isinstance(said, Done) and said.saved is not None:
            return Done(saved=Saved(backup=said.saved.backup, kind="full", disks=said.saved.disks, why="not noted"))
        return said

    site.ask(BackUpVm(name="two"), lost)
    two = site.backup("two")
    assert (two.parent, two.saved and two.saved.why) == (None, "not noted")
    assert site.take("three").parent == two.id


def test_what_makes_the_next_one_full_is_told_to_the_host(site: Site) -> None:
    def why() -> str:
        order = unpack_host_command(site.begin(BackUpVm()).steps[0].command)
        drive(site.history, site.vm_id, making)
        assert isinstance(order, TakeBackup)
        return order.full

    assert why() == "it is the first"
    assert why() == ""
    site.ask(RollbackVm(to=_snapshot(site)))
    assert why() == "the VM was rolled back"
    assert why() == ""
    site.history.record(stream("vm", site.vm_id), VmObserved(host=site.first, observed=Observed(power="off")))
    _snapshot(site)
    assert why() == "layers were made while the VM was off"
    assert site.take("asked", full=True).saved == saved_like(site, "asked", "it was asked for")


def _snapshot(site: Site) -> str:
    name = f"s{site.fleet.position}"
    site.ask(SnapshotVm(name=name))
    return name


def saved_like(site: Site, name: str, why: str) -> Saved:
    found = site.backup(name).saved
    assert found is not None
    return Saved(backup=found.backup, kind="full", disks=found.disks, why=why)


def test_a_chain_does_not_grow_without_end(site: Site) -> None:
    for number in range(MOST_IN_CHAIN):
        assert bool(site.take(f"b{number}").parent) == bool(number)
    last = site.take("last")
    assert last.saved is not None
    assert last.saved.why == f"{MOST_IN_CHAIN} stand on each other, and no more may"


@pytest.mark.parametrize("code", ["backup-failed", "freeze-failed"])
def test_one_that_comes_to_nothing_is_forgotten_and_its_name_is_free(site: Site, code: str) -> None:
    one = site.take("one")
    undone: list[HostCommand] = []

    def failing(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        if isinstance(command, TakeBackup):
            return Failed(code=code, message="no")
        undone.append(command)
        return Done()

    operation = site.ask(BackUpVm(name="two"), failing)
    assert (operation.outcome, operation.code) == ("undone", code)
    assert undone == [DropBackup(target=one.target, backup=BackupId(operation.id))]  # type: ignore[arg-type]
    assert list(site.fleet.backups) == [one.id]
    assert site.take("two").parent == one.id


def test_a_host_that_does_not_say_what_it_made_has_made_nothing(site: Site) -> None:
    assert site.ask(BackUpVm(name="one"), well).code == "fault"
    assert not site.fleet.backups
    assert site.vm.backup is None


def test_a_host_cannot_pass_another_backup_off_as_the_one_that_was_asked_for(site: Site) -> None:
    other = saved_of_other(site.take("one"))

    def lying(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        return Done(saved=other) if isinstance(command, TakeBackup) else Done()

    assert site.ask(BackUpVm(name="two"), lying).outcome == "undone"
    assert site.backup("one").saved == other


def saved_of_other(backup: Backup) -> Saved:
    assert backup.saved is not None
    return backup.saved


def test_names_of_backups_are_claimed_and_given_back(site: Site) -> None:
    changes = admit_on_vm(site.fleet, site.vm, BackUpVm(name="one"), operation=OperationId("x"), who=WHO).changes
    claims, _ = names_touched(site.fleet, changes)
    assert [(claim.scope, claim.name) for claim in claims] == [("backup", "one")]
    site.take("one")
    with refused("name-taken"):
        site.begin(BackUpVm(name="one"))
    _, releases = names_touched(site.fleet, site.delete("one").plan.steps[0].then)
    assert [(release.scope, release.name) for release in releases] == [("backup", "one")]


def test_a_vm_without_a_target_is_refused_and_one_with_several_is_asked(site: Site) -> None:
    history = History()
    history.image()
    alone = history.host("alone", backup_targets={})
    drive(history, vm := history.create(asked("a"), on=alone))
    with refused("no-such-target"):
        admit_on_vm(history.fleet, history.fleet.vms[vm], BackUpVm(), operation=OperationId("x"), who=WHO)
    several = history.host("several", backup_targets={"near": "1" * 32, "far": "2" * 32})
    drive(history, vm := history.create(asked("b"), on=several))

    def target(to: str | None) -> str:
        made = admit_on_vm(history.fleet, history.fleet.vms[vm], BackUpVm(to=to), operation=OperationId("x"), who=WHO)
        [order] = orders(made)
        assert isinstance(order, TakeBackup)
        return order.target.id

    assert target("far") == "2" * 32
    for to in (None, "elsewhere"):
        with refused("no-such-target"):
            target(to)


def test_only_a_guest_that_runs_can_be_frozen(site: Site) -> None:
    site.ask(StopVm())
    with refused("wrong-power-state"):
        site.begin(BackUpVm(quiesce=True))
    assert site.take("off").quality == "off"


def test_a_vm_is_made_from_a_backup_when_the_one_that_was_backed_up_is_gone(site: Site) -> None:
    site.take("one")
    site.take("two")
    admission = site.restore("two", isolated=True)
    assert labels(admission) == ["restore disk", "restore disk", "seed", "define", "start", "ready"]
    order = orders(admission)[0]
    assert isinstance(order, RestoreDisk)
    assert [each.backup for each in order.chain] == [site.backup("one").id, site.backup("two").id]
    assert (order.disk.image, order.disk.layer) == (None, 0)
    assert site.carry(admission).outcome == "succeeded"
    made = site.fleet.find_vm("again")
    assert made.spec is not None
    assert (made.spec.nics, made.spec.seed and made.spec.seed.hostname) == ((), "again")
    assert made.spec.memory == (site.vm.spec and site.vm.spec.memory)


def test_two_vms_never_get_one_fixed_address(site: Site) -> None:
    site.take("one")
    with refused("address-taken"):
        site.restore("one")
    assert site.restore("one", isolated=True).spec is not None


def test_a_restored_vm_has_cards_of_its_own(site: Site) -> None:
    from vmorch.core.operations.delete import DeleteVm

    site.take("one")
    before = site.vm.spec
    id = site.next()
    site.history.take(admit_on_vm(site.fleet, site.vm, DeleteVm(), operation=id, who=WHO).changes)
    drive(site.history, site.vm_id)
    spec = site.restore("one").spec
    assert spec is not None
    assert before is not None
    assert [nic.address for nic in spec.nics] == [nic.address for nic in before.nics]
    assert {nic.mac for nic in spec.nics}.isdisjoint(nic.mac for nic in before.nics)


def test_a_vm_is_restored_only_where_the_backup_is_seen(site: Site) -> None:
    site.take("one")
    elsewhere = site.history.host("h3", cpus=64, memory=1 << 20, backup_targets={"main": "8" * 32})
    admission = site.restore("one", isolated=True)
    assert admission.placement is not None
    assert elsewhere not in {verdict.host for verdict in admission.placement.verdicts}
    with refused("no-host-fits"):
        site.restore("one", isolated=True, host="h3")


def test_every_step_of_a_restore_can_fail_and_nothing_is_left(site: Site) -> None:
    site.take("one")
    for failing in range(len(site.restore("one", isolated=True).plan.steps) - 1):
        name = f"again-{failing}"

        def fail(index: int, undo: bool, command: HostCommand, failing: int = failing) -> Done | Failed:
            if index == failing and not undo:
                return Failed(code="backup-damaged", message="no")
            return well(index, undo, command)

        operation = site.carry(site.restore("one", name, isolated=True), fail)
        assert operation.outcome == "undone"
        assert VmId(f"vm-{name}") not in site.fleet.hosts[site.first].reservations
        assert all(vm.deleted_at is not None for vm in site.fleet.vms.values() if vm.name == name)


@pytest.mark.parametrize("boot", [False, True])
def test_a_backup_that_stands_its_verification_says_so_and_the_carrier_is_gone(site: Site, boot: bool) -> None:
    site.take("one")
    admission = site.verify("one", boot=boot)
    assert labels(admission)[0] == "verify"
    assert ("ready" in labels(admission)) == boot
    reserved = {host: dict(found.reservations) for host, found in site.fleet.hosts.items()}
    assert site.carry(admission).outcome == "succeeded"
    found = site.backup("one").verification
    assert found is not None
    assert (found.by, found.ok) == ("boot" if boot else "compare", True)
    assert site.fleet.vms[VmId("vm-verifier")].deleted_at is not None
    assert {host: dict(found.reservations) for host, found in site.fleet.hosts.items()} == reserved


@pytest.mark.parametrize(
    ("label", "code", "judged"),
    [
        ("verify", "backup-damaged", True), ("ready", "not-ready", True), ("restore disk", "backup-damaged", True),
        ("verify", "no-such-target", False), ("start", "libvirt-refused", False),
    ],
)  # fmt: skip
def test_what_a_failed_verification_says_of_the_backup(site: Site, label: str, code: str, judged: bool) -> None:
    site.take("one")
    admission = site.verify("one", boot=True)
    at = labels(admission).index(label)

    def fail(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        return Failed(code=code, message="it is so") if index == at and not undo else well(index, undo, command)

    assert site.carry(admission, fail).outcome == "undone"
    found = site.backup("one").verification
    assert (found is not None) == judged
    if found is not None:
        assert (found.ok, found.why) == (False, "it is so")
        following = site.take("two").saved
        assert following is not None
        assert following.why == "one did not stand its verification"


def test_a_backup_stays_while_others_stand_on_it(site: Site) -> None:
    for name in ("one", "two", "three"):
        site.take(name)
    with refused("backup-needed"):
        site.delete("two")
    admission = site.delete("two", with_children=True)
    dropped = [order.backup for order in orders(admission) if isinstance(order, DropBackup)]
    assert dropped == [site.backup("three").id, site.backup("two").id]
    assert site.carry(admission).outcome == "succeeded"
    assert [each.name for each in site.fleet.backups.values()] == ["one"]
    following = site.take("four")
    assert (following.parent, following.saved and following.saved.why) == (None, "the last one was deleted")


def test_nothing_is_built_on_a_backup_that_is_being_deleted(site: Site) -> None:
    one = site.take("one")
    site.history.take(site.delete("one").changes)
    with refused("backup-broken"):
        site.restore("one", isolated=True)
    assert site.take("two").parent is None
    # who decided before that it would stand on it finds its parent's stream moved on
    version = site.fleet.version(stream("backup", one.id))
    assert version > one.version


def test_a_deletion_that_failed_is_repeated(site: Site) -> None:
    site.take("one")

    def fail(index: int, undo: bool, command: HostCommand) -> Done | Failed:
        return Failed(code="no-such-target", message="not mounted")

    assert site.carry(site.delete("one"), fail).outcome == "undone"
    assert backup_resource(site.fleet, site.backup("one")).state == "deleting"
    assert site.carry(site.delete("one")).outcome == "succeeded"
    assert not site.fleet.backups


def test_one_that_is_being_taken_cannot_be_deleted_nor_what_it_will_stand_on(site: Site) -> None:
    site.take("one")
    site.begin(BackUpVm(name="two"))
    assert backup_resource(site.fleet, site.backup("two")).state == "taking"
    with refused("operation-in-flight"):
        site.delete("two")
    with refused("backup-needed"):
        site.delete("one")
    with refused("backup-broken"):
        site.restore("two", isolated=True)
