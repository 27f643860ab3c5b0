"""A guest on its way between real hosts, as an operator sees it; what the product says is held against the guest."""

import itertools
import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.integration.lab_fixtures import Away, Site, needs_guest, tiny_image, until

pytestmark = [*needs_guest, pytest.mark.timeout(300)]

MARGIN = 1.5
"""Seconds by which a guest on an emulated processor of a loaded machine may be late besides."""


@pytest.fixture(scope="module")
def mover(lab_site: Site) -> Iterator[str]:
    """The id of a guest on shared storage."""
    lab_site.clean()
    image, digest = tiny_image()
    lab_site.cli.run("image", "add", "tiny", "--file", str(image), "--sha256", digest)
    lab_site.cli.run("vm", "create", "mover", "--image", "tiny", "--memory", "128Mi", "--storage", "shared")
    yield str(lab_site.api.vm("mover")["id"])
    lab_site.clean()
    lab_site.cli.run("image", "remove", "tiny", "--yes")


def other(site: Site, host: str) -> str:
    return next(each.name for each in site.lab.hosts if each.name != host)


def boot_of(site: Site, vm: str) -> str:
    """Which boot of the guest this is, by its own word."""
    said = until(lambda: site.ask_guest(site.api.vm(vm)["addresses"][0], "/id.json"), 60, "the guest's answer")
    return str(said["boot"])


def carries(site: Site, operation: str) -> None:
    """Return once the guest's memory is on its way."""
    until(lambda: (site.api.operation(operation)["pace"] or {}).get("remaining"), 60, "the transfer")


class Heard:
    """The moments at which each tick of a guest was first to be read on any host's serial log."""

    def __init__(self, site: Site, vm: str) -> None:
        self.at: dict[int, float] = {}
        self._logs = [host.local / "vmorch/vms" / vm / "serial.log" for host in site.lab.hosts]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> "Heard":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._stop.wait(0.01):
            for log in self._logs:
                try:
                    text = log.read_text(errors="replace")
                except FileNotFoundError:
                    continue
                for number in re.findall(r"^tick \S+ (\d+) ", text, re.MULTILINE):
                    self.at.setdefault(int(number), time.monotonic())

    def longest_silence(self) -> float:
        """The longest time between two ticks, which are a second apart when nothing holds the guest up."""
        moments = sorted(self.at.items())[1:]
        return max(later[1] - sooner[1] for sooner, later in itertools.pairwise(moments))


def slowly(site: Site, vm: str, **more: object) -> str:
    """A migration that takes a while; its operation."""
    return str(site.api.change(f"/v1/vms/{vm}/migrate", {"bandwidth": 8, **more})["operation"])


def test_a_running_guest_moves_and_goes_on_in_the_same_boot(lab_site: Site, mover: str) -> None:
    site, source = lab_site, lab_site.api.vm(mover)["host"]
    boot = boot_of(site, mover)
    with Heard(site, mover) as heard:
        until(lambda: len(heard.at) > 2, 20, "ticks before")
        shown = site.cli.run("vm", "migrate", "mover", "-m", "DIMM swap")
        ticks = max(heard.at)
        until(lambda: max(heard.at) > ticks + 2, 20, "ticks after")
    operation = site.api.items("/v1/operations", vm="mover")[0]
    assert 0 < operation["pause"] < 5
    assert sorted(heard.at) == list(range(min(heard.at), max(heard.at) + 1))
    assert heard.longest_silence() < 1 + operation["pause"] + MARGIN
    assert f"stood still for {operation['pause'] * 1000:.0f}ms" in shown
    vm = site.api.vm(mover)
    assert (vm["host"], vm["power"], vm["traces"]) == (other(site, source), "running", [])
    assert f"mover is running on {vm['host']}" in shown
    assert boot_of(site, mover) == boot
    assert site.domains(source) == {}
    assert site.domains(vm["host"]) == {mover: True}
    moved = site.api.items("/v1/events", subject="vm/mover", kind="vm.migrated")[-1]
    assert moved["reason"] == "DIMM swap"


def test_its_progress_is_a_verdict_and_its_limits_can_be_changed_on_the_way(lab_site: Site, mover: str) -> None:
    site = lab_site
    operation = slowly(site, mover)
    carries(site, operation)
    shown = site.cli.run("op", "describe", operation)
    assert "Migration pass" in shown
    assert " left" in shown
    site.cli.run("op", "tune", operation, "--bandwidth", "1000", "--max-downtime", "1s")
    assert site.api.over(operation, 30)["state"] == "succeeded"
    answered = site.api.items("/v1/events", subject="vm/mover", kind="vm.tuning-answered")[-1]
    assert not answered["data"].get("code")


