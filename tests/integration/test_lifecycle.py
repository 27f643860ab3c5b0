"""A VM's whole life on real hosts: what the product says is held against the guest, libvirt and the files."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_fixtures import BLANK, Site, needs_guest, needs_lab, tiny_image, until, web_server

BOOT_SECONDS = 120.0
"""For a guest on an emulated processor of a loaded machine."""


@dataclass(frozen=True)
class Guest:
    """The VM `web` on hv-02, which runs the small guest."""

    site: Site
    id: str
    host: str = "hv-02"
    name: str = "web"

    def seen(self) -> dict[str, Any]:
        return self.site.api.vm(self.id)

    def says(self) -> dict[str, str]:
        """Who the guest says it is, asked over the network."""
        addresses = self.seen()["addresses"]
        assert addresses, "the guest has no address"
        said = until(lambda: self.site.ask_guest(addresses[0], "/id.json"), BOOT_SECONDS, "the guest's web server")
        return dict(said)

    def ticks(self) -> int:
        """How often the guest has said on its console that it lives."""
        return len(re.findall(r"^tick ", self.site.serial_log(self.host, self.id), re.MULTILINE))

    def ticks_on(self) -> None:
        before = self.ticks()
        until(lambda: self.ticks() > before + 1, 30, "the guest's next ticks")

    def run(self, *argv: str) -> str:
        return self.site.in_guest(self.host, self.id, *argv)

    def memory(self) -> int:
        """MiB that the guest's kernel has."""
        return int(self.run("/bin/busybox", "sed", "-n", "s/MemTotal: *\\([0-9]*\\).*/\\1/p", "/proc/meminfo")) // 1024

    def processors(self) -> str:
        return self.run("/bin/busybox", "cat", "/sys/devices/system/cpu/present").strip()

    def ticks_on_disk(self) -> set[str]:
        """The boots of which the guest's own disk has a record."""
        return {line.split()[0] for line in self.run("/bin/busybox", "cat", "/data/ticks").splitlines() if line}


@pytest.fixture(scope="module")
def guest(lab_site: Site) -> Iterator[Guest]:
    """One guest for the module; deleted, with the proof that nothing stays, after it."""
    lab_site.clean()
    image, digest = tiny_image()
    lab_site.cli.run("image", "add", "tiny", "--file", str(image), "--sha256", digest)
    lab_site.cli.run(
        "vm", "create", "web", "--host", "hv-02", "--image", "tiny", "--label", "app=web",
        "--memory", "128Mi", "--max-memory", "160Mi", "--vcpus", "1", "--max-vcpus", "2",
    )  # fmt: skip
    yield Guest(lab_site, lab_site.api.vm("web")["id"])
    lab_site.clean()
    lab_site.cli.run("image", "remove", "tiny", "--yes")


class TestOneGuest:
    """Every test finds the guest running and leaves it running."""

    pytestmark = needs_guest

    def test_it_runs_where_it_was_asked_to_and_got_its_seed(self, guest: Guest) -> None:
        vm = guest.seen()
        assert (vm["state"], vm["host"], vm["labels"]) == ("running", "hv-02", {"app": "web"})
        assert guest.site.domains("hv-02") == {guest.id: True}
        assert guest.site.domains("hv-01") == {}
        said = guest.says()
        assert (said["name"], said["instance_id"]) == ("web", guest.id)
        assert f"name=web instance={guest.id}" in guest.site.serial_log("hv-02", guest.id)
        guest.ticks_on()

    def test_a_paused_guest_stands_still_and_goes_on_after_a_resume(self, guest: Guest) -> None:
        boot = guest.says()["boot"]
        guest.site.cli.run("vm", "pause", "web")
        assert guest.seen()["state"] == "paused"
        halted = guest.ticks()
        assert guest.site.virsh("hv-02", "domstate", guest.id).strip() == "paused"
        assert guest.site.ask_guest(guest.seen()["addresses"][0], "/id.json") is None
        assert guest.ticks() == halted
        guest.site.cli.run("vm", "resume", "web")
        assert guest.seen()["state"] == "running"
        guest.ticks_on()
        assert guest.says()["boot"] == boot

    def test_memory_and_vcpus_change_live_up_to_their_maximum_and_beyond_it_at_the_next_boot(
        self, guest: Guest
    ) -> None:
        assert guest.processors() == "0"
        before = guest.memory()
        guest.site.cli.run("vm", "resize", "web", "--memory", "152Mi", "--vcpus", "2")
        until(lambda: guest.memory() == before + 24, 30, "24 MiB more in the guest")
        until(lambda: guest.processors() == "0-1", 30, "a second processor in the guest")
        until(lambda: guest.seen()["pending"] == {}, 30, "nothing pending")
        guest.site.cli.run("vm", "resize", "web", "--memory", "224Mi")
        assert guest.seen()["pending"] == {"memory": {"live": 152, "asked": 224}}
        assert guest.memory() == before + 24
        guest.site.cli.run("vm", "reboot", "web")
        assert guest.seen()["pending"] == {}
        assert guest.memory() > before + 24
        assert guest.seen()["memory"] == 224

    def test_a_stopped_guest_starts_again_from_the_same_disk(self, guest: Guest) -> None:
        first = guest.says()["boot"]
        boots = guest.site.boots("hv-02", guest.id)
        assert first in guest.ticks_on_disk()
        guest.site.cli.run("vm", "stop", "web")
        assert guest.seen()["state"] == "off"
        assert guest.site.domains("hv-02") == {guest.id: False}
        guest.site.cli.run("vm", "start", "web")
        second = guest.says()["boot"]
        assert second != first
        assert guest.site.boots("hv-02", guest.id) == boots + 1
        until(lambda: {first, second} <= guest.ticks_on_disk(), 30, "ticks of both boots on the disk")

    def test_a_rename_and_labels_need_no_host_and_leave_the_guest_alone(self, guest: Guest) -> None:
        boot = guest.says()["boot"]
        guest.site.cli.run("vm", "rename", "web", "shop")
        guest.site.cli.run("vm", "label", "shop", "--set", "tier=front", "--remove", "app")
        vm = guest.site.api.vm("shop")
        assert (vm["id"], vm["labels"]) == (guest.id, {"tier": "front"})
        guest.site.cli.run("vm", "describe", "web", exits=3)
        guest.site.cli.run("vm", "rename", "shop", "web")
        assert guest.says()["boot"] == boot


