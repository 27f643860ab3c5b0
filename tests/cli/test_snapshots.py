"""Snapshots and rollbacks from the command line: what is shown, what is asked before, what is sent."""

import json
import random
import re
from collections.abc import Callable

import pytest

from cli.shapes import Prospect, Snapshot
from cli.snapshots import HERE, downtime, tree
from cli.verb_data import load, placed, summaries
from tests.cli import api as make
from tests.cli.api import Api
from tests.cli.conftest import OnTerminal, Run
from vmorch.core.operations.rollback import Prospect as Foreseen
from vmorch.core.snapshot import Schedule

Start = Callable[..., OnTerminal]

TREE = [
    make.snapshot("base", 1, quality="off", power="off", frozen=None, description="fresh install"),
    make.snapshot("pre-upgrade", 2, "base"),
    make.snapshot("tuned", 3, "base", quality="crash-consistent", frozen=None),
    make.snapshot("tuned-2", 4, "tuned", quality="crash-consistent", frozen=None),
    make.snapshot("safety-5", 5, "pre-upgrade", quality="memory", memory=True, origin="safety", frozen=None),
    make.snapshot("after", 6, "pre-upgrade", current=True),
]


def drawn(*snapshots: Snapshot) -> list[str]:
    return [row.name for row in tree(snapshots)]


def kept(name: str, number: int, parent: str | None = None, *, current: bool = False) -> Snapshot:
    return Snapshot(name=name, number=number, parent=parent, current=current)


