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

pytestmark = [*needs_lab, pytest.mark.timeout(300)]

RESTARTS = 5


def test_operations_outlive_a_libvirt_daemon_that_dies(site: Site) -> None:
    after = head(site)
    steady = site.api.create("steady", placing={"host": "hv-01"})
    host = site.host("hv-01")
    with Traffic(site, secrets.randbits(32)) as traffic:
        for _ in range(RESTARTS):
            traffic.goes_on(3)
            host.kill("libvirtd")
            host.start("libvirtd")
        traffic.goes_on(6)
        traffic.finish()
    assert_shown_is_what_is(site)
    assert site.api.vm(steady)["state"] == "running"
    assert site.boots("hv-01", steady) == 1
    traffic.assert_all_succeeded()
    assert_journals_are_drained(site, after)


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
