"""Backups from the command line: what is shown, what is asked before, what is sent, and how it ends."""

import json
from collections.abc import Callable

import pytest

from tests.cli import api as make
from tests.cli.api import Api
from tests.cli.conftest import OnTerminal, Run
from vmorch.core.aggregates.backup import Verification
from vmorch.core.backup import SavedDisk
from vmorch.core.backup_resources import BackupDetail, BackupResource
from vmorch.core.ids import Digest

Start = Callable[..., OnTerminal]
STOOD = Verification(by="boot", ok=True, why="", at=make.AT)
FAILED = Verification(by="compare", ok=False, why="vda of two has other bytes than were written", at=make.AT)


def _fields(name: str, more: dict[str, object]) -> dict[str, object]:
    return {
        "id": make.OP,
        "name": name,
        "state": "whole",
        "vm": "id-db-1",
        "vm_name": "db-1",
        "kind": "full",
        "why": "it is the first",
        "parent": None,
        "children": (),
        "target": "main",
        "host": "hv-02",
        "quality": "frozen",
        "description": "",
        "size": 40 << 30,
        "bytes": 3 << 30,
        "begun_at": make.AT,
        "made_at": make.AT,
        "frozen": 0.4,
        "verification": None,
        "version": 3,
        **more,
    }


def backup(name: str, **more: object) -> BackupResource:
    return BackupResource(**_fields(name, more))  # type: ignore[arg-type]  # the fields are of many types


def detail(name: str, **more: object) -> BackupDetail:
    disk = SavedDisk(name="vda", size=40 << 30, bytes=3 << 30, sha256=Digest("ab" * 32), content=Digest("cd" * 32))
    fields = {"chain": (name,), "disks": (disk,), "spec": make.SPEC, "vm_exists": True, **more}
    return BackupDetail(**_fields(name, fields))  # type: ignore[arg-type]  # as above


def finished(api: Api, path: str, verb: str, state: str = "succeeded", **more: object) -> None:
    end = make.operation(state, "work:done", verb=verb, vm_name="db-1", ended_at=make.AT, **more)
    api.on(f"GET /v1/operations/{make.OP}/watch", lambda asked: make.stream(make.events(("operation", end))))
    api.on(f"POST {path}", make.accepted("db-1"))


def test_the_list_tells_how_each_stood_its_verification(api: Api, vmorch: Run) -> None:
    rows = [
        backup("three", state="taking", kind=None, why="", bytes=0, quality="crash-consistent"),
        backup("two", kind="incremental", why="", parent="one", bytes=12 << 20, verification=FAILED),
        backup("one", verification=STOOD),
    ]
    reply = make.listing("Backup", rows)
    api.on("GET /v1/backups", reply)
    done = vmorch("backup", "list", "--vm", "db-1", "--time", "utc")
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "VM", "STATE", "KIND", "SIZE", "QUALITY", "TARGET", "VERIFIED", "AGE"],
        ["three", "db-1", "taking", "-", "-", "crash-consistent", "main", "never", "2026-11-20", "12:00:00Z"],
        ["two", "db-1", "whole", "incremental", "12Mi", "frozen", "main", "FAILED", "(compare)", "2026-11-20",
         "12:00:00Z"],
        ["one", "db-1", "whole", "full", "3Gi", "frozen", "main", "boot", "2026-11-20", "12:00:00Z"],
    ]  # fmt: skip
    assert api.asked[-1].query["vm"] == ["db-1"]
    assert vmorch("backup", "list", "-o", "name").stdout.split() == ["three", "two", "one"]
    assert json.loads(vmorch("backup", "list", "-o", "json").stdout)["items"][1]["parent"] == "one"
    assert "it is the first" in vmorch("backup", "list", "-o", "wide").stdout


