"""Postgres, NATS, the network and the server go away and come back: callers are told, and what was begun ends."""

import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.lab.process import ProcessId, command_line, identify, send_signal
from tests.chaos.traffic import (
    Traffic,
    assert_boots_are_recorded,
    assert_journals_are_drained,
    assert_nothing_happened_twice,
    assert_shown_is_what_is,
    head,
    lifecycle_events,
)
from tests.integration.lab_fixtures import Site, needs_lab, until

pytestmark = [*needs_lab, pytest.mark.timeout(300)]

OUTAGE = 10.0
"""Seconds that a service is away: longer than a silent host is believed to live, shorter than any step's deadline."""

CREATE = ("--image", "blank", "--memory", "64Mi", "--ready", "none")


def control_processes(site: Site, words: str) -> list[ProcessId]:
    """The processes of the control namespace with these words in their command line."""
    pids = [pid for pid in site.lab.control.container.processes() if words in " ".join(command_line(pid))]
    found = [process for pid in pids if (process := identify(pid)) is not None]
    assert found, f"no {words} runs in the control namespace"
    return found


@contextmanager
def stopped(site: Site, program: str) -> Iterator[None]:
    """A service neither answers nor closes any connection, for at least OUTAGE seconds."""
    processes = control_processes(site, program)
    for process in processes:
        send_signal(process, signal.SIGSTOP)
    back = time.monotonic() + OUTAGE
    try:
        yield
        until(lambda: time.monotonic() >= back, OUTAGE + 1, "the end of the outage")
    finally:
        for process in processes:
            send_signal(process, signal.SIGCONT)


@contextmanager
def traffic_that_survives(site: Site) -> Iterator[Traffic]:
    """Operations before, during and after the trouble; all of them succeed, none happens twice."""
    after = head(site)
    with lifecycle_events(site) as told:
        with Traffic(site, secrets.randbits(32)) as traffic:
            traffic.goes_on(4)
            yield traffic
            traffic.goes_on(8, 120)
            traffic.finish()
        assert_shown_is_what_is(site)
    traffic.assert_all_succeeded()
    assert_nothing_happened_twice(site, after, told)
    assert_boots_are_recorded(site, after)
    assert_journals_are_drained(site, after)


def assert_done_or_plainly_told(command: subprocess.Popen[str]) -> None:
    """A command given during an outage has waited and succeeded, or says what is away and exits with 7."""
    _, err = command.communicate(timeout=120)
    assert command.returncode in (0, 7), (command.returncode, err)
    if command.returncode == 7:
        assert "error[log-unavailable]" in err or "error[server-unreachable]" in err, err


def test_operations_outlive_a_postgres_that_hangs(site: Site) -> None:
    with traffic_that_survives(site):
        with stopped(site, "postgres"):
            waiting = site.cli.start("vm", "create", "during", *CREATE)
        assert_done_or_plainly_told(waiting)
        site.cli.run("vm", "create", "after", *CREATE)


def test_operations_outlive_a_crash_of_postgres(site: Site) -> None:
    with traffic_that_survives(site):
        # the death of one backend makes the others' memory suspect: Postgres ends them all and recovers from its log
        send_signal(control_processes(site, "postgres: vmorch_server")[0], signal.SIGKILL)
        assert_done_or_plainly_told(site.cli.start("vm", "create", "during", *CREATE))
        until(lambda: site.api.get("/v1/status")["postgres"], 60, "Postgres's return")
        site.cli.run("vm", "create", "after", *CREATE)


def test_operations_outlive_a_nats_that_hangs(site: Site) -> None:
    with traffic_that_survives(site):
        with stopped(site, "nats-server"):
            # the log is there, so the command is accepted; its steps wait
            waiting = site.cli.start("vm", "create", "during", *CREATE)
        _, err = waiting.communicate(timeout=120)
        assert waiting.returncode == 0, err
        site.connected()
        site.cli.run("vm", "create", "after", *CREATE)


def test_operations_outlive_a_cut_cable(site: Site) -> None:
    with traffic_that_survives(site):
        host = site.host("hv-02")
        host.cut_link()
        try:
            until(lambda: site.api.host("hv-02")["agent"] == "unreachable", 30, "the host's silence")
            site.cli.run("vm", "create", "elsewhere", *CREATE)
            assert site.api.vm("elsewhere")["host"] == "hv-01"
        finally:
            host.restore_link()
        site.connected()


def test_operations_outlive_a_restart_of_the_control_plane(site: Site) -> None:
    with traffic_that_survives(site):
        waiting = site.cli.start(
            "vm", "create", "during", "--image", "blank", "--memory", "64Mi", "--ready-within", "20s"
        )
        until(lambda: any(vm["name"] == "during" for vm in site.api.items("/v1/vms")), 30, "the VM's creation")
        site.lab.control.stop_control_plane()
        site.lab.control.start_control_plane()
        # a guest that boots nothing is never ready: the command has watched its operation to that end
        _, err = waiting.communicate(timeout=120)
        assert (waiting.returncode, "error[not-ready]" in err) == (1, True), err
        assert site.api.vm("during")["state"] == "running"


@pytest.mark.parametrize("victim", ["vmorch.main run", "nats-server"])
def test_operations_outlive_a_crash_of_the_control_plane(site: Site, victim: str) -> None:
    with traffic_that_survives(site):
        for process in control_processes(site, victim):
            send_signal(process, signal.SIGKILL)
        # the lab's supervisor takes the rest down, in order, when one of its processes ends
        until(lambda: "control" not in site.lab.control.container.daemons(), 60, "the end of the control plane")
        site.cli.run("vm", "list", exits=7)
        site.lab.control.start_control_plane()
        site.connected()
        site.cli.run("vm", "create", "after", *CREATE)
