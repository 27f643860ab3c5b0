"""Reading: lists, single things, formats, the way to the server."""

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.cli import api as make
from tests.cli.api import Api, Asked, Reply
from tests.cli.conftest import Run
from vmorch.core.aggregates.cluster import Policy
from vmorch.core.codes import CODES
from vmorch.core.resources import ClusterResource, WhyResource


def two_vms() -> Reply:
    return make.listing("Vm", [make.vm("db-1", vcpus=16, labels={}), make.vm("web-3", state="stopping")])


def test_a_list_is_a_table_on_stdout(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", two_vms())
    done = vmorch("vm", "list", "--time", "utc")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "NAME   STATE     HOST   VCPU  MEM  IP                          AGE",
        "db-1   running   hv-02    16  8Gi  10.0.4.13  2026-11-20 12:00:00Z",
        "web-3  stopping  hv-02     4  8Gi  10.0.4.13  2026-11-20 12:00:00Z",
    ]
    assert done.stderr == ""


def test_filters_go_to_the_server(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", two_vms())
    vmorch(
        "vm",
        "list",
        "web-*",
        "-l",
        "app=web",
        "-l",
        "tier=gold",
        "--host",
        "hv-02",
        "--min-position",
        "7",
        "--limit",
        "5",
    )
    assert api.asked[0].query == {
        "name": ["web-*"],
        "label": ["app=web", "tier=gold"],
        "host": ["hv-02"],
        "minPosition": ["7"],
        "limit": ["5"],
    }


def test_json_is_the_servers_document(api: Api, vmorch: Run) -> None:
    reply = two_vms()
    api.on("GET /v1/vms", reply)
    assert json.loads(vmorch("vm", "list", "-o", "json").stdout) == json.loads(reply.body)
    assert (
        json.loads(vmorch("vm", "list", "-o", "json").stdout)["items"][0]["spec"]["disks"][0]["name"] == "vda"
    )


def test_jsonl_is_an_item_a_line_and_name_a_name_a_line(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", two_vms())
    lines = vmorch("vm", "list", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["db-1", "web-3"]
    assert vmorch("-o", "name", "vm", "list").stdout == "db-1\nweb-3\n"


def test_yaml_and_queries(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", two_vms())
    assert "kind: VmList" in vmorch("vm", "list", "-o", "yaml").stdout
    assert json.loads(vmorch("vm", "list", "--query", "items[].name").stdout) == ["db-1", "web-3"]
    assert vmorch("vm", "list", "--query", "items[").returncode == 2


@pytest.mark.parametrize(("flags", "library"), [(("-o", "yaml"), "yaml"), (("--query", "items"), "jmespath")])
def test_a_library_that_is_not_installed_is_named_with_the_extra(
    api: Api, started: Run, tmp_path: Path, flags: tuple[str, ...], library: str
) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError")
    api.on("GET /v1/vms", two_vms())
    from tests.cli.conftest import ROOT

    done = started("vm", "list", *flags, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 2
    assert "pip install 'vmorch[cli]'" in done.stderr


def test_pages_are_followed_to_the_end(api: Api, vmorch: Run) -> None:
    def page(asked: Asked) -> Reply:
        if "after" in asked.query:
            assert asked.query["after"] == ["cursor-1"]
            return make.listing("Vm", [make.vm("web-3")])
        return make.listing("Vm", [make.vm("db-1")], next="cursor-1")

    api.on("GET /v1/vms", page)
    assert vmorch("vm", "list", "-o", "name").stdout == "db-1\nweb-3\n"
    document = json.loads(vmorch("vm", "list", "-o", "json").stdout)
    assert [item["name"] for item in document["items"]] == ["db-1", "web-3"]
    assert document["next"] is None
    assert vmorch("vm", "list", "-o", "name", "--limit", "1").stdout == "db-1\n"


def test_a_vm_that_nobody_can_place_is_described_with_the_evidence_and_the_way_out(api: Api, vmorch: Run) -> None:
    source = {"host": "hv-01", "power": "paused", "reason": "migration"}
    destination = {"host": "hv-02", "power": "unknown", "reason": "not seen"}
    why = "the destination cannot be seen"
    frozen = {"operation": "op", "why": why, "source": source, "destination": destination}
    known = json.loads(msgspec.json.encode(make.vm("web-1")))
    doc = {**known, "traces": ["hv-02"], "frozen": {**frozen, "since": None}}
    api.on("GET /v1/vms/web-1", make.single("Vm", doc))
    api.on("GET /v1/events", make.listing("Event", []))
    shown = vmorch("vm", "describe", "web-1").stdout
    assert "hv-01: paused (migration)" in shown
    assert "hv-02: unknown (not seen)" in shown
    assert "vmorch vm resolve web-1 hv-01" in shown
    assert "Something of it may be left on hv-02" in shown


def test_an_empty_list_says_so_on_stderr_only(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", []))
    done = vmorch("vm", "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no VMs\n")


def test_describe_shows_everything(api: Api, vmorch: Run) -> None:
    api.on(
        "GET /v1/vms/web-1",
        make.single("Vm", make.vm("web-1", pending={"memory": make.pending(8192, 16384)})),
    )
    data = {"grace": 60.0, "steps": [{"x": 1}]}
    api.on(
        "GET /v1/events", make.listing("Event", [make.event(48102, "vm.stopped", data, reason="CHG-2190")])
    )
    done = vmorch("vm", "describe", "web-1", "--time", "utc")
    assert done.stdout.splitlines() == [
        "Name web-1   State running   Host hv-02   Version 17",
        "  Id         id-web-1",
        "  Image      debian-13",
        "  vCPUs      4, up to 8 live",
        "  Memory     8Gi",
        "  Addresses  10.0.4.13",
        "  Labels     app=web",
        "  Eviction   live",
        "  Snapshots  -",
        "  Created    2026-11-20 12:00:00Z",
        "Conditions",
        "  Running  True   power running; ready when: guest agent, within 3m",
        "  Seen     True   last observed 2026-11-20 12:00:00Z",
        "  InSync   False  memory waits for the next start",
        "Disks",
        "  vda  40Gi  local  on sha256:9b9b9b9b9b9b",
        "Networks",
        "  52:54:00:aa:bb:cc  prod  10.0.4.13/24",
        "Pending, in force from the next start",
        "  memory  8Gi -> 16Gi",
        "Events",
        '  48102  2026-11-20 12:00:00Z  vm.stopped  oncall  grace 60.0 "CHG-2190"',
    ]
    assert api.asked[1].query["subject"] == ["vm/id-web-1"]


def test_an_unknown_name_exits_3(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms/web-9", make.problem("no-such-vm", "no vm is called 'web-9'", hint="vmorch vm list"))
    done = vmorch("vm", "describe", "web-9")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error[no-such-vm]: no vm is called 'web-9'\nhint: vmorch vm list\n"


def test_with_json_the_problem_document_goes_to_stderr(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms/web-9", make.problem("no-such-vm", "no"))
    done = vmorch("vm", "describe", "web-9", "-o", "json")
    assert done.returncode == 3
    assert json.loads(done.stderr)["code"] == "no-such-vm"


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_exits_as_its_table_says(code: str, api: Api) -> None:
    from cli.problems import from_document

    reply = make.problem(code, "x")
    assert from_document(reply.body, reply.status).exit_code == CODES[code].exit


def test_hosts_images_operations_and_tokens_are_listed(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/hosts", make.listing("Host", [make.host("hv-01")]))
    api.on("GET /v1/images", make.listing("Image", [make.image("debian-13")]))
    api.on("GET /v1/operations", make.listing("Operation", [make.operation("stuck", ended_at=make.AT)]))
    hosts = vmorch("host", "list", "--time", "utc").stdout.splitlines()
    assert hosts[1].split() == [
        "hv-01",
        "active",
        "2026-11-20",
        "12:00:00Z",
        "21",
        "84/128",
        "371Gi/512Gi",
        "kvm",
    ]
    assert vmorch("image", "list", "--time", "utc").stdout.splitlines()[1].split()[:5] == [
        "debian-13",
        "qcow2",
        "350Mi",
        "3Gi",
        "9b9b9b9b9b9b",
    ]
    assert vmorch("op", "list", "--active").stdout.splitlines()[1].split()[:4] == [
        make.OP,
        "create",
        "web-3",
        "stuck",
    ]
    assert api.asked[-1].query["active"] == ["true"]


def test_a_described_host_shows_its_vms_and_capacity(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/hosts/hv-02", make.single("Host", make.host("hv-02", cordoned="raid")))
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("web-1")]))
    api.on("GET /v1/events", make.listing("Event", []))
    shown = vmorch("host", "describe", "hv-02").stdout
    assert "Cordoned     raid" in shown
    # the fixture's certificate was issued in the past of whoever reads this, or not
    assert re.search(r"Certificate  hv-02, 10\.0\.0\.7, (expires in \d+d|expired) ?.*2027-02-17 12:00 UTC", shown)
    assert "web-1  running  4  8Gi" in shown


def test_a_unix_socket_serves_as_well(vmorch: Run, tmp_path: Path) -> None:
    with Api(unix=tmp_path / "api.sock") as api:
        api.on("GET /v1/vms", two_vms())
        assert vmorch("vm", "list", "-o", "name", "--api", api.url).stdout == "db-1\nweb-3\n"


def test_nothing_there_exits_7_and_says_where(vmorch: Run) -> None:
    done = vmorch("vm", "list", "--api", "http://127.0.0.1:1")
    assert done.returncode == 7
    assert done.stderr.startswith(
        "error[server-unreachable]: nothing answers at http://127.0.0.1:1 (Connection refused)"
    )


@pytest.mark.parametrize(
    "line", ["event list", "api GET /v1/events/tail", "vm start a", "op wait x --timeout 200ms"]
)
def test_every_way_of_asking_says_when_nothing_is_there(vmorch: Run, line: str) -> None:
    done = vmorch(*line.split(), "--api", "unix:/nonexistent/api.sock")
    assert done.returncode == (8 if "--timeout" in line else 7)
    assert "internal-error" not in done.stderr


def test_uploads_and_fetches_say_it_too(vmorch: Run, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    for source in (("--file", str(tmp_path / "disk")), ("--url", "http://example.org/disk")):
        done = vmorch("image", "add", "a", *source, "--api", "http://127.0.0.1:1")
        assert done.returncode == 7
        assert "error[server-unreachable]" in done.stderr


def test_a_broken_connection_is_tried_again(api: Api, vmorch: Run) -> None:
    answers = [Reply(drop=True), Reply(drop=True), two_vms()]
    api.on("GET /v1/vms", lambda asked: answers.pop(0))
    assert vmorch("vm", "list", "-o", "name").stdout == "db-1\nweb-3\n"


def test_events_are_listed_shown_and_filtered(api: Api, vmorch: Run) -> None:
    api.on(
        "GET /v1/events", make.listing("Event", [make.event(7, "vm.labelled", {"labels": {"tier": "gold"}})])
    )
    api.on(
        "GET /v1/events/7",
        make.single("Event", make.event(7, "vm.labelled", {"labels": {}}, operation=make.OP)),
    )
    done = vmorch("events", "list", "--for", "vm/web-1", "--type", "vm.*", "--since", "2h", "--time", "utc")
    assert (
        done.stdout.splitlines()[1]
        == "  7  2026-11-20 12:00:00Z  vm.labelled  vm/web-1  oncall  labels tier=gold"
    )
    asked = api.asked[0].query
    assert (asked["subject"], asked["kind"]) == (["vm/web-1"], ["vm.*"])
    assert asked["since"][0].endswith("+00:00")
    assert make.OP in vmorch("event", "show", "7").stdout


def test_why_shows_the_chain_from_who_began_it_to_the_event_that_set_the_value(api: Api, vmorch: Run) -> None:
    stopped = make.event(9, "vm.step-done", {"operation": make.OP, "index": 0}, actor="host:node-1", causation=8)
    begun = make.event(8, "vm.operation-started", {"operation": make.OP, "verb": "stop"}, reason="CHG-2190")
    why = WhyResource(
        subject="vm/id-web-1", name="web-1", field="power", value="off", before="running", causes=[stopped, begun]
    )
    api.on("GET /v1/why/vm/web-1", make.single("Why", why))
    lines = vmorch("why", "vm/web-1", "power", "--time", "utc").stdout.splitlines()
    assert lines == [
        "vm/web-1 power is off, before running",
        '       8  2026-11-20 12:00:00  vm.operation-started  vm/web-1  oncall  verb stop "CHG-2190"',
        "       9  2026-11-20 12:00:00  └ vm.step-done  vm/web-1  host:node-1  index 0",
    ]
    assert api.asked[0].query["field"] == ["power"]
    api.on("GET /v1/events/9/causes", make.listing("Event", [stopped, begun]))
    assert vmorch("event", "show", "9", "--causes", "--time", "utc").stdout.splitlines() == lines[1:]


def test_why_wants_a_kind_and_a_name(vmorch: Run) -> None:
    done = vmorch("why", "web-1")
    assert done.returncode == 2
    assert "KIND/NAME" in done.stderr


def test_a_tail_goes_on_after_a_break_without_missing_anything(api: Api, vmorch: Run) -> None:
    def tail(asked: Asked) -> Reply:
        after = int(asked.query.get("after", ["0"])[0])
        if after >= 9:
            return make.problem("forbidden", "enough")
        found = msgspec.json.encode(make.event(after + 8, "vm.started", {}))
        return make.stream(iter([b"id: %d\nevent: event\ndata: " % (after + 8) + found + b"\n\n"]))

    api.on("GET /v1/events/tail", tail)
    done = vmorch("event", "tail", "-o", "name")
    assert done.stdout == "8\n16\n"
    assert done.returncode == 4


def test_the_doctor_exits_1_if_something_fails(api: Api, vmorch: Run) -> None:
    checks = [
        {"check": "log", "state": "ok", "detail": "head at 9", "hint": ""},
        {"check": "host hv-04", "state": "fail", "detail": "silent", "hint": "systemctl status vmorch-agent"},
    ]
    api.on("GET /v1/doctor", make.document("CheckList", items=checks))
    done = vmorch("doctor")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == [
        "ok    log         head at 9",
        "fail  host hv-04  silent",
        "      hint: systemctl status vmorch-agent",
    ]


def test_status_and_whoami(api: Api, vmorch: Run) -> None:
    fields = {
        "cluster": "prod",
        "version": "1",
        "head": 48204,
        "hosts": {"active": 3},
        "vms": {"running": 52, "off": 2},
    }
    api.on("GET /v1/status", make.document("Status", **fields, operations=2, projectionLag=0, nats=True))
    api.on(
        "GET /v1/whoami",
        make.document("Identity", name="oncall", role="operator", cluster="prod", expires=None),
    )
    shown = vmorch("status").stdout
    assert "VMs     54: 52 running, 2 off" in shown
    assert "unencrypted" not in shown
    assert vmorch("whoami").stdout == f"oncall (operator) at cluster prod, {api.url}\n"


def test_the_policy_is_shown_and_a_loose_one_stands_in_the_status(api: Api, vmorch: Run) -> None:
    policy = Policy(clear_migration=True, migrations_out=2)
    api.on("GET /v1/cluster", make.single("Cluster", ClusterResource(policy=policy, version=1)))
    changed = make.event(7, "cluster.policy-set", {"policy": {"clear_migration": True, "migrations_out": 2}})
    api.on("GET /v1/events", make.listing("Event", [changed]))
    api.on("GET /v1/status", make.document("Status", clearMigration=True))
    shown = vmorch("cluster", "describe").stdout
    assert "Clear migration  allowed where a host has no certificate" in shown
    assert "32 at once, 2 from and 4 to one host" in shown
    assert "clear_migration=True,migrations_out=2" in shown
    assert "guests may travel unencrypted" in vmorch("status").stdout


def test_the_raw_api_is_within_reach(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/errors", make.document("ErrorList", items=[]))
    api.on("POST /v1/vms/web-1/stop", make.accepted("web-1"))
    assert json.loads(vmorch("api", "GET", "/v1/errors").stdout)["kind"] == "ErrorList"
    vmorch("api", "post", "/v1/vms/web-1/stop", "--data", '{"force": true}')
    assert api.asked[-1].json() == {"force": True}
    assert "vmorch-request-id" in api.asked[-1].headers


def test_a_reader_who_has_seen_enough_is_no_error(api: Api, env: dict[str, str]) -> None:
    api.on("GET /v1/vms", make.listing("Vm", [make.vm(f"web-{n}") for n in range(2000)]))
    line = f"{sys.executable} -m cli vm list | head -1"
    done = subprocess.run(
        line, shell=True, env={**env, "VMORCH_API": api.url}, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


def test_names_are_completed_from_the_server_and_failures_are_silent(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", two_vms())
    ask = {"_VMORCH_COMPLETE": "bash_complete", "COMP_WORDS": "vmorch vm stop w", "COMP_CWORD": "3"}
    assert vmorch(**ask).stdout == "plain,web-3\n"
    assert vmorch(**ask).stdout == "plain,web-3\n"
    assert len(api.asked) == 1, "the second answer comes from the cache"
    away = vmorch(**{**ask, "VMORCH_API": "http://127.0.0.1:1"})
    assert (away.stdout.strip(), away.stderr) == ("", "")


def test_watching_a_list_on_a_pipe_prints_what_changes(api: Api, vmorch: Run) -> None:
    states = ["off", "starting", "running"]

    def look(asked: Asked) -> Reply:
        if not states:
            return make.problem("forbidden", "enough")
        return make.listing("Vm", [make.vm("db-1"), make.vm("web-1", state=states.pop(0))])

    api.on("GET /v1/vms", look)
    api.on("GET /v1/events/tail", lambda asked: make.stream(iter([b"id: 48205\ndata: {}\n\n"])))
    done = vmorch("vm", "list", "-w")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["NAME", "STATE"],
        ["db-1", "running"],
        ["web-1", "off"],
        ["web-1", "starting"],
        ["web-1", "running"],
    ]
    assert [each.query.get("minPosition") for each in api.asked if each.path == "/v1/vms"][1] == ["48205"]