def test_the_tree_has_parents_before_children_and_says_where_the_guest_is(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms/db-1/snapshots", make.listing("Snapshot", TREE))
    done = vmorch("vm", "snapshot", "list", "db-1", "--time", "utc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "NAME                         TAKEN  QUALITY           POWER    ORIGIN    DESCRIPTION",
        "base          2026-11-20 12:00:00Z  off               off      operator  fresh install",
        "|- tuned      2026-11-20 12:00:00Z  crash-consistent  running  operator  -",
        "|  tuned-2    2026-11-20 12:00:00Z  crash-consistent  running  operator  -",
        "pre-upgrade   2026-11-20 12:00:00Z  frozen            running  operator  -",
        "|- safety-5   2026-11-20 12:00:00Z  memory            running  safety    -",
        "after         2026-11-20 12:00:00Z  frozen            running  operator  -",
        "you are here",
    ]


def test_a_long_line_of_snapshots_stays_at_the_margin() -> None:
    line = [kept(f"s{n}", n, f"s{n - 1}" if n > 1 else None, current=n == 128) for n in range(1, 129)]
    assert drawn(*line) == [*(f"s{n}" for n in range(1, 129)), HERE]


def test_branches_that_began_before_the_first_snapshot_hang_on_a_line_of_their_own() -> None:
    assert drawn(kept("a", 1), kept("b", 2, current=True)) == ["(as created)", "|- a", "b", HERE]
    assert drawn(kept("a", 1), kept("b", 2, "a")) == ["(as created)", "|- a", "|  b", HERE]


def test_a_snapshot_whose_parent_is_not_shown_is_drawn_all_the_same() -> None:
    assert drawn(kept("b", 2, "gone", current=True)) == ["b", HERE]
    assert drawn() == [HERE]


def test_every_tree_is_drawn_whole_with_each_snapshot_after_the_one_it_came_from() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        count = dice.randint(1, 20)
        now = dice.randint(0, count)
        made = [
            kept(f"s{n}", n, f"s{dice.randint(1, n - 1)}" if n > 1 and dice.random() < 0.9 else None, current=n == now)
            for n in range(1, count + 1)
        ]
        labels = [row.label for row in tree(made) if row.snapshot is not None]
        assert sorted(labels) == sorted(each.name for each in made)
        for each in made:
            assert each.parent is None or labels.index(each.parent) < labels.index(each.name)
        last = tree(made)[-1]
        assert (last.label, last.branch) == (HERE, "")


def test_the_list_comes_in_every_form(api: Api, vmorch: Run) -> None:
    reply = make.listing("Snapshot", TREE)
    api.on("GET /v1/vms/db-1/snapshots", reply)
    line = ("vm", "snapshot", "list", "db-1")
    assert json.loads(vmorch(*line, "-o", "json").stdout) == json.loads(reply.body)
    assert "kind: SnapshotList" in vmorch(*line, "-o", "yaml").stdout
    names = ["base", "pre-upgrade", "tuned", "tuned-2", "safety-5", "after"]
    assert [json.loads(each)["name"] for each in vmorch(*line, "-o", "jsonl").stdout.splitlines()] == names
    assert sorted(vmorch(*line, "-o", "name").stdout.split()) == sorted(names)
    wide = vmorch(*line, "-o", "wide", "--no-headers").stdout.splitlines()
    assert wide[3].split()[-3:] == ["0.4s", "vda:1", "-"]


def test_a_vm_without_snapshots_says_so_on_stderr_only(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms/db-1/snapshots", make.listing("Snapshot", []))
    done = vmorch("vm", "snapshot", "list", "db-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no snapshots of db-1\n")


def test_a_snapshot_is_described_with_its_children_disks_and_differences(api: Api, vmorch: Run) -> None:
    found = make.snapshot_detail(
        "pre-upgrade",
        2,
        "base",
        children=("after", "safety-5"),
        description="before 2.0",
        differs=(make.difference("memory", "8192 MiB", "16384 MiB"), make.difference("disk vdb", None, "9 GiB local")),
    )
    api.on("GET /v1/vms/db-1/snapshots/pre-upgrade", make.single("Snapshot", found))
    assert vmorch("vm", "snapshot", "describe", "db-1", "pre-upgrade", "--time", "utc").stdout.splitlines() == [
        "Snapshot db-1/pre-upgrade   Quality frozen   Taken 2026-11-20 12:00:00Z",
        "  Number       2",
        "  Worth        the guest's file systems were at rest",
        "  Came from    base",
        "  Children     after, safety-5",
        "  Guest now    came from elsewhere",
        "  Power        running",
        "  Size         4 vCPUs, 8Gi",
        "  Memory       not kept",
        "  Frozen       0.4s",
        "  Origin       operator",
        "  Description  before 2.0",
        "Disks",
        "  vda  40Gi  local  layer 1",
        "The VM differs from it now (a rollback with --config-too brings this back)",
        "  memory    8192 MiB -> 16384 MiB",
        "  disk vdb  - -> 9 GiB local",
    ]


def test_an_unknown_snapshot_exits_3(api: Api, vmorch: Run) -> None:
    refusal = make.problem("no-such-snapshot", "db-1 has no snapshot x", hint="vmorch vm snapshot list db-1")
    api.on("GET /v1/vms/db-1/snapshots/x", refusal)
    done = vmorch("vm", "snapshot", "describe", "db-1", "x")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "hint: vmorch vm snapshot list db-1"


def finished(api: Api, verb: str, vm: object, **more: object) -> None:
    """The operation has succeeded and left the VM so."""
    end = make.operation("succeeded", "work:done", verb=verb, vm_name="db-1", ended_at=make.AT, **more)
    told = (("vm", vm), ("operation", end))
    api.on(f"GET /v1/operations/{make.OP}/watch", lambda asked: make.stream(make.events(*told)))
    api.on(f"POST /v1/vms/db-1/{verb}", make.accepted("db-1"))


def test_create_says_what_was_taken_and_how_deep_the_chain_is(api: Api, vmorch: Run) -> None:
    taken = make.snapshot("pre-upgrade", current=True, layers={"vda": 0, "vdb": 0})
    vm = make.vm("db-1", snapshots=(taken,), layers_deep=2)
    finished(api, "snapshot", vm, arguments={"name": "pre-upgrade", "quiesce": True})
    flags = ("--name", "pre-upgrade", "--quiesce", "--freeze-within", "5s", "--description", "before 2.0")
    done = vmorch("vm", "snapshot", "create", "db-1", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Snapshot db-1/pre-upgrade (vda, vdb; frozen 0.4s). Chain depth 2 of 32.\n"
    assert api.changes()[0].json() == {
        "name": "pre-upgrade",
        "quiesce": True,
        "freeze_within": 5.0,
        "description": "before 2.0",
    }


def test_a_snapshot_whose_name_was_made_up_is_named(api: Api, vmorch: Run) -> None:
    taken = make.snapshot("snap-3", 3, current=True, quality="memory", frozen=None)
    finished(api, "snapshot", make.vm("db-1", snapshots=(taken,), layers_deep=4), pause=0.5)
    shown = vmorch("vm", "snapshot", "create", "db-1", "--memory").stdout
    assert shown == "Snapshot db-1/snap-3 (vda; memory; its guest stood still for 0.5s). Chain depth 4 of 32.\n"
    assert vmorch("vm", "snapshot", "create", "db-1", "-o", "name").stdout == "snap-3\n"


def test_snapshots_of_several_vms_are_taken_side_by_side(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("web-1"), make.vm("web-2")]))
    for name in ("web-1", "web-2"):
        api.on(f"POST /v1/vms/{name}/snapshot", make.accepted(name, operation=None))
    done = vmorch("vm", "snapshot", "create", "web-*", "--name", "pre-upgrade")
    assert done.returncode == 0
    assert "2 of 2 done" in done.stderr


def test_when_the_disks_are_not_as_recorded_each_difference_stands_on_a_line(api: Api, vmorch: Run) -> None:
    differences = ("vda: layer 3 is missing; restore it from a backup", "vdb: layer 2 stands on 0, not on 1")
    end = make.operation(
        "undone", "snapshot:failed", verb="snapshot", vm_name="db-1", code="chain-drift",
        message="; ".join(differences), blockers=differences,
    )  # fmt: skip
    api.on("POST /v1/vms/db-1/snapshot", make.accepted("db-1"))
    api.on(f"GET /v1/operations/{make.OP}/watch", lambda asked: make.stream(make.events(("operation", end))))
    done = vmorch("vm", "snapshot", "create", "db-1")
    assert done.returncode == 1
    lines = [line.strip() for line in done.stderr.splitlines()]
    assert "error[chain-drift]: snapshot db-1: The disks are not as recorded" in lines
    assert f"blockers   {differences[0]}" in lines
    assert differences[1] in lines
    assert lines[-1] == "hint: vmorch explain chain-drift"


@pytest.mark.parametrize(
    ("code", "way_out"),
    [
        ("freeze-failed", "without --quiesce"),
        ("thaw-failed", "vmorch vm reboot db-1 --force"),
        ("memory-damaged", "vmorch vm snapshot list db-1"),
    ],
)
def test_a_failure_names_its_way_out(api: Api, vmorch: Run, code: str, way_out: str) -> None:
    end = make.operation("undone", "snapshot:failed", verb="snapshot", vm_name="db-1", code=code, message="no")
    api.on("POST /v1/vms/db-1/snapshot", make.accepted("db-1"))
    api.on(f"GET /v1/operations/{make.OP}/watch", lambda asked: make.stream(make.events(("operation", end))))
    assert way_out in vmorch("vm", "snapshot", "create", "db-1").stderr


@pytest.mark.parametrize("line", ["vm snapshot delete db-1 old", "vm rollback db-1 --to old"])
def test_without_a_terminal_nothing_is_asked_of_anybody(api: Api, vmorch: Run, line: str) -> None:
    done = vmorch(*line.split())
    assert done.returncode == 6
    assert done.stderr.startswith("error[confirmation-missing]")
    assert "--yes" in done.stderr
    assert api.asked == []


def test_delete_tells_what_stays_and_what_goes_and_wants_the_name(api: Api, terminal: Start) -> None:
    found = make.snapshot_detail("old", children=("mid",), descendants=("mid", "new"))
    api.on("GET /v1/vms/db-1/snapshots/old", make.single("Snapshot", found))
    finished(api, "delete-snapshot", make.vm("db-1"), arguments={"snapshot": "old", "with_children": True})
    process = terminal("vm", "snapshot", "delete", "db-1", "old", "--time", "utc")
    process.read_until("stays, though it came from it: mid")
    process.read_until("Type the snapshot's name (old) to go on: ")
    process.type("odl\n")
    assert process.end() == 6
    assert api.changes() == []
    process = terminal("vm", "snapshot", "delete", "db-1", "old", "--with-children")
    process.read_until("goes too, as it came from it: mid, new")
    process.read_until("to go on: ")
    process.type("old\n")
    assert process.end() == 0
    assert "Snapshot db-1/old, and what came from it, is deleted. Chain depth 1 of 32." in process.seen
    assert api.changes()[0].json() == {"snapshot": "old", "with_children": True}


def test_a_schedule_is_set_and_ended(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/db-1/set-snapshot-policy", make.accepted("db-1", operation=None))
    line = ("vm", "snapshot", "policy", "db-1")
    done = vmorch(*line, "--every", "1h", "--hourly", "12", "--daily", "7", "--quiesce")
    assert done.stdout == "db-1: recorded (event 48190)\n", done.stderr
    vmorch(*line, "--off")
    assert [each.json() for each in api.changes()] == [
        {"every": 3600.0, "hourly": 12, "daily": 7, "quiesce": True},
        {"off": True},
    ]
    assert vmorch(*line, "--every", "5s", "--last", "1").returncode == 2


def test_policy_without_options_shows_the_schedule_in_force_and_needs_no_reason(api: Api, vmorch: Run) -> None:
    schedule = Schedule(every=5400.0, last=4, hourly=12, daily=7, weekly=2, quiesce=True)
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("db-1"), make.vm("db-20")]))
    api.on("GET /v1/vms/db-1", make.single("Vm", make.vm("db-1", schedule=schedule)))
    api.on("GET /v1/vms/db-20", make.single("Vm", make.vm("db-20")))
    vmorch("context", "add", "prod", "--api", api.url, "--protected")
    line = ("vm", "snapshot", "policy", "db-*")
    done = vmorch(*line)
    assert done.stdout.splitlines() == [
        "db-1   every 1h30m, keep the newest 4, 12 hourly, 7 daily, 2 weekly, file systems at rest",
        "db-20  no schedule",
    ], done.stderr
    assert api.changes() == []
    items = json.loads(vmorch(*line, "-o", "json").stdout)["items"]
    assert (items[0]["schedule"]["every"], items[1]["schedule"]) == (5400.0, None)
    assert vmorch("vm", "snapshot", "policy").returncode == 2


