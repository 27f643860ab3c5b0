"""Backups of a real guest, restored and held against the guest's own sums; and what breaks them off in the middle."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.host_files import BACKUP_DIR
from deploy.lab.process import send_signal
from tests.integration.lab_fixtures import Site, needs_guest, until
from tests.integration.snapshot_fixtures import MARK, Kept, State, kept_on_shared

pytestmark = [*needs_guest, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kept(lab_site: Site) -> Iterator[Kept]:
    yield from kept_on_shared(lab_site)


@pytest.fixture(autouse=True)
def nothing_left(kept: Kept) -> Iterator[None]:
    """Each test leaves exactly the backups that are known, sound layers, and nothing in libvirt's books."""
    yield
    kept.assert_sound()
    assert {path.name for path in directory(kept).iterdir()} == {"storage-id", *(each["id"] for each in backups(kept))}
    assert kept.site.virsh(kept.host, "checkpoint-list", kept.vm, "--name").split() == []
    for each in backups(kept):
        if not each["parent"]:
            kept.site.api.do(f"/v1/backups/{each['id']}/delete", {"with_children": True})
    assert [path.name for path in directory(kept).iterdir()] == ["storage-id"]


def directory(kept: Kept) -> Path:
    return kept.site.host("hv-01").shared / "backups"


def backups(kept: Kept) -> list[dict[str, Any]]:
    return kept.site.api.items("/v1/backups")


def take(kept: Kept, name: str, **more: object) -> dict[str, Any]:
    kept.site.api.on_vm(kept.vm, "backup", name=name, **more)
    return dict(kept.site.api.get(f"/v1/backups/{name}")["item"])


def restored(kept: Kept, states: dict[str, State]) -> None:
    """VMs that are made from these backups hold what the guest held when they were taken."""
    site = kept.site
    under_way = {
        name: site.api.change(f"/v1/backups/{name}/restore", {"name": f"from-{name}", "isolated": True})["operation"]
        for name in states
    }
    for name, state in states.items():
        operation = site.api.over(under_way[name])
        assert operation["state"] == "succeeded", operation
        again = Kept(site, operation["vm"])
        # its agent answers before its data is mounted
        until(lambda again=again: "ok" in again.shell(f"test -s {MARK} && echo ok"), 30, f"the data of {name}")  # type: ignore[misc]
        assert again.state().on_disk == state.on_disk, name
        site.api.on_vm(again.vm, "delete")


def test_every_backup_gives_back_what_the_guest_held_then(kept: Kept) -> None:
    held = {"one": kept.write("first")}
    first = take(kept, "one")
    assert first["why"] == "it is the first"
    manifest = json.loads((directory(kept) / first["id"] / "manifest.json").read_text())
    assert (manifest["name"], manifest["vm_name"], manifest["parent"]) == ("one", "kept", None)
    held["two"] = kept.write("second")
    second = take(kept, "two", quiesce=True)
    assert (second["kind"], second["quality"], second["parent"]) == ("incremental", "frozen", "one")

    kept.site.api.on_vm(kept.vm, "snapshot", name="between")
    held["three"] = kept.write("third")
    assert take(kept, "three")["kind"] == "incremental"
    kept.write("lost in the merge, if it went wrong")
    kept.site.api.on_vm(kept.vm, "delete-snapshot", snapshot="between")
    held["four"] = kept.state()
    assert take(kept, "four")["kind"] == "incremental"

    kept.site.api.on_vm(kept.vm, "migrate", to="hv-02")
    kept.up()
    held["five"] = kept.write("on the other host")
    fifth = take(kept, "five")
    assert (fifth["kind"], fifth["host"]) == ("incremental", "hv-02")
    assert kept.site.api.get("/v1/backups/five")["item"]["chain"] == ["one", "two", "three", "four", "five"]

    restored(kept, {name: held[name] for name in ("three", "four", "five")})
    assert kept.state() == held["five"], "the guest never noticed"


