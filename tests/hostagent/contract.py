"""What every hypervisor of the agent must do, simulated or real: one suite against both.

A test module takes part by subclassing `HypervisorContract` and giving these fixtures: `hypervisor`,
`image_pin` (an image that FetchImage can fetch or has), `stop_deaf` (makes a VM's guest ignore a request
to power off; where guests here have no operating system it need not do anything), and `failing_hook` (makes the
host's hook before a maintenance fail).
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from uuid import uuid4

import pytest

from hostagent.hypervisor import Expired, Hypervisor, Withdrawn
from hostagent.scope import OrderScope
from vmorch.core.codes import OUTCOMES
from vmorch.core.hostcommands import (
    Answer,
    ClaimDomain,
    ClearDomain,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    DeleteSeed,
    Done,
    Failed,
    FetchImage,
    MigrateDomain,
    ObserveDomain,
    Passage,
    Power,
    PrepareArrival,
    ResumeDomain,
    RunHook,
    SetVcpus,
    StartDomain,
    StopDomain,
    SuspendDomain,
    TuneMigration,
    UndefineDomain,
    WriteSeed,
)
from vmorch.core.ids import Digest, GiB, MiB, VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import DiskSpec, ImagePin, NicSpec, SeedSpec, VmSpec

DISK = DiskSpec(name="vda", size=GiB(1))
NIC = NicSpec(mac="52:54:00:00:00:01")
SPEC = VmSpec(vcpus=1, max_vcpus=2, memory=MiB(128), max_memory=MiB(128), disks=(DISK,))
NO_IMAGE = ImagePin(digest=Digest("0" * 64), format="qcow2", size=1 << 20, virtual_size=1 << 30)


def scope(seconds: float = 60.0) -> OrderScope:
    """An order's scope that ends after so many seconds."""
    return OrderScope(time.monotonic, time.monotonic() + seconds)


def fetch(image: ImagePin) -> FetchImage:
    """The command that brings an image."""
    return FetchImage(image=image, path=f"/v1/images/{image.digest}/content")


def power_of(answer: Answer) -> Power:
    """The power that an answer observed."""
    assert answer.observed is not None, answer
    return answer.observed.power


class Ordering:
    """How orders are given and what must hold of every one of them."""

    def do(self, hypervisor: Hypervisor, *commands: HostCommand) -> Done:
        """Carry commands out, each with success; the last answer."""
        answer: Answer = Done()
        for command in commands:
            answer = hypervisor.execute(command, scope())
            assert isinstance(answer, Done), (command, answer)
        assert isinstance(answer, Done)
        return answer

    def refused(self, hypervisor: Hypervisor, command: HostCommand, code: str) -> Failed:
        """Carry a command out, which must be refused with this code."""
        answer = hypervisor.execute(command, scope())
        assert isinstance(answer, Failed), answer
        assert answer.code == code, answer
        assert answer.code in OUTCOMES
        assert answer.message
        return answer

    def reaches(self, hypervisor: Hypervisor, command: HostCommand, *, already: bool = False) -> Done:
        """A command is interrupted before it, done once, and then again without effect."""
        if not already:
            before = hypervisor.resolve(command, scope())
            assert isinstance(before, Failed), (command, before)
            assert before.code == "interrupted"
        first = self.do(hypervisor, command)
        assert first.already == already, (command, first)
        resolved = hypervisor.resolve(command, scope())
        assert isinstance(resolved, Done), (command, resolved)
        assert resolved.already
        again = self.do(hypervisor, command)
        assert again.already, (command, again)
        assert again.observed == first.observed
        return first