def foreseen(**more: object) -> Foreseen:
    fields: dict[str, object] = {
        "to": "pre-upgrade",
        "lost": (),
        "kept": ("the present state of vda: in snapshot safety-7", "vdb stays as it is"),
        "stops": True,
        "memory": 8192,
        "boots": True,
    }
    return Foreseen(**{**fields, **more})  # type: ignore[arg-type]  # the fields are of many types


def rollback_plan(api: Api, **more: object) -> None:
    plan = make.document(
        "Plan", host="hv-02", verdicts=[], steps=["layers", "save"], spec={}, position=48204, rollback=foreseen(**more)
    )
    api.on("GET /v1/vms/db-1/snapshots/pre-upgrade", make.single("Snapshot", make.snapshot_detail("pre-upgrade")))
    vm = make.vm("db-1", snapshots=(make.snapshot("safety-7", 7, origin="safety"),))
    finished(api, "rollback", vm, arguments={"to": "pre-upgrade"})
    doing = api.routes[("POST", "/v1/vms/db-1/rollback")]
    api.on("POST /v1/vms/db-1/rollback", lambda asked: plan if "dryRun" in asked.query else doing(asked))


def test_a_rollback_shows_what_it_loses_and_keeps_before_it_wants_the_vms_name(api: Api, terminal: Start) -> None:
    rollback_plan(api)
    process = terminal("vm", "rollback", "db-1", "--to", "pre-upgrade", "--time", "utc")
    process.read_until("Type the VM's name (db-1) to go on: ")
    shown = [line.rstrip() for line in process.seen.splitlines()]
    assert shown[:5] == [
        "Rollback to db-1/pre-upgrade (frozen, taken 2026-11-20 12:00:00Z)",
        "  lost      nothing",
        "  kept      the present state of vda: in snapshot safety-7",
        "            vdb stays as it is",
        "  downtime  about 58s: up to 8Gi of memory to write and read, the guest boots",
    ]
    process.type("db-1\n")
    assert process.end() == 0
    assert "db-1 is running on hv-02 at 10.0.4.13, as it was at pre-upgrade" in process.seen
    assert "Back: vmorch vm rollback db-1 --to safety-7" in process.seen
    assert [each.query for each in api.changes()] == [{"dryRun": ["true"]}, {}]