def test_after_its_layers_were_changed_behind_qemu_a_backup_is_full_and_says_so(kept: Kept) -> None:
    kept.write("before")
    take(kept, "one")
    before = kept.write("noted by nobody")
    kept.site.api.on_vm(kept.vm, "stop")
    kept.site.api.on_vm(kept.vm, "snapshot", name="off")
    second = take(kept, "two")
    assert (second["kind"], second["quality"]) == ("full", "off")
    kept.site.api.on_vm(kept.vm, "start")
    kept.up()
    third = take(kept, "three")
    assert third["kind"] == "incremental"
    after = kept.write("gone by the rollback")
    fourth = take(kept, "four")
    kept.site.api.on_vm(kept.vm, "rollback", to="off")
    kept.up()
    assert kept.state().on_disk == before.on_disk
    fifth = take(kept, "five")
    assert (fifth["kind"], fifth["why"]) == ("full", "the VM was rolled back")
    assert fourth["parent"] == "three"
    restored(kept, {"four": after, "five": before})
    for snapshot in kept.site.api.vm(kept.vm)["snapshots"]:
        kept.site.api.on_vm(kept.vm, "delete-snapshot", snapshot=snapshot["name"])


def test_a_flipped_byte_is_found_and_nothing_is_made_of_it(kept: Kept) -> None:
    take(kept, "one")
    kept.write("changed")
    second = take(kept, "two")
    file = directory(kept) / second["id"] / "vda.qcow2"
    _flip(file)
    said = kept.site.cli.run("backup", "verify", "two", exits=1)
    assert "backup-damaged" in said
    assert "vda" in said
    assert "FAILED (compare)" in kept.site.cli.run("backup", "list", "two")
    asked = kept.site.api.change("/v1/backups/two/restore", {"name": "never", "isolated": True})
    operation = kept.site.api.over(asked["operation"])
    assert (operation["state"], operation["code"]) == ("undone", "backup-damaged")
    assert {vm["name"] for vm in kept.site.api.items("/v1/vms")} == {"kept"}
    # what it stands on is not affected, and no other stands on it
    kept.site.cli.run("backup", "verify", "one")
    assert take(kept, "three")["why"] == "two did not stand its verification"
    _flip(file)
    kept.site.cli.run("backup", "verify", "two", "--boot")
    verified = kept.site.api.get("/v1/backups/two")["item"]["verification"]
    assert (verified["by"], verified["ok"]) == ("boot", True)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("full", [True, False])
def test_what_is_broken_off_in_the_middle_leaves_nothing_and_the_next_one_is_right(kept: Kept, full: bool) -> None:
    _fill(kept)
    last = take(kept, "begin")["name"]
    for what in ("agent", "libvirtd", "libvirtd-at-once", "cancel", "cancel-unseen"):
        if not full:
            _fill(kept)
        state = kept.write(f"before {what}")
        _break_off(kept, what, f"broken-{what}", full=full)
        last = f"broken-{what}" if f"broken-{what}" in {each["name"] for each in backups(kept)} else last
        following = take(kept, f"after-{what}")
        assert (following["kind"], following["parent"]) == ("incremental", last)
        last = following["name"]
    restored(kept, {last: state})


