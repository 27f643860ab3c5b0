"""What every hypervisor does with volumes and with directories that nobody owns, simulated or real: one suite.

A test module takes part by subclassing `VolumeContract` and giving these fixtures: `hypervisor`; `fill` and `content`
as for layers; `deaf` (makes a VM's guest hold on to its disks; where guests have no operating system it need do
nothing); and `lost` (a directory with the disk of a VM that nobody knows, on local storage).
"""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from contract import Ordering, power_of, scope
from layer_contract import Fill, Look

from hostagent.hypervisor import Hypervisor
from vmorch.core.hostcommands import (
    AttachDisk,
    BringBack,
    CopyDisk,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DetachDisk,
    Done,
    FindStrays,
    GrowDisk,
    Purge,
    SetAside,
    StartDomain,
    StopDomain,
    Stray,
    UndefineDomain,
)
from vmorch.core.ids import GiB, MiB, VmId
from vmorch.core.spec import DiskSpec, Home, VmSpec

OWN = DiskSpec(name="vda", size=GiB(1))
ALONE = VmSpec(vcpus=1, max_vcpus=1, memory=MiB(64), max_memory=MiB(64), disks=(OWN,))


def new_id() -> VmId:
    return VmId(str(uuid4()))


class Lent:
    """A volume, and the VM that it is lent to."""

    def __init__(self, vm: VmId, home: VmId) -> None:
        self.vm, self.home = vm, home
        self.disk = DiskSpec(name="vdb", size=GiB(1), home=Home(vm=home, name="vda"))
        self.spec = VmSpec(vcpus=1, max_vcpus=1, memory=MiB(64), max_memory=MiB(64), disks=(OWN, self.disk))
        self.attach = AttachDisk(vm=vm, spec=self.spec, name="vdb")
        self.detach = DetachDisk(vm=vm, spec=ALONE, disk=self.disk, within=2.0)
        self.resting = DiskSpec(name="vda", size=GiB(1), home=Home(vm=home, name="vda"))


class VolumeContract(Ordering):
    """Tests for any hypervisor; see above for the fixtures."""

    @pytest.fixture
    def lent(self, hypervisor: Hypervisor) -> Iterator[Lent]:
        """A volume, and a VM that is off; nothing of them is left afterwards."""
        lent = Lent(new_id(), new_id())
        self.do(hypervisor, CreateDisk(vm=lent.home, disk=lent.resting))
        self.do(hypervisor, CreateDisk(vm=lent.vm, disk=OWN), DefineDomain(vm=lent.vm, spec=ALONE))
        yield lent
        for command in (
            StopDomain(vm=lent.vm, grace=0, force=True),
            lent.detach,
            UndefineDomain(vm=lent.vm),
            DeleteDisk(vm=lent.vm, disk=OWN),
            DeleteDisk(vm=lent.home, disk=lent.resting),
        ):
            hypervisor.execute(command, scope())

    def test_a_vm_that_is_off_gets_a_volume_and_gives_it_back(
        self, hypervisor: Hypervisor, lent: Lent, fill: Fill, content: Look
    ) -> None:
        fill(lent.home, "vda", 0, 0, 7)
        self.reaches(hypervisor, lent.attach)
        self.do(hypervisor, StartDomain(vm=lent.vm), StopDomain(vm=lent.vm, grace=0, force=True))
        self.reaches(hypervisor, lent.detach)
        assert content(lent.home, "vda", 0) == {0: 7}

    def test_a_running_guest_gets_a_volume_at_once(self, hypervisor: Hypervisor, lent: Lent) -> None:
        self.do(hypervisor, StartDomain(vm=lent.vm))
        answer = self.reaches(hypervisor, lent.attach)
        assert power_of(answer) == "running"

    def test_a_guest_that_does_not_let_go_keeps_its_volume(
        self, hypervisor: Hypervisor, lent: Lent, deaf: Callable[[VmId], None]
    ) -> None:
        self.do(hypervisor, StartDomain(vm=lent.vm), lent.attach)
        deaf(lent.vm)
        assert power_of(self.refused(hypervisor, lent.detach, "device-held")) == "running"
        # it is as it was
        assert self.do(hypervisor, lent.attach).already
        self.do(hypervisor, StopDomain(vm=lent.vm, grace=0, force=True))
        self.reaches(hypervisor, lent.detach)

    def test_a_volume_that_is_gone_is_given_to_nobody(self, hypervisor: Hypervisor, lent: Lent) -> None:
        self.do(hypervisor, DeleteDisk(vm=lent.home, disk=lent.resting))
        self.refused(hypervisor, lent.attach, "chain-drift")

    def test_a_volume_grows_whether_it_is_used_or_not(self, hypervisor: Hypervisor, lent: Lent) -> None:
        self.reaches(hypervisor, GrowDisk(vm=lent.home, disk=DiskSpec(name="vda", size=GiB(2), home=lent.resting.home)))
        self.do(hypervisor, lent.attach, StartDomain(vm=lent.vm))
        self.reaches(hypervisor, GrowDisk(vm=lent.vm, disk=DiskSpec(name="vdb", size=GiB(3), home=lent.disk.home)))
        smaller = GrowDisk(vm=lent.vm, disk=DiskSpec(name="vdb", size=GiB(1), home=lent.disk.home))
        assert self.do(hypervisor, smaller).already

    def test_a_copy_stands_by_itself(self, hypervisor: Hypervisor, lent: Lent, fill: Fill, content: Look) -> None:
        fill(lent.home, "vda", 0, 1, 9)
        place = new_id()
        copy = DiskSpec(name="vda", size=GiB(1), home=Home(vm=place, name="vda"))
        self.reaches(hypervisor, CopyDisk(vm=place, disk=copy, source=lent.resting))
        fill(lent.home, "vda", 0, 1, 8)
        assert content(place, "vda", 0) == {1: 9}
        self.do(hypervisor, DeleteDisk(vm=place, disk=copy))

    def test_what_nobody_owns_is_found_and_set_aside_and_had_back_or_purged(
        self, hypervisor: Hypervisor, lent: Lent, lost: VmId
    ) -> None:
        def found() -> list[Stray]:
            answer = self.do(hypervisor, FindStrays(known=(lent.home,)))
            return [each for each in answer.strays if each.id in (lost, lent.home, lent.vm)]

        assert [(each.storage, each.id, each.files) for each in found()] == [("local", lost, ("vda.qcow2",))]
        self.reaches(hypervisor, SetAside(storage="local", id=lost))
        assert found() == []
        self.reaches(hypervisor, BringBack(storage="local", id=lost))
        assert [each.id for each in found()] == [lost]
        self.do(hypervisor, SetAside(storage="local", id=lost))
        self.reaches(hypervisor, Purge(storage="local", id=lost))
        assert found() == []
        assert hypervisor.execute(BringBack(storage="local", id=lost), scope()) == Done(already=True)

    def test_what_a_domain_uses_is_not_set_aside(self, hypervisor: Hypervisor, lent: Lent) -> None:
        self.do(hypervisor, StartDomain(vm=lent.vm))
        self.refused(hypervisor, SetAside(storage="local", id=lent.vm), "busy")