def test_another_name_begins_no_rollback(api: Api, terminal: Start) -> None:
    rollback_plan(api)
    process = terminal("vm", "rollback", "db-1", "--to", "pre-upgrade")
    process.read_until("to go on: ")
    process.type("y\n")
    assert process.end() == 6
    assert [each.query for each in api.changes()] == [{"dryRun": ["true"]}]


def test_yes_goes_on_at_once_so_that_a_request_can_be_repeated(api: Api, vmorch: Run) -> None:
    rollback_plan(api)
    done = vmorch("vm", "rollback", "db-1", "--to", "pre-upgrade", "--config-too", "--no-safety-snapshot", "-y")
    assert done.returncode == 0, done.stderr
    [asked] = api.changes()
    assert asked.query == {}
    assert asked.json() == {"to": "pre-upgrade", "config_too": True, "safety_snapshot": False}


def test_a_dry_run_of_a_rollback_only_shows_and_exits_10(api: Api, vmorch: Run) -> None:
    rollback_plan(api, lost=("the present state of vda",), kept=(), boots=False)
    done = vmorch("vm", "rollback", "db-1", "--to", "pre-upgrade", "--dry-run")
    assert done.returncode == 10
    assert done.stdout.splitlines() == [
        "Plan of vm.rollback db-1 at 48204: on hv-02",
        "Steps",
        "  1  layers",
        "  2  save",
        "Back to pre-upgrade",
        "  lost      the present state of vda",
        "  downtime  about 43s: up to 8Gi of memory to write and read",
    ]
    document = json.loads(vmorch("vm", "rollback", "db-1", "--to", "pre-upgrade", "--dry-run", "-o", "json").stdout)
    assert document["rollback"]["lost"] == ["the present state of vda"]