def test_a_target_that_is_full_ends_a_backup_and_the_guest_goes_on(kept: Kept) -> None:
    site, host = kept.site, kept.site.host(kept.host)
    _fill(kept)
    take(kept, "one")
    _fill(kept)
    # the same target, with room for a part of what was written since
    small, room = "/run/small", 48 * 2**20
    script = (
        f"umount {small} || true; mkdir -p {small}; held=$(du -s --block-size=1 {BACKUP_DIR} | cut -f1); "
        f"mount -t tmpfs -o size=$((held + {room})) tmpfs {small}; cp -a {BACKUP_DIR}/. {small}; "
        f"mount --bind {small} {BACKUP_DIR}"
    )
    try:
        host.run(["sh", "-ec", script])
        # a guest that overwrites what is read, so that QEMU has no room to put it aside
        piece = "dd if=/dev/urandom of=/tmp/piece bs=1M count=4"
        over = "for each in $(seq 220 -4 64); do dd if=/tmp/piece of=/dev/vdb bs=1M seek=$each conv=notrunc,fsync"
        again = f"while [ ! -e /tmp/enough ]; do {over}; echo >> /tmp/pieces; done; done"
        kept.shell(f"({piece}; {again}; rm /tmp/piece) > /dev/null 2>&1 &")
        until(lambda: int(kept.shell("wc -l < /tmp/pieces || echo 0")) > 0, 60, "a guest that writes")
        asked = site.api.change(f"/v1/vms/{kept.vm}/backup", {"name": "two"})["operation"]
        agent = host.container.daemons()["agent"]
        begun = Path(f"/proc/{agent.pid}/root{BACKUP_DIR}/.{asked}.new/vda.qcow2")
        until(begun.exists, 20, "a backup that is read", every=0.001)
        # while nobody reads, the guest goes on until there is no room for what it overwrites
        send_signal(agent, signal.SIGSTOP)
        try:
            halted = ("virsh", "domstate", "--reason", kept.vm)
            until(lambda: "I/O error" in host.run(halted).stdout, 60, "a guest without room")
        finally:
            send_signal(agent, signal.SIGCONT)
        operation = site.api.over(asked)
        assert (operation["state"], operation["code"]) == ("undone", "disk-full"), operation
        pieces = int(kept.shell("wc -l < /tmp/pieces"))
        until(lambda: int(kept.shell("wc -l < /tmp/pieces")) > pieces, 60, "the guest's next writes")
        until(lambda: site.api.vm(kept.vm)["power"] == "running", 10, "the log to know that it goes on")
        assert "None" in site.virsh(kept.host, "domjobinfo", kept.vm)
    finally:
        kept.shell("touch /tmp/enough")
        host.run(["sh", "-c", f"umount {BACKUP_DIR}; umount {small}; rmdir {small}"])
    state = kept.write("after it")
    assert take(kept, "two")["kind"] == "incremental"
    restored(kept, {"two": state})


def _fill(kept: Kept) -> None:
    """Have the guest write to so much of a disk that a backup of it takes a while."""
    piece = "dd if=/dev/urandom of=/tmp/piece bs=1M count=4 2>/dev/null"
    for begin in range(64, 224, 40):
        pieces = f"for each in $(seq {begin} 4 {begin + 36}); do dd if=/tmp/piece of=/dev/vdb bs=1M seek=$each"
        kept.shell(f"{piece}; {pieces} conv=notrunc 2>/dev/null; done; rm /tmp/piece; sync")


def _break_off(kept: Kept, what: str, name: str, *, full: bool) -> None:
    """Begin a backup, and break it off while it is being written."""
    site, host = kept.site, kept.site.host(kept.host)
    asked = site.api.change(f"/v1/vms/{kept.vm}/backup", {"name": name, "full": full})["operation"]
    draft = directory(kept) / f".{asked}.new"

    def begun() -> bool:
        return any(each.stat().st_size > 2**22 for each in draft.glob("*.qcow2"))

    until(begun, 20, "a backup under way", every=0.02)
    if what.startswith("cancel"):
        if what == "cancel-unseen":
            host.kill("libvirtd")
        site.api.ask("POST", f"/v1/operations/{asked}/cancel", {})
        if what == "cancel-unseen":
            host.start("libvirtd")
            site.connected()
    else:
        host.kill(what.removesuffix("-at-once"))
        if what == "libvirtd-at-once":
            # as it is for a moment at the beginning, before it is noted of each disk that it is copied
            status = f"/run/libvirt/qemu/{kept.vm}.xml"
            first = r"s/\(<disk name='vdb' backup='yes'\) state='running'/\1/"
            host.run(["sed", "-i", first, status])
            assert "backup='yes' type" in host.run(["cat", status]).stdout
        host.start(what.removesuffix("-at-once"))
        site.connected()
    operation = site.api.over(asked)
    assert operation["state"] in ("succeeded", "undone", "cancelled"), operation
    # a host whose daemon was away tells only then what it has
    try:
        until(lambda: site.api.vm(kept.vm)["state"] == "running", 30, "the VM seen again")
    except AssertionError as error:
        raise AssertionError(f"{error}; {what}; {operation}; {site.api.vm(kept.vm)}\n{kept.told()}") from error
    assert not draft.exists()
    assert "None" in site.virsh(kept.host, "domjobinfo", kept.vm)
    assert (name in {each["name"] for each in backups(kept)}) == (operation["state"] == "succeeded")