def test_cancelled_on_the_way_it_stays_where_it_was_within_seconds(lab_site: Site, mover: str) -> None:
    site, source = lab_site, lab_site.api.vm(mover)["host"]
    boot, operation = boot_of(site, mover), slowly(site, mover)
    carries(site, operation)
    asked = time.monotonic()
    site.cli.run("op", "cancel", operation)
    assert time.monotonic() - asked < 8
    vm = site.api.vm(mover)
    assert (vm["host"], vm["power"], vm["traces"]) == (source, "running", [])
    assert site.domains(other(site, source)) == {}
    assert boot_of(site, mover) == boot
    destination = site.api.host(other(site, source))
    assert set(destination["promised"].values()) == {0}


def test_a_guest_that_writes_faster_than_it_is_carried_is_given_up_with_the_reason(
    lab_site: Site, mover: str
) -> None:
    site, source = lab_site, lab_site.api.vm(mover)["host"]
    site.in_guest(source, mover, "/sbin/dirty", "40")
    try:
        operation = slowly(site, mover, stall=6, autoconverge=False)
        ended = site.api.over(operation, 120)
        assert (ended["state"], ended["code"]) == ("undone", "migration-stalled"), ended
        assert "no progress" in ended["message"]
        assert site.api.vm(mover)["host"] == source
    finally:
        site.in_guest(site.api.vm(mover)["host"], mover, "/sbin/dirty", "0")


def test_everything_that_stands_in_the_way_is_named_at_once_and_nothing_begins(lab_site: Site, mover: str) -> None:
    site = lab_site
    source = site.api.vm(mover)["host"]
    local = site.api.create("stay", placing={"host": source})
    site.cli.run("host", "cordon", other(site, source), "--reason", "DIMM swap")
    try:
        shown = site.cli.run("vm", "migrate", "stay", "--to", other(site, source), exits=6)
        assert "cordoned (DIMM swap)" in shown
        assert "--copy-disks carries it along" in shown
        assert site.api.vm(local)["operation"] is None
    finally:
        site.cli.run("host", "uncordon", other(site, source))
        site.api.on_vm("stay", "delete")


def test_when_its_source_dies_on_the_way_nothing_is_done_until_that_host_answers(lab_site: Site, mover: str) -> None:
    site, source = lab_site, lab_site.api.vm(mover)["host"]
    operation = slowly(site, mover)
    carries(site, operation)
    site.host(source).power_cut()
    ended = site.api.over(operation, 150)
    assert (ended["state"], ended["code"]) == ("stuck", "outcome-unknown"), ended
    vm = site.api.vm(mover)
    assert vm["state"] == "unknown"
    assert vm["frozen"]["source"]["power"] == "unknown"
    shown = site.cli.run("vm", "start", "mover", exits=6)
    assert "error[outcome-unknown]" in shown
    assert "vmorch vm resolve mover" in site.cli.run("vm", "describe", "mover")
    site.host(source).boot()

    def settled() -> bool:
        try:
            seen = site.api.vm(mover)
        except (Away, AssertionError):
            return False
        return seen["frozen"] is None and not seen["traces"] and not seen["operation"]

    until(settled, 120, "the VM's settling")
    vm = site.api.vm(mover)
    assert (vm["host"], vm["power"]) == (source, "off")
    assert {host.name for host in site.lab.hosts if mover in host.qemus()} == set()
    site.cli.run("vm", "start", "mover")


def test_an_operator_may_say_where_a_frozen_vm_is_and_the_rest_is_cleared_later(lab_site: Site, mover: str) -> None:
    site, source = lab_site, lab_site.api.vm(mover)["host"]
    destination = other(site, source)
    operation = slowly(site, mover)
    carries(site, operation)
    site.host(source).power_cut()
    try:
        assert site.api.over(operation, 150)["code"] == "outcome-unknown"
        refused = site.cli.run("vm", "resolve", "mover", destination, "--yes", exits=6)
        assert "error[reason-missing]" in refused
        refused = site.cli.run("vm", "resolve", "mover", destination, "-m", "the source burnt", exits=6)
        assert "error[confirmation-missing]" in refused
        site.cli.run("vm", "resolve", "mover", destination, "-m", "the source burnt", "--yes")
        vm = site.api.vm(mover)
        assert (vm["host"], vm["frozen"], vm["traces"]) == (destination, None, [source])
        resolved = site.api.items("/v1/events", subject="vm/mover", kind="vm.resolved")[-1]
        assert resolved["reason"] == "the source burnt"
        assert set(resolved["data"]["evidence"]) == {"why", "source", "destination"}
    finally:
        site.host(source).boot()
    until(lambda: not site.api.vm(mover)["traces"] and not site.api.vm(mover)["operation"], 120, "a clear source")
    assert site.domains(source) == {}
