"""Snapshots of a real guest and the ways back to them; what is promised is held against the guest's own sums."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.lab.host_files import SHARED_DIR
from tests.integration.lab_fixtures import Site, needs_guest, until
from tests.integration.snapshot_fixtures import Kept, kept_on_shared

pytestmark = [*needs_guest, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kept(lab_site: Site) -> Iterator[Kept]:
    yield from kept_on_shared(lab_site)


@pytest.fixture(autouse=True)
def without_snapshots(kept: Kept) -> Iterator[None]:
    """Each test begins with a guest that runs and has no snapshot, and leaves sound layers."""
    yield
    kept.assert_sound()
    for snapshot in kept.site.api.vm(kept.vm)["snapshots"]:
        kept.site.api.on_vm(kept.vm, "delete-snapshot", snapshot=snapshot["name"])
    assert set(kept.chains()) == {
        f"{disk['name']}{'.' + str(disk['layer']) if disk.get('layer') else ''}.qcow2"
        for disk in kept.site.api.vm(kept.vm)["spec"]["disks"]
    }, "what no snapshot needs is merged"
    if kept.site.api.vm(kept.vm)["power"] != "running":
        kept.site.api.on_vm(kept.vm, "start")
    kept.up()


def take(kept: Kept, name: str, **more: object) -> None:
    kept.site.api.on_vm(kept.vm, "snapshot", name=name, **more)


def back(kept: Kept, to: str, **more: object) -> str:
    """Go back to a snapshot; the safety snapshot that was taken, if one was."""
    before = {each["name"] for each in kept.site.api.vm(kept.vm)["snapshots"]}
    kept.site.api.on_vm(kept.vm, "rollback", to=to, **more)
    kept.up()
    new = {each["name"] for each in kept.site.api.vm(kept.vm)["snapshots"]} - before
    return new.pop() if new else ""


def test_every_state_that_was_kept_can_be_had_again_from_anywhere(kept: Kept) -> None:
    first = kept.write("first")
    take(kept, "disks-only")
    second = kept.write("second")
    take(kept, "with-memory", memory=True)
    third = kept.write("third")
    take(kept, "at-rest", quiesce=True)
    fourth = kept.write("fourth")
    qualities = {each["name"]: each["quality"] for each in kept.site.api.vm(kept.vm)["snapshots"]}
    assert qualities == {"disks-only": "crash-consistent", "with-memory": "memory", "at-rest": "frozen"}

    newest = back(kept, "disks-only")
    assert kept.state().on_disk == first.on_disk
    assert kept.state().boot != first.boot, "without its memory it boots anew"
    kept.assert_sound()
    branch = kept.write("on another branch")
    other = back(kept, "with-memory")
    assert kept.state() == second, "with its memory it goes on where it was"
    back(kept, newest)
    assert kept.state() == fourth, "and forward again exactly"
    back(kept, other)
    assert kept.state() == branch
    back(kept, "at-rest")
    assert kept.state().on_disk == third.on_disk
    kept.assert_sound()


def test_deleting_snapshots_changes_nothing_that_anybody_can_see(kept: Kept) -> None:
    states = {}
    for name in ("one", "two", "three"):
        states[name] = kept.write(name)
        take(kept, name)
    now = kept.write("now")
    kept.site.api.on_vm(kept.vm, "delete-snapshot", snapshot="two")
    assert kept.state() == now
    kept.assert_sound()
    forward = back(kept, "one")
    assert kept.state().on_disk == states["one"].on_disk
    back(kept, "three")
    assert kept.state().on_disk == states["three"].on_disk
    kept.site.api.on_vm(kept.vm, "delete-snapshot", snapshot="one")
    assert kept.state().on_disk == states["three"].on_disk
    kept.site.api.on_vm(kept.vm, "delete-snapshot", snapshot="three")
    assert kept.state().on_disk == states["three"].on_disk
    back(kept, forward)
    assert kept.state() == now


def test_a_vm_that_is_off_is_kept_and_brought_back_without_being_started(kept: Kept) -> None:
    state = kept.write("off")
    kept.site.api.on_vm(kept.vm, "stop")
    take(kept, "while-off")
    kept.site.api.on_vm(kept.vm, "start")
    newer = kept.write("newer")
    kept.site.api.on_vm(kept.vm, "stop")
    kept.site.api.on_vm(kept.vm, "rollback", to="while-off")
    assert kept.site.api.vm(kept.vm)["power"] == "off"
    kept.site.api.on_vm(kept.vm, "start")
    kept.up()
    assert kept.state().on_disk == state.on_disk
    safety = next(each["name"] for each in kept.site.api.vm(kept.vm)["snapshots"] if each["origin"] == "safety")
    back(kept, safety)
    assert kept.state().on_disk == newer.on_disk


def test_a_paused_guest_stays_paused_over_a_rollback_and_back(kept: Kept) -> None:
    state = kept.write("paused")
    kept.site.api.on_vm(kept.vm, "pause")
    take(kept, "halted", memory=True)
    kept.site.api.on_vm(kept.vm, "resume")
    kept.write("later")
    kept.site.api.on_vm(kept.vm, "rollback", to="halted")
    assert kept.site.api.vm(kept.vm)["power"] == "paused"
    kept.site.api.on_vm(kept.vm, "resume")
    kept.up()
    assert kept.state() == state


def test_without_a_safety_snapshot_the_newer_state_is_gone_and_nothing_is_left_of_it(kept: Kept) -> None:
    state = kept.write("wanted")
    take(kept, "wanted")
    kept.write("unwanted")
    assert back(kept, "wanted", safety_snapshot=False) == ""
    assert kept.state().on_disk == state.on_disk
    assert [each["name"] for each in kept.site.api.vm(kept.vm)["snapshots"]] == ["wanted"]


def test_snapshots_go_where_their_guest_goes(kept: Kept) -> None:
    before = kept.write("here")
    take(kept, "here", memory=True)
    later = kept.write("there")
    there = next(host.name for host in kept.site.lab.hosts if host.name != kept.host)
    kept.site.api.on_vm(kept.vm, "migrate", to=there)
    assert kept.state() == later
    kept.assert_sound()
    forward = back(kept, "here")
    assert kept.state() == before
    kept.site.api.on_vm(kept.vm, "delete-snapshot", snapshot="here")
    kept.site.cli.run("host", "drain", there)
    assert kept.host != there
    kept.site.cli.run("host", "activate", there)
    back(kept, forward)
    assert kept.state() == later


def test_what_was_done_behind_our_back_is_told_before_anything_is_touched(kept: Kept) -> None:
    state = kept.write("ours")
    take(kept, "ours")
    files = kept.chains()
    kept.site.virsh(kept.host, "snapshot-create-as", kept.vm, "byhand", "--disk-only", "--no-metadata")
    for verb, arguments in (
        ("snapshot", {"name": "more"}),
        ("rollback", {"to": "ours"}),
        ("delete-snapshot", {"snapshot": "ours"}),
    ):
        accepted = kept.site.api.change(f"/v1/vms/{kept.vm}/{verb}", arguments)
        ended = kept.site.api.over(accepted["operation"])
        assert (ended["state"], ended["code"]) == ("undone", "chain-drift"), ended
        told = "\n".join(ended["blockers"])
        assert ".byhand" in told, told
    assert {name: chain for name, chain in kept.chains().items() if name in files} == files
    remedies = set(re.findall(r"virsh (blockcommit [^;]*);", told))
    assert len(remedies) == 2, told
    for remedy in remedies:
        kept.site.virsh(kept.host, *remedy.split())
    for path in kept.directory.glob("*.byhand"):
        path.unlink()
    take(kept, "more")
    assert kept.state() == state


def test_a_switch_that_libvirt_died_in_is_taken_back_before_anything_else(kept: Kept) -> None:
    kept.write("before")
    take(kept, "before")
    (held,) = kept.site.api.vm(kept.vm)["snapshots"]
    layer, new = kept.site.api.vm(kept.vm)["spec"]["disks"][0]["layer"], held["number"] + 1
    switch_behind_libvirt(kept, layer, new)
    state = kept.write("on layers that libvirt does not know")
    take(kept, "after")
    assert kept.state() == state
    kept.assert_sound()
    kept.write("later")
    back(kept, "after")
    assert kept.state().on_disk == state.on_disk


def test_a_snapshot_that_its_domain_cannot_say_is_kept_and_shows_as_drift(kept: Kept) -> None:
    held = kept.write("held")
    configured = "/etc/libvirt/qemu"
    on = kept.site.host(kept.host)
    on.run(["mount", "--bind", configured, configured])
    on.run(["mount", "-o", "remount,ro,bind", configured])
    try:
        take(kept, "held")
    finally:
        on.run(["umount", configured])
    kept.assert_sound()
    until(lambda: [each["field"] for each in kept.site.api.vm(kept.vm)["drift"]] == ["disks"], 60, "the drift")
    kept.write("later")
    take(kept, "later")
    until(lambda: kept.site.api.vm(kept.vm)["drift"] == [], 30, "a configuration in order")
    back(kept, "held")
    assert kept.state().on_disk == held.on_disk


def _qemu(kept: Kept, execute: str, **arguments: object) -> Any:
    order = json.dumps({"execute": execute, "arguments": arguments})
    return json.loads(kept.site.virsh(kept.host, "qemu-monitor-command", kept.vm, order))["return"]


def switch_behind_libvirt(kept: Kept, layer: int, new: int) -> None:
    """What QEMU has done when libvirt dies in the middle of a snapshot: the guest writes to new layers."""

    place = f"{SHARED_DIR}/vmorch/vms/{kept.vm}"
    blocks = (each["inserted"] for each in _qemu(kept, "query-block") if each.get("inserted"))
    nodes = {each["file"]: each["node-name"] for each in blocks}
    switches = []
    for disk in ("vda", "vdb"):
        below, above = f"{place}/{disk}.{layer}.qcow2", f"{place}/{disk}.{new}.qcow2"
        kept.site.host(kept.host).run(
            ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, above, "1G"]
        )
        _qemu(kept, "blockdev-add", **{"driver": "file", "node-name": f"{disk}-storage", "filename": above})
        _qemu(
            kept,
            "blockdev-add",
            **{"driver": "qcow2", "node-name": f"{disk}-format", "file": f"{disk}-storage", "backing": None},
        )
        switches.append(
            {"type": "blockdev-snapshot", "data": {"node": nodes[below], "overlay": f"{disk}-format"}}
        )
    _qemu(kept, "transaction", actions=switches)


def test_a_guest_that_does_not_freeze_in_time_gets_no_snapshot_and_goes_on(kept: Kept) -> None:
    state = kept.write("restless")
    kept.site.virsh(kept.host, "qemu-agent-command", kept.vm, json.dumps({
        "execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": [
            "-c", "p=$(pidof ld.so || pidof qemu-ga); kill -STOP $p; sleep 12; kill -CONT $p"]},
    }))  # fmt: skip
    until(lambda: not _answers(kept), 10, "the silence of the guest's agent")
    accepted = kept.site.api.change(
        f"/v1/vms/{kept.vm}/snapshot", {"name": "never", "quiesce": True, "freeze_within": 3}
    )
    ended = kept.site.api.over(accepted["operation"])
    assert ended["state"] == "undone", ended
    assert ended["code"] in ("freeze-failed", "thaw-failed"), ended
    kept.up()
    assert kept.site.api.vm(kept.vm)["snapshots"] == []
    until(lambda: "thawed" in _frozen(kept), 30, "the guest's thaw")
    assert kept.state() == state


def _answers(kept: Kept) -> bool:
    ping = ["qemu-agent-command", "--timeout", "1", kept.vm, '{"execute": "guest-ping"}']
    return kept.site.host(kept.host).run(["virsh", "-c", "qemu:///system", *ping], check=False).returncode == 0


def _frozen(kept: Kept) -> str:
    return kept.site.virsh(kept.host, "qemu-agent-command", kept.vm, '{"execute": "guest-fsfreeze-status"}')


def test_a_deleted_vm_leaves_no_layer_and_no_memory(lab_site: Site) -> None:
    vm = lab_site.api.create("brief")
    host = lab_site.api.vm(vm)["host"]
    lab_site.api.on_vm(vm, "snapshot", name="one", memory=True)
    lab_site.api.on_vm(vm, "snapshot", name="two")
    lab_site.api.on_vm(vm, "rollback", to="one")
    lab_site.api.on_vm(vm, "delete")
    assert not [file for file in lab_site.vm_files(host) if vm in file]
