"""Emptying real hosts with real guests on them, as an operator does it before he opens the case."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.lab_fixtures import Site, needs_guest, tiny_image, until

pytestmark = [*needs_guest, pytest.mark.timeout(300)]

GUESTS = ("east", "west")
HOOK = "#!/bin/sh\necho \"$0 ran\" >> /srv/vmorch/agent/hooks.log\n"


@pytest.fixture(scope="module")
def guests(lab_site: Site) -> Iterator[tuple[str, ...]]:
    """The ids of two guests on shared storage, both on hv-01."""
    lab_site.clean()
    image, digest = tiny_image()
    lab_site.cli.run("image", "add", "tiny", "--file", str(image), "--sha256", digest)

    def create(name: str) -> str:
        arguments = ("--image", "tiny", "--memory", "128Mi", "--storage", "shared", "--host", "hv-01")
        lab_site.cli.run("vm", "create", name, *arguments)
        return str(lab_site.api.vm(name)["id"])

    with ThreadPoolExecutor() as pool:
        made = tuple(pool.map(create, GUESTS))
    yield made
    lab_site.clean()
    lab_site.cli.run("image", "remove", "tiny", "--yes")


@pytest.fixture(autouse=True)
def _in_service(lab_site: Site) -> Iterator[None]:
    """Both hosts take VMs, before a test and after it."""
    yield
    for host in lab_site.lab.hosts:
        if lab_site.api.host(host.name)["cordoned"] is not None:
            lab_site.cli.run("host", "uncordon", host.name)


def where(site: Site) -> set[str]:
    return {site.api.vm(name)["host"] for name in GUESTS}


def gather(site: Site, host: str) -> None:
    """Both guests run on this host."""
    for name in GUESTS:
        if site.api.vm(name)["power"] != "running":
            site.cli.run("vm", "start", name)
        if site.api.vm(name)["host"] != host:
            site.cli.run("vm", "migrate", name, "--to", host)


def test_a_plan_is_shown_with_its_reasons_and_carried_out_as_shown(lab_site: Site, guests: tuple[str, ...]) -> None:
    site = lab_site
    gather(site, "hv-01")
    shown = site.cli.run("host", "drain", "hv-01", "--plan", exits=10)
    assert "2 VMs, 2 live" in shown
    assert "One more host loss survivable: no" in shown
    assert where(site) == {"hv-01"}
    plan = shown.split()[1]
    site.cli.run("plan", "apply", plan, "-m", "DIMM swap")
    assert where(site) == {"hv-02"}
    assert site.domains("hv-01") == {}
    assert site.domains("hv-02") == dict.fromkeys(guests, True)
    ledger = site.cli.run("drain", "describe", plan)
    assert ledger.count("moved") == len(GUESTS)
    site.cli.run("host", "activate", "hv-01", "--bring-back")
    assert where(site) == {"hv-01"}
    assert site.api.host("hv-01")["state"] == "active"


def test_a_plan_that_the_world_has_overtaken_names_what_did_it(lab_site: Site, guests: tuple[str, ...]) -> None:
    site = lab_site
    gather(site, "hv-01")
    plan = json.loads(site.cli.run("host", "drain", "hv-01", "--plan", "-o", "json", exits=10))["item"]["id"]
    site.cli.run("host", "cordon", "hv-02", "--reason", "raid rebuild")
    refused = site.cli.run("plan", "apply", plan, exits=5)
    assert "error[plan-stale]" in refused
    assert "host.cordoned" in refused
    assert "raid rebuild" in refused or "hv-02" in refused
    site.cli.run("host", "uncordon", "hv-02")
    site.cli.run("plan", "apply", plan, "--rebase")
    assert where(site) == {"hv-02"}


def test_with_nowhere_to_go_nothing_begins_and_every_cause_is_named(lab_site: Site, guests: tuple[str, ...]) -> None:
    site = lab_site
    gather(site, "hv-01")
    site.cli.run("host", "cordon", "hv-02", "--reason", "raid rebuild")
    began = time.monotonic()
    shown = site.cli.run("host", "drain", "hv-01", exits=6)
    assert time.monotonic() - began < 10
    assert "raid rebuild" in shown
    assert where(site) == {"hv-01"}
    assert site.api.host("hv-01")["cordoned"] is None
    skipped = site.cli.run("host", "drain", "hv-01", "--on-blocked", "skip", exits=9)
    assert "blocked" in skipped
    assert where(site) == {"hv-01"}


def test_a_drain_that_is_cancelled_ends_within_seconds_and_nothing_moves_afterwards(
    lab_site: Site, guests: tuple[str, ...]
) -> None:
    site = lab_site
    gather(site, "hv-01")
    for vm in guests:
        # a guest that never stops writing takes long to carry
        site.in_guest("hv-01", vm, "/sbin/dirty", "60")
    drain = site.cli.run("host", "drain", "hv-01", "-d").split()[1]

    def carries() -> bool:
        return any(
            (site.api.operation(operation["id"])["pace"] or {}).get("remaining")
            for operation in site.api.items("/v1/operations", active="true")
        )

    until(carries, 60, "a guest on its way")
    asked = time.monotonic()
    site.cli.run("drain", "cancel", drain)
    until(lambda: site.api.get(f"/v1/drains/{drain}")["item"]["ended_at"], 5, "the end of the drain")
    assert time.monotonic() - asked < 7
    until(lambda: not site.api.items("/v1/operations", active="true"), 60, "the end of what was under way")
    settled = {name: site.api.vm(name)["host"] for name in GUESTS}
    head = site.api.get("/v1/status")["head"]
    for vm, name in zip(guests, GUESTS, strict=True):
        site.in_guest(settled[name], vm, "/sbin/dirty", "0")
    assert site.api.items("/v1/events", kind="vm.operation-started", after=head) == []
    assert {name: site.api.vm(name)["host"] for name in GUESTS} == settled
    assert site.api.get(f"/v1/drains/{drain}")["item"]["state"] == "cancelled"


def test_each_vm_leaves_in_the_way_that_it_was_told_to(lab_site: Site, guests: tuple[str, ...]) -> None:
    site = lab_site
    gather(site, "hv-01")
    site.cli.run("vm", "set-eviction", "east", "restart")
    site.cli.run("vm", "set-eviction", "west", "never")
    try:
        boot = site.ask_guest(site.api.vm("east")["addresses"][0], "/id.json")["boot"]
        shown = site.cli.run("host", "drain", "hv-01", "--on-blocked", "skip", exits=9, timeout=200)
        assert "west" in shown
        assert (site.api.vm("east")["host"], site.api.vm("west")["host"]) == ("hv-02", "hv-01")
        again = until(lambda: site.ask_guest(site.api.vm("east")["addresses"][0], "/id.json"), 60, "the guest")
        assert again["boot"] != boot
    finally:
        site.cli.run("vm", "set-eviction", "east", "live")
        site.cli.run("vm", "set-eviction", "west", "live")


def test_a_host_is_taken_out_of_service_worked_on_rebooted_and_returned(
    lab_site: Site, guests: tuple[str, ...]
) -> None:
    site = lab_site
    gather(site, "hv-01")
    host = site.host("hv-01")
    hooks = host.directory / "agent" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("before-maintenance", "after-maintenance"):
        (hooks / name).write_text(HOOK)
        (hooks / name).chmod(0o700)
    site.cli.run("host", "maintenance", "start", "hv-01", "--bring-back", "-m", "DIMM swap")
    assert where(site) == {"hv-02"}
    ran = host.directory / "agent" / "hooks.log"
    assert "before-maintenance ran" in ran.read_text()
    assert "hv-01" in site.cli.run("host", "maintenance", "list")
    host.power_cut()
    host.boot()
    site.cli.run("host", "maintenance", "done", "hv-01", timeout=200)
    assert "after-maintenance ran" in ran.read_text()
    assert site.api.host("hv-01")["state"] == "active"
    assert where(site) == {"hv-01"}
    assert ran.read_text().count("ran") == 2
