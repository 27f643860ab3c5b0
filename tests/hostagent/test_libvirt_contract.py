"""A real libvirt host keeps the contract of all hypervisors."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import libvirt
import libvirt_qemu
import pytest
from backup_contract import BackupContract, Restore, Write
from contract import HypervisorContract, scope
from layer_contract import FIRST, SECOND, Content, Files, LayerContract, Record
from libvirt_host import ImageServer, empty_qcow2, hypervisor_on, lab_of, pin
from msgspec.structs import replace
from volume_contract import VolumeContract, new_id

from deploy.lab.host import Host
from hostagent.commands import take_backup, take_snapshot
from hostagent.commands._monitor import bitmaps_of, written_by
from hostagent.commands._noting import note_name, recall
from hostagent.domain_xml import Told
from hostagent.hypervisor import Hypervisor, Withdrawn
from hostagent.increment import PART, Increment
from hostagent.layout import disk_file, draft_of
from hostagent.libvirt_hypervisor import LibvirtHypervisor
from hostagent.scope import OrderScope
from vmorch.core.backup import Saved, Target
from vmorch.core.hostcommands import Answer, Done, Failed, Memory, SaveGuest, TakeSnapshot, VerifyBackup
from vmorch.core.ids import BackupId, VmId
from vmorch.core.spec import ImagePin

pytestmark = pytest.mark.libvirt
CLUSTER_SIZE, LOOKED_AT = 64 * 1024, 8
"""Bytes of a cluster, and how many of them tests write to."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with lab_of(1, tmp_path_factory.mktemp("libvirt")) as lab:
        yield lab.hosts[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    server = ImageServer(empty_qcow2(tmp_path_factory.mktemp("image")))
    yield server
    server.close()


@pytest.fixture
def hypervisor(host: Host, server: ImageServer, tmp_path: Path) -> Iterator[LibvirtHypervisor]:
    backups = host.local / "backups"
    backups.mkdir(exist_ok=True)
    kept = host.directory / "lib/qemu"
    hypervisor = hypervisor_on(host.uri, host.local, host.shared, server.url, tmp_path, {"main": backups}, kept)
    yield hypervisor
    hypervisor.close()


@pytest.fixture
def image_pin(server: ImageServer) -> ImagePin:
    return pin(server.image, 64 << 20)


class TestLibvirtHypervisor(HypervisorContract):
    @pytest.fixture
    def failing_hook(self, tmp_path: Path) -> None:
        script = tmp_path / "before-maintenance"
        script.write_text("#!/bin/sh\necho no\nexit 3\n")
        script.chmod(0o755)

    @pytest.fixture
    def stop_deaf(self) -> Callable[[VmId], None]:
        # firmware that finds nothing to boot hears no power button
        return lambda vm: None


def ask_qemu(domain: Any, execute: str, **arguments: object) -> Any:
    order = json.dumps({"execute": execute, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuMonitorCommand(domain, order, 0))["return"]


def open_behind_libvirt(domain: Any, layer: Path, base: Path) -> None:
    """What QEMU has open when libvirt dies just before a guest goes on above a new layer."""
    order = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, layer, "1G"]
    subprocess.run(order, check=True)
    file = {"driver": "file", "filename": str(layer), "auto-read-only": True}
    ask_qemu(domain, "blockdev-add", **file, **{"node-name": "left-storage"})
    format = {"driver": "qcow2", "file": "left-storage", "read-only": False, "backing": None}
    ask_qemu(domain, "blockdev-add", **format, **{"node-name": "left-format"})


def merge_behind_libvirt(domain: Any, written: str, top: str, into: str) -> None:
    """What QEMU has done when libvirt dies at the very end of a merge."""
    ask = partial(ask_qemu, domain)
    nodes = {
        each["file"]: each["node-name"]
        for each in ask("query-named-block-nodes", flat=True)
        if each["drv"] == "qcow2"
    }
    order = {"job-id": "by-hand", "device": nodes[written], "base-node": nodes[into], "auto-dismiss": True}
    ask("block-commit", **order, **({} if top == written else {"top-node": nodes[top]}))
    deadline = time.monotonic() + 20
    while jobs := [each for each in ask("query-jobs") if each["id"] == "by-hand"]:
        if jobs[0]["status"] == "ready":
            ask("job-complete", id="by-hand")
        assert time.monotonic() < deadline
    for node in (nodes[top], nodes[top].replace("-format", "-storage")):
        ask("blockdev-del", **{"node-name": node})


class Layers:
    """How tests reach the layers of the real host."""

    @pytest.fixture
    def directory(self, host: Host) -> Callable[[VmId], Path]:
        """Where everything is that the host keeps of a VM."""
        return lambda vm: host.local / "vmorch/vms" / vm

    @pytest.fixture
    def fill(self, directory: Callable[[VmId], Path]) -> Callable[[VmId, str, int, int, int], None]:
        def write(vm: VmId, disk: str, layer: int, cluster: int, byte: int) -> None:
            order = f"write -P {byte} {cluster * CLUSTER_SIZE} {CLUSTER_SIZE}"
            qemu_io("-f", "qcow2", "-c", order, directory(vm) / disk_file(disk, layer))

        return write

    @pytest.fixture
    def content(self, directory: Callable[[VmId], Path], tmp_path: Path) -> Callable[[VmId, str, int], Content]:
        def read(vm: VmId, disk: str, layer: int) -> Content:
            flat, path = tmp_path / "read", directory(vm) / disk_file(disk, layer)
            source = ("-U", "-f", "qcow2", "-O", "raw")
            size = f"bs={CLUSTER_SIZE}", f"count={LOOKED_AT}"
            subprocess.run(["qemu-img", "dd", *source, *size, f"if={path}", f"of={flat}"], check=True)
            data = flat.read_bytes()
            clusters = [data[at * CLUSTER_SIZE : (at + 1) * CLUSTER_SIZE] for at in range(LOOKED_AT)]
            assert all(len(set(each)) == 1 for each in clusters)
            return {at: each[0] for at, each in enumerate(clusters) if each[0]}

        return read

    @pytest.fixture
    def files(self, directory: Callable[[VmId], Path]) -> Callable[[VmId], Collection[str]]:
        def names(vm: VmId) -> Collection[str]:
            there = directory(vm)
            return {each.name for each in there.iterdir()} if there.is_dir() else set()

        return names

    @pytest.fixture
    def foreign_layer(self, directory: Callable[[VmId], Path]) -> Callable[[VmId, str, int], Callable[[], None]]:
        def add(vm: VmId, disk: str, on: int) -> Callable[[], None]:
            base, foreign = directory(vm) / disk_file(disk, on), directory(vm) / f"before-the-update-{disk}.qcow2"
            order = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, foreign, "1G"]
            subprocess.run(order, check=True)
            return foreign.unlink

        return add

    @pytest.fixture
    def lost_layer(
        self, directory: Callable[[VmId], Path], tmp_path: Path
    ) -> Callable[[VmId, str, int], Callable[[], None]]:
        def lose(vm: VmId, disk: str, layer: int) -> Callable[[], None]:
            path, away = directory(vm) / disk_file(disk, layer), tmp_path / "lost"
            path.rename(away)

            def bring_back() -> None:
                away.rename(path)

            return bring_back

        return lose

    @pytest.fixture
    def frozen_never(self) -> Callable[[VmId], None]:
        # no guest's agent answers where there is no operating system
        return lambda vm: None