class HypervisorContract(Ordering):
    """Tests for any hypervisor; see above for the fixtures."""

    @pytest.fixture
    def vm(self, hypervisor: Hypervisor) -> Iterator[VmId]:
        """A VM's id; nothing of it is left afterwards."""
        vm = VmId(str(uuid4()))
        yield vm
        for command in (
            StopDomain(vm=vm, grace=0, force=True),
            UndefineDomain(vm=vm),
            DeleteSeed(vm=vm),
            DeleteDisk(vm=vm, disk=DISK),
        ):
            hypervisor.execute(command, scope())

    @pytest.fixture
    def running(self, hypervisor: Hypervisor, vm: VmId) -> VmId:
        """A VM that runs."""
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC), StartDomain(vm=vm))
        return vm

    def test_facts_tell_what_the_host_is(self, hypervisor: Hypervisor) -> None:
        facts = hypervisor.facts()
        assert facts.hostname
        assert facts.machine_id
        assert facts.cpus >= 1
        assert facts.memory >= 64
        assert facts.address
        assert facts.local_dir
        assert facts.machines
        assert facts == hypervisor.facts()

    def test_a_life_of_a_domain_is_idempotent_at_every_step(self, hypervisor: Hypervisor, vm: VmId) -> None:
        self.reaches(hypervisor, CreateDisk(vm=vm, disk=DISK))
        assert power_of(self.reaches(hypervisor, DefineDomain(vm=vm, spec=SPEC))) == "off"
        started = self.reaches(hypervisor, StartDomain(vm=vm))
        assert power_of(started) == "running"
        assert started.observed is not None
        assert (started.observed.vcpus, started.observed.memory) == (1, 128)
        assert power_of(self.reaches(hypervisor, SuspendDomain(vm=vm))) == "paused"
        assert power_of(self.reaches(hypervisor, ResumeDomain(vm=vm))) == "running"
        assert power_of(self.reaches(hypervisor, StopDomain(vm=vm, grace=0, force=True))) == "off"
        assert power_of(self.reaches(hypervisor, UndefineDomain(vm=vm))) == "absent"
        self.reaches(hypervisor, DeleteDisk(vm=vm, disk=DISK))

    def test_what_is_gone_already_needs_no_removal(self, hypervisor: Hypervisor, vm: VmId) -> None:
        stopped = self.reaches(hypervisor, StopDomain(vm=vm, grace=0, force=True), already=True)
        assert power_of(stopped) == "absent"
        assert power_of(self.reaches(hypervisor, UndefineDomain(vm=vm), already=True)) == "absent"
        self.reaches(hypervisor, DeleteDisk(vm=vm, disk=DISK), already=True)
        self.reaches(hypervisor, DeleteSeed(vm=vm), already=True)

    @pytest.mark.parametrize("make", [StartDomain, SuspendDomain, ResumeDomain])
    def test_power_of_an_undefined_domain_is_refused(
        self, hypervisor: Hypervisor, vm: VmId, make: Callable[..., HostCommand]
    ) -> None:
        self.refused(hypervisor, make(vm=vm), "no-domain")
        self.refused(hypervisor, SetVcpus(vm=vm, vcpus=2), "no-domain")

    def test_a_domain_that_is_off_cannot_be_paused_or_resumed(self, hypervisor: Hypervisor, vm: VmId) -> None:
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC))
        assert power_of(self.refused(hypervisor, SuspendDomain(vm=vm), "libvirt-refused")) == "off"
        assert power_of(self.refused(hypervisor, ResumeDomain(vm=vm), "libvirt-refused")) == "off"

    def test_a_domain_without_its_disk_does_not_start(self, hypervisor: Hypervisor, vm: VmId) -> None:
        self.do(hypervisor, DefineDomain(vm=vm, spec=SPEC))
        answer = hypervisor.execute(StartDomain(vm=vm), scope())
        assert isinstance(answer, Failed)
        assert answer.code == "libvirt-refused"
        assert hypervisor.observe(vm).power == "off"

    def test_a_disk_in_use_is_not_deleted(self, hypervisor: Hypervisor, running: VmId) -> None:
        self.refused(hypervisor, DeleteDisk(vm=running, disk=DISK), "busy")
        assert hypervisor.observe(running).power == "running"

    def test_a_disk_on_an_image_that_is_not_here_is_refused(self, hypervisor: Hypervisor, vm: VmId) -> None:
        disk = DiskSpec(name="vda", size=GiB(1), image=NO_IMAGE)
        self.refused(hypervisor, CreateDisk(vm=vm, disk=disk), "no-image")

    def test_an_image_is_fetched_once_and_carries_disks(
        self, hypervisor: Hypervisor, vm: VmId, image_pin: ImagePin
    ) -> None:
        self.do(hypervisor, fetch(image_pin))
        assert self.do(hypervisor, fetch(image_pin)).already
        assert isinstance(hypervisor.resolve(fetch(image_pin), scope()), Done)
        disk = DiskSpec(name="vda", size=GiB(2), image=image_pin)
        self.reaches(hypervisor, CreateDisk(vm=vm, disk=disk))
        spec = VmSpec(vcpus=1, max_vcpus=2, memory=MiB(128), max_memory=MiB(128), disks=(disk,))
        self.do(hypervisor, DefineDomain(vm=vm, spec=spec), StartDomain(vm=vm))

    def test_a_seed_holds_exactly_what_was_last_written(self, hypervisor: Hypervisor, vm: VmId) -> None:
        first = WriteSeed(vm=vm, seed=SeedSpec(hostname="web"), nics=(NIC,), instance="i-1")
        second = WriteSeed(vm=vm, seed=SeedSpec(hostname="web"), nics=(NIC,), instance="i-2")
        self.reaches(hypervisor, first)
        self.reaches(hypervisor, second)
        interrupted = hypervisor.resolve(first, scope())
        assert isinstance(interrupted, Failed)
        self.reaches(hypervisor, DeleteSeed(vm=vm))

    def test_a_domains_seed_goes_with_its_configuration(self, hypervisor: Hypervisor, vm: VmId) -> None:
        seed = WriteSeed(vm=vm, seed=SeedSpec(hostname="web"), nics=(NIC,), instance="i-1")
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), seed, DefineDomain(vm=vm, spec=SPEC))
        assert power_of(self.reaches(hypervisor, UndefineDomain(vm=vm))) == "absent"
        self.reaches(hypervisor, DeleteSeed(vm=vm), already=True)
        assert isinstance(hypervisor.resolve(CreateDisk(vm=vm, disk=DISK), scope()), Done), "disks stay"

    def test_a_seed_that_lost_its_domain_goes_too(self, hypervisor: Hypervisor, vm: VmId) -> None:
        self.do(hypervisor, WriteSeed(vm=vm, seed=SeedSpec(hostname="web"), nics=(NIC,), instance="i-1"))
        self.reaches(hypervisor, UndefineDomain(vm=vm))
        self.reaches(hypervisor, DeleteSeed(vm=vm), already=True)

    def test_a_running_domain_keeps_its_seed_when_it_is_undefined(self, hypervisor: Hypervisor, running: VmId) -> None:
        seed = WriteSeed(vm=running, seed=SeedSpec(hostname="web"), nics=(NIC,), instance="i-1")
        self.do(hypervisor, seed)
        assert power_of(self.reaches(hypervisor, UndefineDomain(vm=running))) == "running"
        assert isinstance(hypervisor.resolve(seed, scope()), Done)
        assert power_of(self.do(hypervisor, StopDomain(vm=running, grace=0, force=True))) == "absent"
        self.reaches(hypervisor, UndefineDomain(vm=running))
        self.reaches(hypervisor, DeleteSeed(vm=running), already=True)

    def test_a_deaf_guest_is_cut_only_by_force(
        self, hypervisor: Hypervisor, running: VmId, stop_deaf: Callable[[VmId], None]
    ) -> None:
        stop_deaf(running)
        polite = StopDomain(vm=running, grace=0.5, force=False)
        assert power_of(self.refused(hypervisor, polite, "guest-did-not-stop")) == "running"
        assert power_of(self.do(hypervisor, StopDomain(vm=running, grace=0.5, force=True))) == "off"

    def test_a_withdrawn_stop_leaves_a_deaf_guest_running(
        self, hypervisor: Hypervisor, running: VmId, stop_deaf: Callable[[VmId], None]
    ) -> None:
        stop_deaf(running)
        order = scope()
        timer = threading.Timer(0.3, order.withdraw)
        timer.start()
        with pytest.raises(Withdrawn):
            hypervisor.execute(StopDomain(vm=running, grace=60, force=True), order)
        timer.join()
        assert hypervisor.observe(running).power == "running"

    def test_an_expired_order_is_not_begun(self, hypervisor: Hypervisor, vm: VmId) -> None:
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC))
        with pytest.raises(Expired):
            hypervisor.execute(StartDomain(vm=vm), scope(0))
        assert hypervisor.observe(vm).power == "off"

    def test_vcpus_are_added_and_never_removed(self, hypervisor: Hypervisor, running: VmId) -> None:
        added = self.reaches(hypervisor, SetVcpus(vm=running, vcpus=2))
        assert added.observed is not None
        assert added.observed.vcpus == 2
        self.refused(hypervisor, SetVcpus(vm=running, vcpus=1), "libvirt-refused")
        self.refused(hypervisor, SetVcpus(vm=running, vcpus=3), "libvirt-refused")

    def test_a_new_definition_does_not_touch_a_running_domain(self, hypervisor: Hypervisor, running: VmId) -> None:
        bigger = VmSpec(vcpus=2, max_vcpus=2, memory=MiB(128), max_memory=MiB(128), disks=(DISK,))
        self.reaches(hypervisor, DefineDomain(vm=running, spec=bigger))
        seen = hypervisor.observe(running)
        assert (seen.power, seen.vcpus) == ("running", 1)

    def test_a_look_answers_always_and_changes_nothing(self, hypervisor: Hypervisor, vm: VmId) -> None:
        assert power_of(self.do(hypervisor, ObserveDomain(vm=vm))) == "absent"
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC))
        assert power_of(self.do(hypervisor, ObserveDomain(vm=vm))) == "off"
        started = self.do(hypervisor, StartDomain(vm=vm))
        seen = self.do(hypervisor, ObserveDomain(vm=vm)).observed
        assert seen == started.observed
        assert seen is not None
        assert not seen.moving
        assert isinstance(hypervisor.resolve(ObserveDomain(vm=vm), scope()), Done)

    def test_a_domain_started_halted_runs_when_it_is_resumed(self, hypervisor: Hypervisor, vm: VmId) -> None:
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC))
        halted = self.reaches(hypervisor, StartDomain(vm=vm, halted=True))
        assert halted.observed is not None
        assert (halted.observed.power, halted.observed.reason) == ("paused", "user")
        assert power_of(self.do(hypervisor, ResumeDomain(vm=vm))) == "running"
        self.refused(hypervisor, StartDomain(vm=vm, halted=True), "libvirt-refused")

    def test_what_is_off_or_paused_is_cleared_and_what_runs_is_not(self, hypervisor: Hypervisor, running: VmId) -> None:
        clear = ClearDomain(vm=running)
        assert power_of(self.refused(hypervisor, clear, "runs-here")) == "running"
        self.do(hypervisor, SuspendDomain(vm=running))
        assert power_of(self.reaches(hypervisor, clear)) == "absent"
        self.do(hypervisor, DefineDomain(vm=running, spec=SPEC))
        assert power_of(self.reaches(hypervisor, clear)) == "absent"
        assert running not in hypervisor.inventory().domains
        # the disk is still there
        self.do(hypervisor, DefineDomain(vm=running, spec=SPEC), StartDomain(vm=running))

    def test_nothing_is_cleared_where_nothing_is(self, hypervisor: Hypervisor, vm: VmId) -> None:
        assert power_of(self.reaches(hypervisor, ClearDomain(vm=vm), already=True)) == "absent"

    def test_a_claim_makes_the_configuration_and_starts_nothing(self, hypervisor: Hypervisor, vm: VmId) -> None:
        claim = ClaimDomain(vm=vm, spec=SPEC, run=True)
        assert power_of(self.reaches(hypervisor, claim)) == "off"
        bigger = VmSpec(vcpus=2, max_vcpus=2, memory=MiB(128), max_memory=MiB(128), disks=(DISK,))
        self.reaches(hypervisor, ClaimDomain(vm=vm, spec=bigger, run=False))
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), StartDomain(vm=vm))
        assert power_of(self.do(hypervisor, claim)) == "running"

    @pytest.mark.parametrize("run", [True, False])
    def test_a_claim_leaves_a_pause_of_the_users_own(
        self, hypervisor: Hypervisor, running: VmId, run: bool
    ) -> None:
        self.do(hypervisor, SuspendDomain(vm=running))
        seen = self.reaches(hypervisor, ClaimDomain(vm=running, spec=SPEC, run=run), already=True).observed
        assert seen is not None
        assert (seen.power, seen.reason) == ("paused", "user")

    def test_an_arrival_clears_what_is_halted_and_is_kept_from_what_runs(
        self, hypervisor: Hypervisor, running: VmId
    ) -> None:
        arrival = PrepareArrival(vm=running, spec=SPEC, machine=hypervisor.facts().machines[-1], encrypted=False)
        self.refused(hypervisor, arrival, "runs-here")
        self.do(hypervisor, SuspendDomain(vm=running))
        assert power_of(self.do(hypervisor, arrival)) == "absent"
        assert isinstance(hypervisor.resolve(arrival, scope()), Done)
        assert self.do(hypervisor, arrival).already

    def test_an_arrival_is_told_everything_that_stands_in_its_way(self, hypervisor: Hypervisor, vm: VmId) -> None:
        spec = VmSpec(
            vcpus=1,
            max_vcpus=1,
            memory=MiB(16 << 20),
            max_memory=MiB(16 << 20),
            disks=(DISK, DiskSpec(name="vdb", size=GiB(1), storage="shared")),
            nics=(NicSpec(mac="52:54:00:00:00:01", network="no-such-network"),),
        )
        arrival = PrepareArrival(vm=vm, spec=spec, machine="pc-q35-99.0", encrypted=False)
        refused = self.refused(hypervisor, arrival, "arrival-blocked")
        assert len(refused.blockers) == 4, refused
        for word in ("pc-q35-99.0", "memory", "no-such-network", "vdb"):
            assert sum(word in blocker for blocker in refused.blockers) == 1, (word, refused)
        assert isinstance(hypervisor.resolve(arrival, scope()), Failed)

    def test_a_passage_to_nowhere_leaves_the_guest_alone(self, hypervisor: Hypervisor, running: VmId) -> None:
        leave = MigrateDomain(vm=running, address="192.0.2.1", passage=Passage(encrypted=False), copy=("vda",))
        failed = self.refused(hypervisor, leave, "migration-failed")
        assert power_of(failed) == "running"
        assert failed.observed is not None
        assert not failed.observed.moving
        self.refused(hypervisor, TuneMigration(vm=running, bandwidth=10), "libvirt-refused")

    def test_what_is_not_here_has_left_already(self, hypervisor: Hypervisor, vm: VmId) -> None:
        leave = MigrateDomain(vm=vm, address="192.0.2.1", passage=Passage(encrypted=False))
        assert power_of(self.reaches(hypervisor, leave, already=True)) == "absent"
        self.do(hypervisor, DefineDomain(vm=vm, spec=SPEC))
        self.refused(hypervisor, leave, "migration-failed")

    def test_a_host_without_a_hook_has_nothing_to_run(self, hypervisor: Hypervisor) -> None:
        self.reaches(hypervisor, RunHook(name="after-maintenance", run=str(uuid4())))

    def test_a_hook_that_fails_says_so_however_often_it_is_asked(
        self, hypervisor: Hypervisor, failing_hook: None
    ) -> None:
        hook = RunHook(name="before-maintenance", run=str(uuid4()))
        assert "before-maintenance" in self.refused(hypervisor, hook, "hook-failed").message
        self.refused(hypervisor, hook, "hook-failed")

    def test_the_inventory_shows_each_domain_as_a_look_at_it_does(self, hypervisor: Hypervisor, running: VmId) -> None:
        inventory = hypervisor.inventory()
        assert inventory.domains[running] == hypervisor.observe(running)
        assert running not in inventory.configuration
        assert running not in inventory.unmanaged
        self.do(hypervisor, StopDomain(vm=running, grace=0, force=True))
        assert hypervisor.inventory().domains[running].power == "off"
        self.do(hypervisor, UndefineDomain(vm=running))
        assert running not in hypervisor.inventory().domains
        assert hypervisor.observe(running).power == "absent"

    def test_changes_are_told_to_who_watches(self, hypervisor: Hypervisor, vm: VmId) -> None:
        told: list[VmId | None] = []
        heard = threading.Event()

        def changed(which: VmId | None) -> None:
            told.append(which)
            if which in (vm, None):
                heard.set()

        hypervisor.watch(changed, lambda: None)
        self.do(hypervisor, CreateDisk(vm=vm, disk=DISK), DefineDomain(vm=vm, spec=SPEC), StartDomain(vm=vm))
        assert heard.wait(10), told

    def test_different_vms_are_worked_on_side_by_side(
        self, hypervisor: Hypervisor, running: VmId, stop_deaf: Callable[[VmId], None]
    ) -> None:
        stop_deaf(running)
        order = scope()
        ended: list[str] = []

        def stop() -> None:
            with suppress(Withdrawn):
                hypervisor.execute(StopDomain(vm=running, grace=60, force=False), order)
            ended.append("stop")

        waiting = threading.Thread(target=stop)
        waiting.start()
        try:
            other = VmId(str(uuid4()))
            for _ in itertools.repeat(None, 3):
                self.do(hypervisor, DefineDomain(vm=other, spec=SPEC), UndefineDomain(vm=other))
            assert not ended
        finally:
            order.withdraw()
            waiting.join(30)
        assert ended