def test_those_of_one_vm_are_listed_beside_it(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms/db-1/backups", make.listing("Backup", [backup("one")]))
    assert vmorch("vm", "backup", "list", "db-1", "-o", "name").stdout == "one\n"


def test_a_backup_is_described_with_what_it_stands_on_and_what_became_of_it(api: Api, vmorch: Run) -> None:
    found = detail(
        "two", kind="incremental", why="", parent="one", chain=("one", "two"), children=("three",),
        verification=FAILED, vm_exists=False,
    )  # fmt: skip
    api.on("GET /v1/backups/two", make.single("Backup", found))
    shown = vmorch("backup", "describe", "two", "--time", "utc").stdout
    assert shown.splitlines()[0] == "Backup two   State whole   Taken 2026-11-20 12:00:00Z"
    for words in (
        "VM           db-1 (which is gone)",
        "Stands on    one",
        "Below        three",
        "Worth        the guest's file systems were at rest",
        "Verified     FAILED: vda of two has other bytes than were written, by compare",
        "vda  40Gi  3Gi written  sha256 abababababab",
    ):
        assert words in shown, shown


def test_create_says_what_was_taken_and_why_it_is_full(api: Api, vmorch: Run) -> None:
    finished(api, "/v1/vms/db-1/backup", "backup")
    api.on(f"GET /v1/backups/{make.OP}", make.single("Backup", backup("nightly", why="the VM was rolled back")))
    done = vmorch("vm", "backup", "create", "db-1", "--name", "nightly", "--quiesce", "--to", "main")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "backup nightly of db-1 is whole: full (the VM was rolled back), 3Gi\n"
    assert api.changes()[0].json() == {"name": "nightly", "quiesce": True, "to": "main"}


def test_a_restore_sends_what_was_typed_and_nothing_else(api: Api, vmorch: Run) -> None:
    finished(api, "/v1/backups/one/restore", "restore")
    api.on("GET /v1/vms/id-db-1", make.single("Vm", make.vm("again")))
    assert vmorch("backup", "restore", "one", "--name", "again").returncode == 0
    flags = ("--host", "hv-02", "--storage", "shared", "--isolated", "--no-start")
    vmorch("backup", "restore", "one", "--name", "a", *flags)
    assert [each.json() for each in api.changes()] == [
        {"name": "again"},
        {"name": "a", "host": "hv-02", "storage": "shared", "isolated": True, "start": False},
    ]
    assert vmorch("backup", "restore", "one").returncode == 2


def test_verify_ends_well_or_with_the_difference(api: Api, vmorch: Run) -> None:
    finished(api, "/v1/backups/one/verify", "verify-backup")
    done = vmorch("backup", "verify", "one", "--boot")
    assert (done.returncode, done.stdout) == (0, "a VM can be had back from backup one\n"), done.stderr
    assert api.changes()[0].json() == {"boot": True}
    blockers = ("vda of one has other bytes than were written",)
    finished(
        api, "/v1/backups/one/verify", "verify-backup", "undone", code="backup-damaged", message=blockers[0],
        blockers=blockers,
    )  # fmt: skip
    done = vmorch("backup", "verify", "one")
    assert done.returncode == 1
    assert "error[backup-damaged]" in done.stderr
    assert blockers[0] in done.stderr


def test_delete_tells_what_it_is_and_wants_the_name(api: Api, terminal: Start) -> None:
    finished(api, "/v1/backups/one/delete", "delete-backup")
    found = detail("one", children=("two",), verification=STOOD)
    api.on("GET /v1/backups/one", make.single("Backup", found))
    process = terminal("backup", "delete", "one", "--with-children")
    process.read_until("delete backup one of db-1: full, 3Gi, verified: boot")
    process.read_until("go too, with all that stands on them: two")
    process.read_until("Type the backup's name (one) to go on: ")
    process.type("two\n")
    assert process.end() == 6
    assert api.changes() == []
    process = terminal("backup", "delete", "one", "--with-children")
    process.read_until("to go on: ")
    process.type("one\n")
    assert process.end() == 0
    assert "backup one is deleted" in process.seen
    assert api.changes()[0].json() == {"with_children": True}


def test_delete_without_a_terminal_needs_yes(api: Api, vmorch: Run) -> None:
    finished(api, "/v1/backups/one/delete", "delete-backup")
    assert vmorch("backup", "delete", "one").stderr.startswith("error[confirmation-missing]")
    assert api.changes() == []
    assert vmorch("backup", "delete", "one", "--yes").returncode == 0


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (("backup", "create"), "vmorch vm backup create VM"),
        (("vm", "backup", "restore"), "vmorch backup restore BACKUP --name NEW"),
        (("vm", "backups"), "vmorch vm backup list NAME"),
        (("restore",), "vmorch backup restore BACKUP --name NEW"),
    ],
)
def test_what_is_looked_for_elsewhere_is_pointed_to(vmorch: Run, typed: tuple[str, ...], hint: str) -> None:
    done = vmorch(*typed)
    assert done.returncode == 2
    assert hint in done.stderr