def go_over(host: Host, vm: VmId, layer: Path) -> None:
    """The call with which an agent has a guest go on above a layer that it made."""
    flags = (
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    )
    disk = f"<disk name='vda' snapshot='external'><driver type='qcow2'/><source file='{layer}'/></disk>"
    with closing(libvirt.open(host.uri)) as connection:
        domain = connection.lookupByUUIDString(vm)
        domain.snapshotCreateXML(f"<domainsnapshot><disks>{disk}</disks></domainsnapshot>", flags)


def interrupted(answer: Answer) -> None:
    assert isinstance(answer, Failed)
    assert answer.code == "interrupted"


class TestLibvirtLayers(Layers, LayerContract):
    @pytest.mark.parametrize("into", [0, 1])
    def test_a_merge_that_libvirt_did_not_live_to_see_is_ended_and_the_guest_goes_on(
        self, hypervisor: Hypervisor, running: Record, host: Host, directory: Callable[[VmId], Path], into: int
    ) -> None:
        self.carry_out(hypervisor, running, running.take())
        self.carry_out(hypervisor, running, running.take())
        files = {layer: str(directory(running.vm) / disk_file("vda", layer)) for layer in range(3)}
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(running.vm)
            merge_behind_libvirt(domain, files[2], files[into + 1], files[into])
            assert files[into + 1] in Told(domain.XMLDesc(0)).chains["vda"]
            seen = self.carry_out(hypervisor, running, running.merge("vda", into + 1, into)).observed
            left = [files[layer] for layer in (2, 1, 0) if layer != into + 1]
            assert Told(domain.XMLDesc(0)).chains["vda"] == tuple(left)
            assert seen is not None
            assert seen.power == "running"
        assert not Path(files[into + 1]).exists()
        # and libvirt can change them again
        self.carry_out(hypervisor, running, running.take())

    @pytest.mark.parametrize("memory", [None, FIRST])
    def test_a_snapshot_that_libvirt_did_not_live_to_see_is_taken_and_nothing_is_left_open(
        self, hypervisor: Hypervisor, running: Record, host: Host, directory: Callable[[VmId], Path],
        memory: Memory | None,
    ) -> None:  # fmt: skip
        base, layer = (directory(running.vm) / disk_file("vda", number) for number in range(2))
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(running.vm)
            open_behind_libvirt(domain, layer, base)
            self.carry_out(hypervisor, running, running.take(memory=memory))
            opened = [each["node-name"] for each in ask_qemu(domain, "query-named-block-nodes", flat=True)]
            assert not [name for name in opened if name.startswith("left-")]
        # its memory can be kept only while each file is open once
        self.carry_out(hypervisor, running, running.take(memory=SECOND))

    @pytest.mark.parametrize("power", ["running", "off"])
    @pytest.mark.parametrize("left", ["layer", "draft"])
    def test_what_an_agent_made_before_it_died_is_taken_away(
        self, hypervisor: Hypervisor, running: Record, directory: Callable[[VmId], Path], files: Files, power: str,
        left: str,
    ) -> None:  # fmt: skip
        if power == "off":
            self.stop(hypervisor, running)
        before = files(running.vm)
        order = running.take()
        if left == "layer":
            self.do(hypervisor, running.make(vda=0))
        else:
            (directory(running.vm) / draft_of(disk_file("vda", 1))).write_bytes(b"half of it")
        interrupted(hypervisor.resolve(order, scope()))
        assert files(running.vm) == before
        self.carry_out(hypervisor, running, order)

    @pytest.mark.parametrize("power", ["running", "off"])
    def test_a_layer_that_was_promised_stays_whatever_libvirt_remembers(
        self, hypervisor: Hypervisor, running: Record, files: Files, power: str
    ) -> None:
        if power == "off":
            self.stop(hypervisor, running)
        order, layer = running.take(), disk_file("vda", 1)
        self.do(hypervisor, running.make(vda=0))
        interrupted(hypervisor.resolve(order, OrderScope(time.monotonic, float("inf"), answered=True)))
        assert layer in files(running.vm)
        interrupted(hypervisor.resolve(order, scope()))
        assert layer not in files(running.vm)

    def test_a_call_of_an_agent_that_died_comes_in_time_or_finds_no_layer(
        self, hypervisor: Hypervisor, running: Record, host: Host, directory: Callable[[VmId], Path], files: Files
    ) -> None:
        there = directory(running.vm)
        for number in range(1, 6):
            order, before = running.take(), set(files(running.vm))
            self.do(hypervisor, running.make(vda=number - 1))
            layer = there / disk_file("vda", number)
            in_time, answer = self.race(hypervisor, running.vm, host, layer, order)
            assert isinstance(answer, Done) if in_time else answer.code == "interrupted"
            on = layer if in_time else there / disk_file("vda", number - 1)
            assert files(running.vm) == (before | {layer.name} if in_time else before)
            with closing(libvirt.open(host.uri)) as connection:
                domain = connection.lookupByUUIDString(running.vm)
                assert Told(domain.XMLDesc(0)).chains["vda"][0] == str(on)
                assert written_by(domain)["vda"].files[0] == str(on)
            self.reaches(hypervisor, order, already=in_time)
            running.carried_out(order)

    @pytest.mark.parametrize("looks", ["give_up", "withdraw"])
    def test_a_call_of_an_agent_that_died_can_come_between_two_looks_and_is_made_good(
        self, hypervisor: Hypervisor, running: Record, host: Host, directory: Callable[[VmId], Path],
        monkeypatch: pytest.MonkeyPatch, looks: str,
    ) -> None:  # fmt: skip
        order, layer = running.take(), directory(running.vm) / disk_file("vda", 1)
        self.do(hypervisor, running.make(vda=0))
        look_again = getattr(take_snapshot, looks)

        def come_first(*given: Any) -> Any:
            go_over(host, running.vm, layer)
            return look_again(*given)

        monkeypatch.setattr(take_snapshot, looks, come_first)
        answer = (hypervisor.resolve if looks == "give_up" else hypervisor.execute)(order, scope())
        assert isinstance(answer, Done)
        monkeypatch.undo()
        self.reaches(hypervisor, order, already=True)
        running.carried_out(order)

    def test_a_snapshot_is_answered_once_the_guest_begins_above_it_whenever_it_begins_and_made_good_after_that(
        self, hypervisor: Hypervisor, running: Record, host: Host, directory: Callable[[VmId], Path]
    ) -> None:
        class Died(BaseException):
            """Nothing of the agent runs any more."""

        order, found = running.take(), []
        new, old = (str(directory(running.vm) / disk_file("vda", layer)) for layer in (1, 0))
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(running.vm)

            def configured() -> tuple[str, ...]:
                return Told(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).chains["vda"]

            def die(done: Done) -> None:
                found.append((done, configured(), written_by(domain)["vda"].files))
                raise Died

            with pytest.raises(Died):
                hypervisor.execute(order, OrderScope(time.monotonic, time.monotonic() + 60, answer=die))
            [(done, then, written)] = found
            assert not done.already
            assert then == written == (new, old)
            # what stands below is left to be found, because a merge would make it wrong
            resolved = hypervisor.resolve(order, scope())
            assert isinstance(resolved, Done)
            assert configured() == (new,)
        self.reaches(hypervisor, order, already=True)
        running.carried_out(order)

    def race(
        self, hypervisor: Hypervisor, vm: VmId, host: Host, layer: Path, order: TakeSnapshot
    ) -> tuple[bool, Answer]:
        """A dead agent's call to go over to the layer and its successor's look wait for the guest together. Whether
        the call came in time, and what the look found."""
        found: list[Answer] = []
        refused: list[libvirt.libvirtError] = []

        def hold() -> None:
            with closing(libvirt.open(host.uri)) as connection:
                ask_qemu(connection.lookupByUUIDString(vm), "query-status")

        def come_late() -> None:
            try:
                go_over(host, vm, layer)
            except libvirt.libvirtError as error:
                refused.append(error)

        calls = [Thread(target=each) for each in (
            hold, come_late, lambda: found.append(hypervisor.resolve(order, scope()))
        )]  # fmt: skip
        [process] = qemus(vm)
        os.kill(process, signal.SIGSTOP)
        try:
            calls[0].start()
            with closing(libvirt.open(host.uri)) as connection:
                domain = connection.lookupByUUIDString(vm)
                deadline = time.monotonic() + 20
                while domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OCCUPIED:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            for call in calls[1:]:
                call.start()
        finally:
            os.kill(process, signal.SIGCONT)
        for call in calls:
            call.join(60)
            assert not call.is_alive()
        return not refused, found[0]

    def test_what_is_kept_of_a_guest_nobody_else_can_read(
        self, hypervisor: Hypervisor, running: Record, directory: Callable[[VmId], Path]
    ) -> None:
        self.carry_out(hypervisor, running, running.take(memory=FIRST))
        self.do(hypervisor, SaveGuest(vm=running.vm, memory=SECOND))
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in directory(running.vm).iterdir()}
        for name in ("memory.1", "memory.2", "vda.qcow2", "vda.1.qcow2"):
            assert modes[name] == 0o600, (name, oct(modes[name]))


