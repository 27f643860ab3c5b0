"""Everything that can break while a guest travels, broken in each part of its way: afterwards the guest runs exactly
once, on the host that the log names, and its memory never stepped back.

An observer outside (tests.chaos.vcpus) watches the processors of every QEMU; the guest counts seconds in its memory
and on its disk. What cannot be settled while a host is silent is settled by itself when it answers again.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.process import send_signal
from tests.chaos.test_services_away import control_processes
from tests.chaos.vcpus import overlaps, read, watched
from tests.integration.lab_fixtures import Away, Site, needs_guest, tiny_image, until

pytestmark = [*needs_guest, pytest.mark.timeout(400)]

SLOW = 16
"""MiB/s: the guest's memory takes some seconds."""
SILENCE = 12.0
"""Seconds that a cable stays out: longer than libvirt's own patience in a lab."""
NAME = "traveller"


class Journey:
    """One guest on its way between the lab's two hosts, and what is broken around it."""

    def __init__(self, site: Site, vm: str) -> None:
        self.site = site
        self.vm = vm
        seen = site.api.vm(vm)
        self.source = str(seen["host"])
        self.destination = next(host.name for host in site.lab.hosts if host.name != self.source)
        self.operation = ""

    def begin(self) -> None:
        asked = {"to": self.destination, "bandwidth": SLOW, "stall": 60}
        self.operation = self.site.api.change(f"/v1/vms/{self.vm}/migrate", asked)["operation"]

    def step(self, label: str) -> str:
        steps = self.site.api.operation(self.operation)["steps"]
        return str(next(each["state"] for each in steps if each["label"] == label))

    # -- parts of the way -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """As soon as it has begun."""

    def transfer(self) -> None:
        def carries() -> Any:
            operation = self.site.api.operation(self.operation)
            assert operation["ended_at"] is None, f"{operation['code']}: {operation['message']}"
            return (operation["pace"] or {}).get("remaining")

        until(carries, 60, "the transfer")

    def switch_over(self) -> None:
        self.transfer()
        with self.site.libvirt(self.source) as connection:
            domain = connection.lookupByUUIDString(self.vm)
            deadline = time.monotonic() + 60
            while domain.state()[0] == 1:
                assert time.monotonic() < deadline, "the guest was never halted for its switch-over"

    def clean_up(self) -> None:
        until(lambda: self.step("migrate") == "done", 60, "the verdict")

    # -- what breaks ------------------------------------------------------------------------------------------------

    def source_agent(self) -> Callable[[], None]:
        return self._daemon(self.source, "agent")

    def destination_agent(self) -> Callable[[], None]:
        return self._daemon(self.destination, "agent")

    def source_libvirtd(self) -> Callable[[], None]:
        return self._daemon(self.source, "libvirtd")

    def destination_libvirtd(self) -> Callable[[], None]:
        return self._daemon(self.destination, "libvirtd")

    def _daemon(self, host: str, daemon: str) -> Callable[[], None]:
        self.site.host(host).kill(daemon)
        return lambda: self.site.host(host).start(daemon)

    def destination_qemu(self) -> Callable[[], None]:
        pid = self.site.host(self.destination).qemus().get(self.vm)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return lambda: None

    def link(self) -> Callable[[], None]:
        host = self.site.host(self.source)
        host.cut_link()
        back = time.monotonic() + SILENCE

        def restore() -> None:
            until(lambda: time.monotonic() >= back, SILENCE + 1, "the end of the silence")
            host.restore_link()

        return restore

    def server(self) -> Callable[[], None]:
        control = self.site.lab.control
        for process in control_processes(self.site, "vmorch.main run"):
            send_signal(process, signal.SIGKILL)

        def restart() -> None:
            until(lambda: "control" not in control.container.daemons(), 60, "the end of the control plane")
            control.start_control_plane()

        return restart

    # -- afterwards -------------------------------------------------------------------------------------------------

    def settled(self) -> dict[str, Any]:
        """The VM once its operation is over, its place is known and nothing of it is left elsewhere."""
        self.site.connected(seconds=90)
        self.site.api.over(self.operation, 180)

        def quiet() -> dict[str, Any] | None:
            try:
                vm = self.site.api.vm(self.vm)
            except (Away, AssertionError):
                return None
            return vm if not vm["operation"] and not vm["frozen"] and not vm["traces"] else None

        return until(quiet, 150, "a settled VM") or {}


PHASES = ("prepare", "transfer", "switch_over", "clean_up")
FAULTS = (
    "source_agent",
    "destination_agent",
    "source_libvirtd",
    "destination_libvirtd",
    "destination_qemu",
    "link",
    "server",
)


