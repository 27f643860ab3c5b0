"""A host loses its libvirt daemon or its power: what is shown is what is, and every operation ends."""

import secrets

import pytest

from tests.chaos.traffic import (
    Traffic,
    assert_journals_are_drained,
    assert_shown_is_what_is,
    head,
)
from tests.integration.lab_fixtures import Site, needs_lab, until
from vmorch.core.operation import MAX_ATTEMPTS

pytestmark = [*needs_lab, pytest.mark.timeout(300)]

RESTARTS = MAX_ATTEMPTS - 1
"""Of each host's daemon: one fewer than the interruptions that an operation's step survives."""


def test_operations_outlive_a_libvirt_daemon_that_dies(site: Site) -> None:
    after = head(site)
    steady = site.api.create("steady", placing={"host": "hv-01"})
    with Traffic(site, secrets.randbits(32)) as traffic:
        for restart in range(RESTARTS * len(site.lab.hosts)):
            # the other streams are in the middle of something when one operation ends
            traffic.goes_on(1)
            host = site.lab.hosts[restart % len(site.lab.hosts)]
            host.kill("libvirtd")
            host.start("libvirtd")
        traffic.goes_on(6, 120)
        traffic.finish()
    # a daemon that comes back ends a QEMU which it finds half started: such a guest is told as crashed, never
    # started a second time on a guess
    failed = [one for one in traffic.ended if one["state"] != "succeeded"]
    assert {one["code"] for one in failed} <= {"not-ready", "busy"}
    assert {one["message"] for one in failed if one["code"] == "not-ready"} <= {"the guest is crashed: crashed"}
    forget_half_started(site, {one["vm"] for one in failed if one["code"] == "busy"})
    assert_shown_is_what_is(site)
    assert site.api.vm(steady)["state"] == "running"
    assert site.boots("hv-01", steady) == 1
    assert_journals_are_drained(site, after)


def forget_half_started(site: Site, vms: set[str]) -> None:
    """What an administrator does about a domain that libvirt 9.0 believes to be starting for ever.

    Seldom a daemon that was killed during a start comes back so: no QEMU is there, and neither the domain's
    destruction nor another restart ends it, only the loss of the daemon's own note.
    """
    for host in site.lab.hosts:
        notes = [host.directory / "run/libvirt/qemu" / f"{vm}.xml" for vm in vms & set(site.domains(host.name))]
        if notes:
            assert not vms & set(host.qemus())
            host.kill("libvirtd")
            for note in notes:
                note.unlink(missing_ok=True)
            host.start("libvirtd")


def test_after_a_power_cut_vms_are_shown_as_off_and_operations_have_ended(site: Site) -> None:
    after = head(site)
    steady = site.api.create("steady", placing={"host": "hv-01"})
    elsewhere = site.api.create("elsewhere", placing={"host": "hv-02"})
    host = site.host("hv-01")
    with Traffic(site, secrets.randbits(32)) as traffic:
        traffic.goes_on(4)
        host.power_cut()
        until(lambda: site.api.host("hv-01")["agent"] == "unreachable", 30, "the host's silence")
        assert site.api.vm(steady)["state"] == "unknown"
        host.boot()
        site.connected()
        until(lambda: site.api.vm(steady)["power"] == "off", 30, "the VM's power")
        traffic.goes_on(8, 120)
        traffic.finish()
    assert_shown_is_what_is(site)
    assert site.api.vm(elsewhere)["state"] == "running"
    site.api.on_vm(steady, "start")
    assert site.domains("hv-01")[steady]
    assert {operation["state"] for operation in traffic.ended} <= {"succeeded", "undone"}
    assert_journals_are_drained(site, after)
