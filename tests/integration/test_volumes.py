"""Volumes of real guests: what one wrote the other finds, and nothing is deleted that somebody could miss."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from lxml import etree

from deploy.lab.errors import LabError
from deploy.lab.host_files import SHARED_DIR
from tests.integration.lab_fixtures import Site, needs_guest, tiny_image, until

pytestmark = [*needs_guest, pytest.mark.timeout(300)]
CALLED = "for each in /sys/block/vd*; do [ \"$(cat $each/serial)\" = {disk} ] && echo ${{each##*/}}; done"
"""What the guest calls the disk that has this name; it counts in the order in which it finds them."""


class Guests:
    """Two guests on two hosts that see the same storage, and a way to type in them."""

    def __init__(self, site: Site) -> None:
        self.site, self.api = site, site.api

    def shell(self, vm: str, script: str) -> str:
        found = self.api.vm(vm)
        return self.site.in_guest(str(found["host"]), str(found["id"]), "/bin/sh", "-c", script).strip()

    def up(self, vm: str) -> None:
        def answers() -> bool:
            try:
                return "ok" in self.shell(vm, "echo ok")
            except (AssertionError, LabError):
                return False

        until(answers, 90, f"the agent of {vm}")

    def gib(self, vm: str, disk: str) -> int:
        """How large the guest sees its disk, in GiB; 0 if it sees none."""
        device = self.device(vm, disk)
        return int(self.shell(vm, f"cat /sys/block/{device}/size")) // (2 * 1024**2) if device else 0

    def device(self, vm: str, disk: str) -> str:
        """What the guest calls the disk; empty if it sees none."""
        return self.shell(vm, CALLED.format(disk=disk))

    def write(self, vm: str, disk: str) -> str:
        """Put random bytes on a raw disk; their sum."""
        device = self.device(vm, disk)
        said = self.shell(
            vm,
            "dd if=/dev/urandom of=/tmp/bytes bs=64k count=20 2>/dev/null; "
            f"dd if=/tmp/bytes of=/dev/{device} bs=64k conv=notrunc 2>/dev/null; sync; md5sum < /tmp/bytes",
        )
        return said.split()[0]

    def read(self, vm: str, disk: str) -> str:
        device = self.device(vm, disk)
        said = self.shell(
            vm, f"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/{device} bs=64k count=20 2>/dev/null | md5sum"
        )
        return said.split()[0]

    def volume(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.site.cli.run("volume", "describe", name, "-o", "json"))["item"]
        return found

    def names(self, *arguments: str) -> list[str]:
        said = json.loads(self.site.cli.run("volume", "list", *arguments, "-o", "json", "--quiet"))
        return [each["name"] for each in said["items"]]


@pytest.fixture(scope="module")
def guests(lab_site: Site) -> Iterator[Guests]:
    lab_site.clean()
    image, digest = tiny_image()
    lab_site.cli.run("image", "add", "tiny", "--file", str(image), "--sha256", digest)
    made = Guests(lab_site)
    for name, host in (("one", "hv-01"), ("two", "hv-02")):
        body = {"name": name, "image": "tiny", "memory": 128, "storage": "shared", "placing": {"host": host}}
        lab_site.api.do("/v1/vms", body)
        made.up(name)
    yield made
    lab_site.clean()
    lab_site.cli.run("image", "remove", "tiny", "--yes")


@pytest.fixture(autouse=True)
def without_volumes(guests: Guests) -> Iterator[None]:
    """Each test begins with two guests that run and have no volume."""
    yield
    for name in guests.names():
        found, run = guests.volume(name), guests.site.cli.run
        if found["state"] == "attached":
            run("volume", "detach", name)
        if found["state"] != "quarantined":
            run("volume", "delete", name, "-y")
        run("volume", "delete", name, "-y")
    assert guests.names() == []


def test_a_volume_goes_from_one_running_guest_to_another_with_what_it_holds(guests: Guests) -> None:
    run = guests.site.cli.run
    run("volume", "create", "data", "--size", "1Gi")
    assert guests.gib("one", "vdb") == 0
    assert "is a disk of one" in run("volume", "attach", "data", "one")
    until(lambda: guests.gib("one", "vdb") == 1, 10, "the disk in the guest")
    written = guests.write("one", "vdb")
    run("volume", "attach", "data", "two", exits=6)

    assert "volume data is larger" in run("volume", "resize", "data", "2Gi")
    until(lambda: guests.gib("one", "vdb") == 2, 10, "the larger disk in the guest")
    guests.api.on_vm("one", "snapshot", name="held")
    run("volume", "detach", "data", exits=6)
    guests.api.on_vm("one", "delete-snapshot", snapshot="held")

    run("volume", "detach", "data")
    until(lambda: guests.gib("one", "vdb") == 0, 10, "the guest without the disk")
    assert guests.volume("data")["state"] == "available"
    run("volume", "clone", "data", "copy")
    for name, disk in (("data", "vdb"), ("copy", "vdc")):
        run("volume", "attach", name, "two")
        until(lambda disk=disk: guests.gib("two", disk) == 2, 10, f"{disk} in the guest")  # type: ignore[misc]
        assert guests.read("two", disk) == written

    # what was plugged in moves along, and is there after a boot
    guests.api.on_vm("two", "migrate", to="hv-01")
    assert guests.read("two", "vdb") == written
    guests.api.on_vm("two", "reboot", force=True)
    guests.up("two")
    assert (guests.read("two", "vdb"), guests.read("two", "vdc")) == (written, written)


def test_a_disk_that_libvirt_forgot_while_it_plugged_it_in_is_plugged_in_once(guests: Guests) -> None:
    run = guests.site.cli.run
    run("volume", "create", "halfway", "--size", "1Gi")
    host, vm = guests.site.host("hv-01"), str(guests.api.vm("one")["id"])
    path = f"{SHARED_DIR}/vmorch/{guests.volume('halfway')['path']}"
    # what QEMU has done when libvirtd is killed before it notes that
    domain = etree.fromstring(str(host.run(["virsh", "dumpxml", vm]).stdout))
    ports = {each.get("index") for each in domain.iterfind(".//controller[@model='pcie-root-port']")}
    taken = {str(int(each.get("bus", "0"), 16)) for each in domain.iterfind(".//address[@type='pci']")}
    for execute, arguments in (
        ("blockdev-add", {"driver": "file", "filename": path, "node-name": "libvirt-9-storage"}),
        ("blockdev-add", {"driver": "qcow2", "file": "libvirt-9-storage", "node-name": "libvirt-9-format"}),
        ("device_add", {"driver": "virtio-blk-pci", "bus": f"pci.{min(ports - taken)}", "drive": "libvirt-9-format",
                        "id": "virtio-disk1", "serial": "vdb"}),
    ):  # fmt: skip
        order = json.dumps({"execute": execute, "arguments": arguments})
        assert "error" not in guests.site.virsh("hv-01", "qemu-monitor-command", vm, order)
    until(lambda: guests.gib("one", "vdb") == 1, 20, "the disk in the guest")

    run("volume", "attach", "halfway", "one")
    until(lambda: guests.gib("one", "vdb") == 1, 10, "the disk in the guest")
    run("volume", "detach", "halfway")
    until(lambda: guests.gib("one", "vdb") == 0, 10, "the guest without the disk")


@pytest.mark.parametrize("victim", ["agent", "libvirtd"])
def test_a_kill_in_the_middle_ends_done_or_undone(guests: Guests, victim: str) -> None:
    run, name = guests.site.cli.run, f"kill-{victim}"
    run("volume", "create", name, "--size", "1Gi")
    for verb in ("attach", "detach"):
        body = {"vm": "one"} if verb == "attach" else {}
        operation = guests.api.change(f"/v1/volumes/{name}/{verb}", body)["operation"]
        until(lambda operation=operation: _begun(guests.api.operation(operation)), 30, verb)  # type: ignore[misc]
        threading.Event().wait(0.02)
        host = guests.site.host("hv-01")
        host.kill(victim)
        host.start(victim)
        end = guests.api.over(operation, 90)
        assert end["state"] in ("succeeded", "undone"), end
        guests.site.connected()
        guests.up("one")
        state = "attached" if (verb == "attach") == (end["state"] == "succeeded") else "available"
        assert guests.volume(name)["state"] == state
        seen = guests.gib("one", "vdb")
        assert seen == (1 if state == "attached" else 0), end
        if state == "available" and verb == "attach":
            run("volume", "attach", name, "one")


def _begun(operation: dict[str, Any]) -> bool:
    return bool(operation["ended_at"]) or any(step["state"] != "waiting" for step in operation["steps"])


def test_the_disks_of_a_deleted_vm_stay_if_they_shall_and_can_be_read(guests: Guests) -> None:
    run = guests.site.cli.run
    body = {"name": "gone", "image": "tiny", "memory": 128, "storage": "shared",
            "extra_disks": [{"size": 1, "storage": "shared"}]}  # fmt: skip
    guests.api.do("/v1/vms", body)
    guests.up("gone")
    written = guests.write("gone", "vdb")
    run("vm", "delete", "gone", "--keep-disks", "-y")
    kept = sorted(name for name in guests.names() if name.startswith("gone-"))
    assert [name.split("-")[1] for name in kept] == ["vda", "vdb"]
    run("volume", "attach", kept[1], "two")
    until(lambda: guests.gib("two", "vdb") == 1, 10, "the disk in the guest")
    assert guests.read("two", "vdb") == written
    run("volume", "detach", kept[1])


def test_a_volume_is_deleted_at_the_second_time_of_asking(guests: Guests) -> None:
    run = guests.site.cli.run
    run("volume", "create", "brief", "--size", "1Gi", "--local", "--host", "hv-01")
    path = guests.site.host("hv-01").local / "vmorch" / guests.volume("brief")["path"]
    assert path.exists()
    run("volume", "delete", "brief", "-y")
    assert guests.volume("brief")["state"] == "quarantined"
    run("volume", "attach", "brief", "one", exits=6)
    run("volume", "restore", "brief")
    run("volume", "delete", "brief", "-y")
    assert path.exists()
    run("volume", "delete", "brief", "-y")
    assert not path.exists()
    assert not path.parent.exists()
    run("volume", "describe", "brief", exits=3)


@pytest.fixture
def lost(guests: Guests) -> Iterator[Path]:
    """A directory of a VM that nobody knows."""
    directory = guests.site.host("hv-02").local / "vmorch/vms" / str(uuid4())
    directory.mkdir(parents=True)
    (directory / "vda.qcow2").write_bytes(b"\0" * 70_000)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_what_nobody_owns_is_shown_set_aside_and_deleted_only_when_asked_again(guests: Guests, lost: Path) -> None:
    run = guests.site.cli.run
    assert guests.names("--orphans") == [lost.name]
    told = json.loads(run("volume", "list", "--orphans", "-o", "json"))["items"][0]
    assert (told["host"], told["storage"], told["files"]) == ("hv-02", "local", ["vda.qcow2"])
    # what somebody owns cannot be set aside
    run("volume", "quarantine", "hv-02", str(guests.api.vm("two")["id"]), "--storage", "shared", exits=3)
    name = f"stray-{lost.name[-12:]}"
    for last in ("restore", "delete"):
        run("volume", "quarantine", "hv-02", lost.name)
        assert not lost.exists()
        assert guests.names("--orphans") == []
        assert guests.volume(name)["state"] == "quarantined"
        run("volume", last, name, *(["-y"] if last == "delete" else []))
        assert lost.exists() == (last == "restore")
        assert name not in guests.names()
        if last == "restore":
            assert guests.names("--orphans") == [lost.name]