@pytest.fixture(scope="module")
def traveller(lab_site: Site) -> Iterator[str]:
    """The id of a guest on shared storage that waits to travel."""
    lab_site.clean()
    image, digest = tiny_image()
    lab_site.cli.run("image", "add", "tiny", "--file", str(image), "--sha256", digest)
    lab_site.cli.run("vm", "create", NAME, "--image", "tiny", "--memory", "128Mi", "--storage", "shared")
    yield str(lab_site.api.vm(NAME)["id"])
    lab_site.clean()
    lab_site.cli.run("image", "remove", "tiny", "--yes")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_guest_runs_exactly_once_whatever_breaks_on_its_way(
    lab_site: Site, traveller: str, tmp_path: Path, fault: str, phase: str
) -> None:
    site = lab_site
    if site.api.vm(traveller)["power"] != "running":
        site.api.on_vm(traveller, "start")
    journey = Journey(site, traveller)
    with watched(tmp_path / "vcpus") as log:
        journey.begin()
        getattr(journey, phase)()
        heal = getattr(journey, fault)()
        heal()
        vm = journey.settled()
        if fault == "destination_qemu":
            # a guest that dies when its journey is just over is told of after that
            vm = _as_it_is(site, traveller)
        lives = _runs_on(site, traveller, vm, may_be_lost=fault == "destination_qemu")
        # a guest that was hardly disturbed may have needed no measurable time of its vCPU yet
        until(lambda: any(each.vm == traveller for each in read(log)), 60, "the observer's sight of the guest")
    assert overlaps(read(log), traveller) == []
    promised = [host["name"] for host in site.api.items("/v1/hosts") if host["promised"]["memory"]]
    assert promised == [vm["host"]]
    if lives:
        _ticks_never_step_back(site, traveller)


def test_a_guest_whose_qemu_hangs_in_a_switch_over_to_nobody_is_given_up_and_starts_again(
    lab_site: Site, traveller: str
) -> None:
    site = lab_site
    if site.api.vm(traveller)["power"] != "running":
        site.api.on_vm(traveller, "start")
    journey = Journey(site, traveller)
    journey.begin()
    journey.switch_over()
    # what a QEMU is from outside that waits for ever, holding its own lock, on a line that it has closed itself
    os.kill(site.host(journey.source).qemus()[traveller], signal.SIGSTOP)
    journey.destination_qemu()
    vm = journey.settled()
    assert (vm["host"], vm["power"]) == (journey.source, "off")
    assert all(traveller not in host.qemus() for host in site.lab.hosts)
    site.api.on_vm(traveller, "start")
    assert _runs_on(site, traveller, site.api.vm(traveller), may_be_lost=False)


def _as_it_is(site: Site, vm: str) -> dict[str, Any]:
    """The VM once the log holds that its guest runs where it runs."""
    told: list[Any] = []

    def agreed() -> dict[str, Any] | None:
        seen: dict[str, Any] = site.api.vm(vm)
        qemus = {host.name for host in site.lab.hosts if vm in host.qemus()}
        told[:] = seen["power"], seen["host"], qemus
        return seen if qemus == ({seen["host"]} if seen["power"] == "running" else set()) else None

    try:
        return until(agreed, 20, "the log to hold what is") or {}
    except AssertionError as error:
        raise AssertionError(f"{error}: {told}") from error


def _runs_on(site: Site, vm: str, seen: dict[str, Any], *, may_be_lost: bool) -> bool:
    """Whether the guest runs, which it must on the host that the log names and on no other."""
    qemus = {host.name for host in site.lab.hosts if vm in host.qemus()}
    if may_be_lost and seen["power"] in ("off", "crashed"):
        assert qemus == set()
        return False
    assert seen["power"] == "running", seen
    assert qemus == {seen["host"]}
    assert {host.name for host in site.lab.hosts if vm in site.domains(host.name)} == {seen["host"]}
    before = len(_ticks(site, vm))
    until(lambda: len(_ticks(site, vm)) > before, 30, "the guest's next tick")
    return True


def _ticks(site: Site, vm: str) -> list[tuple[str, int, float]]:
    """Everything that the guest counted aloud on any host: boot, number, uptime."""
    text = "".join(site.serial_log(host.name, vm) for host in site.lab.hosts)
    return [(boot, int(n), float(up)) for boot, n, up in re.findall(r"tick (\S+) (\d+) ([0-9.]+)", text)]


def _ticks_never_step_back(site: Site, vm: str) -> None:
    """No second was counted twice by the guest's memory, on its disk least of all."""
    host = site.api.vm(vm)["host"]
    lines = site.in_guest(host, vm, "/bin/busybox", "cat", "/data/ticks").splitlines()
    counted: dict[str, int] = {}
    for boot, number in ((line.split()[0], int(line.split()[1])) for line in lines if len(line.split()) == 3):
        assert number == counted.get(boot, 0) + 1, f"after {counted.get(boot)} of boot {boot} came {number}"
        counted[boot] = number