class TestLibvirtVolumes(Layers, VolumeContract):
    @pytest.fixture
    def deaf(self) -> Callable[[VmId], None]:
        # firmware that finds nothing to boot hears no request to unplug
        return lambda vm: None

    @pytest.fixture
    def lost(self, host: Host) -> Iterator[VmId]:
        lost = new_id()
        directory = host.local / "vmorch/vms" / lost
        directory.mkdir()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", directory / "vda.qcow2", "1G"], check=True)
        yield lost
        shutil.rmtree(directory, ignore_errors=True)


class Meanwhile(OrderScope):
    """An order's scope in which something happens once, as soon as a file is there."""

    def __init__(self, file: Path, happen: Callable[[], None]) -> None:
        super().__init__(time.monotonic, time.monotonic() + 60)
        self._file, self._happen, self.happened = file, happen, False

    def check(self) -> None:
        if self._file.exists() and not self.happened:
            self.happened = True
            self._happen()
        super().check()


class TestLibvirtBackups(Layers, BackupContract):
    @pytest.fixture
    def target(self, hypervisor: Hypervisor) -> Target:
        return Target(name="main", id=hypervisor.facts().backup_targets["main"])

    @pytest.fixture
    def guest_writes(self, host: Host) -> Callable[[VmId, str, int, int], None]:
        def write(vm: VmId, disk: str, cluster: int, byte: int) -> None:
            with closing(libvirt.open(host.uri)) as connection:
                domain = connection.lookupByUUIDString(vm)
                by_monitor(domain, disk, f"write -P {byte} {cluster * CLUSTER_SIZE} {CLUSTER_SIZE}")

        return write

    @pytest.fixture
    def damage(self, host: Host) -> Callable[[BackupId, str], None]:
        def change(backup: BackupId, disk: str) -> None:
            path = host.local / "backups" / backup / f"{disk}.qcow2"
            data = bytearray(path.read_bytes())
            # the last cluster of the file holds data
            data[-5] ^= 1
            path.write_bytes(data)

        return change

    @pytest.fixture
    def kept(self, host: Host) -> Callable[[], Collection[str]]:
        return lambda: {str(each.relative_to(host.local)) for each in (host.local / "backups").rglob("*")}

    def test_bitmaps_are_kept_for_the_last_two_and_libvirt_keeps_nothing(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host
    ) -> None:
        chain: list[Saved] = []
        for _ in range(4):
            chain.append(self.take(hypervisor, record, target, *chain))
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(record.vm)
            assert not domain.listAllCheckpoints()
        assert noted(host, record.vm) == {note_name(each.backup) for each in chain[-2:]}

    def test_a_guest_that_went_off_in_the_middle_leaves_nothing_in_libvirts_books(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host
    ) -> None:
        first = self.take(hypervisor, record, target)
        order = self.order(record, target, first)
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(record.vm)
            # as an agent leaves it that dies between two calls, and whose guest stops then
            recall(domain, ["vda", "vdb"], first.backup)
            self.stop(hypervisor, record)
            assert domain.listAllCheckpoints()
            answer = hypervisor.resolve(order, scope())
            assert isinstance(answer, Failed)
            assert answer.code == "interrupted"
            assert not domain.listAllCheckpoints()
        second = self.do(hypervisor, order).saved
        assert second is not None
        assert (second.kind, second.why) == ("full", "the VM is off")

    def test_what_was_noted_of_a_guest_that_lost_its_power_is_not_believed(
        self, hypervisor: Hypervisor, record: Record, target: Target, guest_writes: Write, restored: Restore
    ) -> None:
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 0, 1)
        [process] = qemus(record.vm)
        os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while hypervisor.observe(record.vm).power == "running":
            assert time.monotonic() < deadline
        self.start(hypervisor, record)
        guest_writes(record.vm, "vda", 1, 2)
        second = self.take(hypervisor, record, target, first)
        assert (second.kind, second.why) == ("full", "the writes to vda since the last one are not noted")
        guest_writes(record.vm, "vda", 2, 3)
        third = self.take(hypervisor, record, target, second)
        assert third.kind == "incremental"
        assert restored(second, third)["vda"] == restored(second)["vda"] | {2: 3}

    def test_scattered_small_writes_take_little_more_than_their_own_bytes(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host, guest_writes: Write
    ) -> None:
        guest_writes(record.vm, "vda", 3, 9)
        first = self.take(hypervisor, record, target)
        parts = {each * 5 * CLUSTER_SIZE + each % 16 * PART: each for each in range(1, 65)}
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(record.vm)
            for at, byte in parts.items():
                by_monitor(domain, "vda", f"write -P {byte} {at} {PART}")
        second = self.take(hypervisor, record, target, first)
        assert second.kind == "incremental"
        taken = {disk.name: disk.bytes // PART for disk in second.disks}
        # a header and two tables of what is used; and two of what is where, but nothing was written to vdb
        assert taken == {"vda": len(parts) + 5, "vdb": 3}
        self.do(hypervisor, VerifyBackup(target=target, chain=(first, second)))
        vm = VmId(str(uuid4()))
        self.do(hypervisor, self.restoring(vm, target, (first, second), "vda"))
        found = host.local / "vmorch/vms" / vm / "vda.qcow2"
        reads = [word for at, byte in parts.items() for word in ("-c", f"read -P {byte} {at} {PART}")]
        qemu_io("-r", "-f", "qcow2", *reads, "-c", f"read -P 9 {3 * CLUSTER_SIZE} {CLUSTER_SIZE}", found)
        self.cleared(hypervisor, vm)

    @pytest.mark.parametrize("what", ["withdrawn", "power lost", "guest off"])
    def test_what_is_broken_off_while_it_is_read_leaves_nothing(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host, guest_writes: Write,
        restored: Restore, kept: Callable[[], Collection[str]], what: str,
    ) -> None:  # fmt: skip
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 0, 1)
        before, order = set(kept()), self.order(record, target, first)
        begun = host.local / "backups" / draft_of(order.backup) / "vda.qcow2"

        def break_off() -> None:
            if what == "withdrawn":
                breaking.withdraw()
            elif what == "power lost":
                [process] = qemus(record.vm)
                os.kill(process, signal.SIGKILL)
            else:
                with closing(libvirt.open(host.uri)) as connection:
                    connection.lookupByUUIDString(record.vm).destroy()

        breaking = Meanwhile(begun, break_off)
        if what == "withdrawn":
            with pytest.raises(Withdrawn):
                hypervisor.execute(order, breaking)
        else:
            answer = hypervisor.execute(order, breaking)
            assert isinstance(answer, Failed)
            assert answer.code == "backup-failed"
        assert breaking.happened
        assert set(kept()) == before
        with closing(libvirt.open(host.uri)) as connection:
            assert not connection.lookupByUUIDString(record.vm).listAllCheckpoints()
        if what != "withdrawn":
            self.start(hypervisor, record)
        # what a QEMU noted that is killed is not on the disk
        assert noted(host, record.vm) == (set() if what == "power lost" else {note_name(first.backup)})
        guest_writes(record.vm, "vda", 1, 2)
        second = self.take(hypervisor, record, target, first)
        assert second.kind == ("full" if what == "power lost" else "incremental")
        chain = (second,) if second.kind == "full" else (first, second)
        assert restored(*chain)["vda"] == {0: 1, 1: 2}

    @pytest.mark.parametrize("withdrawn", [True, False])
    def test_a_daemon_that_was_restarted_while_it_is_read_is_asked_anew(
        self, hypervisor: LibvirtHypervisor, record: Record, target: Target, host: Host, guest_writes: Write,
        restored: Restore, kept: Callable[[], Collection[str]], withdrawn: bool,
    ) -> None:  # fmt: skip
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 0, 1)
        before, order = set(kept()), self.order(record, target, first)
        begun = host.local / "backups" / draft_of(order.backup) / "vda.qcow2"

        def restart() -> None:
            host.kill("libvirtd")
            host.start("libvirtd")
            hypervisor.reconnect()
            if withdrawn:
                restarting.withdraw()

        restarting = Meanwhile(begun, restart)
        if withdrawn:
            with pytest.raises(Withdrawn):
                hypervisor.execute(order, restarting)
            assert set(kept()) == before
        else:
            answer = hypervisor.execute(order, restarting)
            assert isinstance(answer, Done)
            assert answer.saved is not None
            assert restored(first, answer.saved)["vda"] == {0: 1}
        assert restarting.happened
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(record.vm)
            assert domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE
            assert not domain.listAllCheckpoints()
        latest = () if withdrawn else (order.backup,)
        assert noted(host, record.vm) == {note_name(each) for each in (first.backup, *latest)}

    def test_what_the_guest_overwrites_while_it_is_read_is_in_the_next_one(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host, guest_writes: Write,
        restored: Restore,
    ) -> None:  # fmt: skip
        first = self.take(hypervisor, record, target)
        for cluster in (0, 1, 3):
            guest_writes(record.vm, "vda", cluster, 10 + cluster)
            guest_writes(record.vm, "vdb", cluster, 20 + cluster)
        order = self.order(record, target, first)
        begun = host.local / "backups" / draft_of(order.backup) / "vda.qcow2"

        def overwrite() -> None:
            for cluster in range(4):
                guest_writes(record.vm, "vda", cluster, 30 + cluster)
                guest_writes(record.vm, "vdb", cluster, 40 + cluster)

        busy = Meanwhile(begun, overwrite)
        answer = hypervisor.execute(order, busy)
        assert busy.happened
        assert isinstance(answer, Done)
        second = answer.saved
        assert second is not None
        assert second.kind == "incremental"
        third = self.take(hypervisor, record, target, first, second)
        assert restored(first, second) == {"vda": {0: 10, 1: 11, 3: 13}, "vdb": {0: 20, 1: 21, 3: 23}}
        assert restored(first, second, third) == {
            "vda": {each: 30 + each for each in range(4)},
            "vdb": {each: 40 + each for each in range(4)},
        }

    @pytest.mark.parametrize("mounted", [True, False])
    def test_a_job_that_an_agent_left_is_ended_by_its_successor(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host, mounted: bool
    ) -> None:
        first = self.take(hypervisor, record, target)
        order = self.order(record, target, first)

        class Died(BaseException):
            """Nothing of the agent runs any more."""

        begun = host.local / "backups" / draft_of(order.backup) / "vda.qcow2"
        with closing(libvirt.open(host.uri)) as connection:
            domain = connection.lookupByUUIDString(record.vm)

            def die(*_: object) -> None:
                raise Died

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(take_backup._Taking, "undo", die)
                patch.setattr("hostagent.commands._backup_job.Export.read", die)
                with pytest.raises(Died):
                    hypervisor.execute(order, scope())
            assert begun.parent.name in domain.backupGetXMLDesc(0)
            away = begun.parent.parent.with_name("away")
            if not mounted:
                begun.parent.parent.rename(away)
            answer = hypervisor.resolve(order, scope())
            assert isinstance(answer, Failed)
            assert answer.code == "interrupted"
            with pytest.raises(libvirt.libvirtError):
                domain.backupGetXMLDesc(0)
            assert not domain.listAllCheckpoints()
            if not mounted:
                away.rename(begun.parent.parent)
        # nor does a call of it that is still under way find files
        assert begun.parent.exists() == (not mounted)
        again = self.do(hypervisor, order).saved
        assert again is not None
        assert again.kind == "incremental"

    def test_a_job_that_somebody_ends_makes_no_backup(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host, guest_writes: Write,
        kept: Callable[[], Collection[str]],
    ) -> None:  # fmt: skip
        first = self.take(hypervisor, record, target)
        guest_writes(record.vm, "vda", 0, 1)
        before, order = set(kept()), self.order(record, target, first)
        with closing(libvirt.open(host.uri)) as connection, pytest.MonkeyPatch.context() as patch:
            domain = connection.lookupByUUIDString(record.vm)

            def abort(increment: Increment) -> None:
                whole(increment)
                finished.append(increment)
                # everything was read
                if len(finished) == 2:
                    domain.abortJob()

            whole, finished = Increment.finish, list[Increment]()
            patch.setattr(Increment, "finish", abort)
            answer = hypervisor.execute(order, scope())
        assert len(finished) == 2
        assert isinstance(answer, Failed)
        assert (answer.code, answer.message) == ("backup-failed", "the job was ended by somebody else")
        assert set(kept()) == before

    def test_nobody_else_can_read_a_backup(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host
    ) -> None:
        saved = self.take(hypervisor, record, target)
        self.stop(hypervisor, record)
        for each in (saved, self.take(hypervisor, record, target)):
            for path in (host.local / "backups" / each.backup).iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    def test_a_file_that_names_another_one_is_never_followed(
        self, hypervisor: Hypervisor, record: Record, target: Target, host: Host, tmp_path: Path
    ) -> None:
        saved = self.take(hypervisor, record, target)
        path = host.local / "backups" / saved.backup / "vda.qcow2"
        qemu_img = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/machine-id", path, "1G"]
        path.unlink()
        subprocess.run(qemu_img, check=True)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        forged = replace(saved, disks=tuple(replace(each, sha256=sha) for each in saved.disks))
        answer = self.refused(hypervisor, VerifyBackup(target=target, chain=(forged,)), "backup-damaged")
        assert any("names a backing file" in each for each in answer.blockers)


def qemus(vm: VmId) -> list[int]:
    """The processes of the VM's guest."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if words[0].endswith("qemu-system-x86_64") and any(vm in word for word in words):
                found.append(int(process.name))
    return found


def noted(host: Host, vm: VmId) -> set[str]:
    """The names under which it is noted where the guest writes."""
    with closing(libvirt.open(host.uri)) as connection:
        found = bitmaps_of(connection.lookupByUUIDString(vm)).values()
    return {each.name for layers in found for layer in layers for each in layer}


def by_monitor(domain: Any, disk: str, order: str) -> None:
    """Have QEMU do to a guest's disk what the guest could do."""
    device = f"/machine/peripheral/{Told(domain.XMLDesc(0)).aliases[disk]}/virtio-backend"
    flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    said = libvirt_qemu.qemuMonitorCommand(domain, f'qemu-io -d {device} "{order}"', flags)
    assert not said.strip(), said


def qemu_io(*words: str | Path) -> None:
    done = subprocess.run(["qemu-io", *words], check=True, capture_output=True, text=True)
    assert "error" not in done.stdout.lower(), done.stdout