class TestBlank:
    """What does not need a guest that answers."""

    pytestmark = needs_lab

    def test_an_image_comes_from_a_url_and_is_the_bytes_that_were_asked_for(self, site: Site, tmp_path: Path) -> None:
        served = tmp_path / "image"
        served.mkdir()
        (served / "disk.raw").write_bytes(BLANK + b"\1" * 512)
        digest = hashlib.sha256(BLANK + b"\1" * 512).hexdigest()
        with web_server(site, served) as base:
            site.cli.run("image", "add", "fetched", "--url", f"{base}/disk.raw", "--sha256", digest, "--format", "raw")
        image = next(each for each in site.api.items("/v1/images") if each["name"] == "fetched")
        assert (image["digest"], image["size"], image["format"]) == (digest, len(BLANK) + 512, "raw")
        site.api.create("web", image="fetched", start=False)
        site.clean()
        site.cli.run("image", "remove", "fetched", "--yes")

    def test_a_deleted_vm_leaves_nothing_unless_its_disks_shall_stay(self, site: Site) -> None:
        site.api.create("gone", placing={"host": "hv-01"})
        site.cli.run(
            "vm", "create", "kept", "--host", "hv-01", "--image", "blank", "--memory", "64Mi", "--no-start",
            "--extra-disk", "1Gi,shared",
        )  # fmt: skip
        kept = site.api.vm("kept")["id"]
        site.cli.run("vm", "delete", "gone", "--yes")
        assert {path.split("/")[0] for path in site.vm_files("hv-01")} == {kept}
        site.cli.run("vm", "delete", "kept", "--yes", "--keep-disks")
        left = site.vm_files("hv-01")
        assert left == {kept, f"{kept}/vda.qcow2", f"{kept}/vdb.qcow2"}
        assert site.domains("hv-01") == {}
        assert set(site.api.host("hv-01")["promised"].values()) == {0}
        for storage in (site.host("hv-01").local, site.host("hv-01").shared):
            shutil.rmtree(storage / "vmorch/vms" / kept)

    def test_fifty_creates_at_once_promise_no_more_than_there_is_and_libvirt_has_exactly_those(
        self, site: Site
    ) -> None:
        hosts = [host.name for host in site.lab.hosts]
        for name in hosts:
            # memory shall be the scarce thing, on a machine with few processors too
            site.api.change(f"/v1/hosts/{name}/overcommit", {"cpu": 32.0})
        memory = min(int(site.api.host(name)["total"]["memory"]) for name in hosts) // 20

        def create(index: int) -> dict[str, Any]:
            wanted = {"name": f"many-{index}", "image": "blank", "memory": memory, "start": False, "labels": {"a": "b"}}
            answer = site.api.ask("POST", "/v1/vms", wanted)
            return {"status": answer.status, **answer.body}

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(create, range(50)))
        accepted = [each for each in answers if each["status"] == 202]
        refused = [each for each in answers if each["status"] != 202]
        assert {each["code"] for each in refused} == {"no-host-fits"}
        assert len(accepted) == 40
        assert {site.api.over(each["operation"])["state"] for each in accepted} == {"succeeded"}
        wanted: dict[str, set[str]] = {name: set() for name in hosts}
        for vm in site.api.items("/v1/vms"):
            wanted[vm["host"]].add(vm["id"])
        for name in hosts:
            host = site.api.host(name)
            assert host["promised"]["memory"] <= host["total"]["memory"]
            assert set(site.domains(name)) == wanted[name]
        site.cli.run("vm", "delete", "--selector", "a=b", "--yes", "--max-parallel", "16")
        site.assert_empty()