def test_a_refused_rollback_is_refused_before_anything_is_asked(api: Api, terminal: Start) -> None:
    rollback_plan(api)
    api.on("POST /v1/vms/db-1/rollback", make.problem("config-differs", "other vCPUs", hint="--config-too"))
    process = terminal("vm", "rollback", "db-1", "--to", "pre-upgrade")
    assert process.end() == 6
    assert "error[config-differs]" in process.seen
    assert "to go on" not in process.seen


@pytest.mark.parametrize(
    ("stops", "memory", "boots", "said"),
    [
        (False, 0, False, "none, it is off"),
        (False, 2000, False, "none, it is off; it goes on from its kept memory in about 12s"),
        (True, 0, True, "about 17s: the guest boots"),
        (True, 0, False, "about 2s"),
    ],
)
def test_how_long_the_guest_stands_still_is_told_roughly(stops: bool, memory: int, boots: bool, said: str) -> None:
    assert downtime(Prospect(to="a", stops=stops, memory=memory, boots=boots)) == said


def test_a_vm_is_described_with_its_snapshots_in_one_line(api: Api, vmorch: Run) -> None:
    vm = make.vm("db-1", snapshots=tuple(TREE), layers_deep=4, schedule=Schedule(every=3600.0, hourly=12))
    api.on("GET /v1/vms/db-1", make.single("Vm", vm))
    api.on("GET /v1/events", make.listing("Event", []))
    shown = vmorch("vm", "describe", "db-1").stdout
    line = next(line for line in shown.splitlines() if "Snapshots" in line)
    assert re.fullmatch(
        r"  Snapshots  6, newest after \w+ ago; 4 of 32 layers; every 1h, keep 12 hourly", line
    )


def test_the_verbs_of_the_group_do_not_stand_a_second_time_among_those_of_vm(vmorch: Run) -> None:
    assert {"snapshot", "delete-snapshot", "set-snapshot-policy", "rollback"}.isdisjoint(summaries())
    assert placed("snapshot delete") == "delete-snapshot"
    assert load("delete-snapshot") is not None
    done = vmorch("vm", "delete-snapshot", "db-1", "old")
    assert done.returncode == 2
    assert "type: vmorch vm snapshot delete NAME" in done.stderr


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("vm revert db-1", "vmorch vm rollback NAME --to SNAPSHOT"),
        ("vm snapshot-create-as db-1", "vmorch vm snapshot create NAME --name SNAPSHOT"),
        ("vm snapshot revert db-1", "vmorch vm rollback VM --to SNAPSHOT"),
        ("snapshot-revert db-1", "vmorch vm rollback NAME --to SNAPSHOT"),
        ("rollback db-1", "vmorch vm rollback NAME --to SNAPSHOT"),
    ],
)
def test_foreign_words_of_snapshots_are_answered_with_ours(vmorch: Run, typed: str, ours: str) -> None:
    done = vmorch(*typed.split())
    assert done.returncode == 2
    assert ours in done.stderr


def test_names_of_snapshots_are_completed(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms/db-1/snapshots", make.listing("Snapshot", TREE))
    for words in ("vm rollback db-1 --to", "vm snapshot delete db-1", "vm snapshot describe db-1"):
        typed = f"vmorch {words} tun"
        asked = {"_VMORCH_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        shown = vmorch(**asked).stdout
        assert "tuned-2" in shown
        assert "base" not in shown


def test_what_a_snapshot_sends_has_a_schema_under_its_own_name(vmorch: Run) -> None:
    assert json.loads(vmorch("schema", "vm", "snapshot", "create").stdout)["$ref"].endswith("/SnapshotVm")
    assert json.loads(vmorch("schema", "vm", "snapshot", "policy").stdout)["$ref"].endswith("/SetSnapshotPolicy")
    listed = json.loads(vmorch("schema", "snapshot", "list").stdout)
    assert listed["properties"]["kind"] == {"const": "SnapshotList"}
    assert "SnapshotDetail" not in listed["$defs"]
