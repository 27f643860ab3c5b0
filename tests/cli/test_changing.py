"""Changes: what is sent, what is waited for, how they end."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import api as make
from tests.cli.api import Api, Asked, Reply
from tests.cli.conftest import Run

STEPS = [
    make.operation("running", "image:running disk:waiting define:waiting start:waiting"),
    make.operation("running", "image:done disk:running define:waiting start:waiting"),
    make.operation("running", "image:done disk:done define:done start:running"),
    make.operation("succeeded", "image:done disk:done define:done start:done", ended_at=make.AT),
]
STUCK = make.operation(
    "stuck",
    "stop:failed",
    verb="stop",
    code="guest-did-not-stop",
    message="the guest ignored the request for 60s",
)


WHOLE = """
    vm create web-3 --image debian-13 --vcpus 4 --memory 8Gi --disk 40Gi --extra-disk 200Gi,shared
    --net network=prod,address=10.0.4.13/24,gateway=10.0.4.1,nameserver=10.0.0.2 --label app=web
    --host-label rack=b2 --away-from app=web --eviction restart --ready http:8080/healthz --ready-within 2m
"""


def watched(api: Api, *states: object) -> None:
    api.on(
        f"GET /v1/operations/{make.OP}/watch",
        lambda asked: make.stream(make.events(*(("operation", state) for state in states))),
    )


def test_create_sends_the_whole_request_and_shows_its_steps(api: Api, vmorch: Run, tmp_path: Path) -> None:
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA me\n")
    (tmp_path / "user-data").write_text("#cloud-config\n")
    api.on("POST /v1/vms", make.accepted("web-3"))
    api.on("GET /v1/vms/id-web-3", make.single("Vm", make.vm("web-3")))
    watched(api, *STEPS)
    files = ["--key", str(tmp_path / "id.pub"), "--user-data", str(tmp_path / "user-data")]
    done = vmorch(*WHOLE.split(), *files, "--key", "ssh-rsa BBBB", "-m", "größer")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "web-3 is running on hv-02 at 10.0.4.13\n"
    lines = [re.sub(r"  [\d.]+s$", "", line) for line in done.stderr.splitlines()]
    assert lines == [
        f"op {make.OP}  vm.create web-3",
        "  ok  image   hv-02",
        "  ok  disk    hv-02",
        "  ok  define  hv-02",
        "  ok  start   hv-02",
    ]
    sent = api.changes()[0]
    assert sent.headers["vmorch-reason"].encode("latin-1").decode() == "größer"
    assert re.fullmatch(r"[0-9a-f-]{36}", sent.headers["vmorch-request-id"])
    assert sent.json() == {
        "name": "web-3",
        "image": "debian-13",
        "vcpus": 4,
        "memory": 8192,
        "disk": 40,
        "extra_disks": [{"size": 200, "storage": "shared"}],
        "nics": [
            {"network": "prod", "address": "10.0.4.13/24", "gateway": "10.0.4.1", "nameservers": ["10.0.0.2"]}
        ],
        "ssh_keys": ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"],
        "user_data": "#cloud-config\n",
        "ready": {"by": "http", "port": 8080, "path": "/healthz", "within": 120.0},
        "labels": {"app": "web"},
        "placing": {"host_labels": {"rack": "b2"}, "away_from": {"app": "web"}},
        "eviction": "restart",
    }


def test_what_create_sends_is_what_the_core_understands(api: Api, vmorch: Run) -> None:
    import msgspec

    from vmorch.core.operations.create import CreateVm

    api.on("POST /v1/vms", make.accepted("a"))
    line = "vm create a --image i --memory 1Gi --no-start --ready tcp:22 --net default --extra-disk 1Gi --host hv-01 -d"
    assert vmorch(*line.split()).returncode == 0
    command = msgspec.json.decode(api.changes()[0].body, type=CreateVm)
    assert (command.start, command.ready.by, command.ready.port, command.placing.host) == (
        False,
        "tcp",
        22,
        "hv-01",
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--memory 8G", 'did you mean "8Gi"'),
        ("--memory 1Gi --net speed=fast", "none of network="),
        ("--memory 1Gi --ready ping", "none of agent, none"),
        ("--memory 1Gi --extra-disk 1Gi,tape", "no storage"),
        ("--memory 1Gi --label app", "not key=value"),
        ("--memory 1Gi --key /nonexistent", "neither a public key nor a readable file"),
    ],
)
def test_create_refuses_what_it_cannot_read_before_asking(
    api: Api, vmorch: Run, flags: str, says: str
) -> None:
    done = vmorch("vm", "create", "a", "--image", "i", *flags.split())
    assert done.returncode == 2
    assert says in done.stderr
    assert api.asked == []


def test_a_private_key_is_never_sent(api: Api, vmorch: Run, tmp_path: Path) -> None:
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    done = vmorch("vm", "create", "a", "--image", "i", "--memory", "1Gi", "--key", str(tmp_path / "id"))
    assert done.returncode == 2
    assert api.asked == []


def test_a_refusal_shows_the_reason_of_every_host(api: Api, vmorch: Run) -> None:
    facts = {"hv-01": "cordoned", "hv-02": "4096 MiB of memory left"}
    api.on(
        "POST /v1/vms",
        make.problem("no-host-fits", "none of 2 hosts can take the VM", facts=facts, hint="vmorch host list"),
    )
    done = vmorch("vm", "create", "a", "--image", "i", "--memory", "1Gi")
    assert done.returncode == 6
    assert done.stderr.splitlines() == [
        "error[no-host-fits]: none of 2 hosts can take the VM",
        "  hv-01  cordoned",
        "  hv-02  4096 MiB of memory left",
        "hint: vmorch host list",
    ]


def test_a_dry_run_shows_the_plan_and_exits_10(api: Api, vmorch: Run) -> None:
    verdicts = [
        {"name": "hv-02", "fits": True, "score": 71.5, "reason": "most free memory"},
        {"name": "hv-03", "fits": False, "score": 0, "reason": "cordoned"},
    ]
    plan = make.document(
        "Plan", host="hv-02", verdicts=verdicts, steps=["image", "disk"], spec={}, position=48204
    )
    api.on("POST /v1/vms", plan)
    done = vmorch("vm", "create", "a", "--image", "i", "--memory", "1Gi", "--dry-run")
    assert done.returncode == 10
    assert api.asked[0].query == {"dryRun": ["true"]}
    assert done.stdout.splitlines() == [
        "Plan of vm.create a at 48204: on hv-02",
        "Steps",
        "  1  image",
        "  2  disk",
        "Hosts",
        "  NAME   FITS  SCORE  WHY",
        "  hv-02  yes    71.5  most free memory",
        "  hv-03  no        -  cordoned",
    ]


def test_detached_changes_print_the_operation_and_do_not_wait(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-1/start", make.accepted("web-1"))
    done = vmorch("vm", "start", "web-1", "-d")
    assert done.returncode == 0
    assert done.stdout == f"op {make.OP}  vm.start web-1\n"
    assert f"vmorch op watch {make.OP}" in done.stderr


def test_a_failed_operation_fails_the_command(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-1/stop", make.accepted("web-1"))
    watched(api, STUCK)
    done = vmorch("vm", "stop", "web-1", "--grace", "1m")
    assert api.changes()[0].json() == {"grace": 60.0}
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[1:] == [
        "  !!  stop  hv-02",
        "error[guest-did-not-stop]: stop web-3: the guest ignored the request for 60s",
        "  step       stop on hv-02",
        "  outcome    stopped here; what it had done is still in place",
        f"  operation  {make.OP}",
        "hint: vmorch vm stop web-3 --force",
    ]


def test_with_json_stdout_is_the_operation_and_stderr_the_problem(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-1/stop", make.accepted("web-1"))
    api.on(f"GET /v1/operations/{make.OP}", make.single("Operation", STUCK))
    watched(api, STUCK)
    done = vmorch("vm", "stop", "web-1", "-o", "json", "-q")
    assert json.loads(done.stdout)["item"]["state"] == "stuck"
    assert json.loads(done.stderr)["code"] == "guest-did-not-stop"
    assert done.returncode == 1


def test_steps_are_shown_going_back_when_an_operation_is_undone(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-1/start", make.accepted("web-1"))
    watched(
        api,
        make.operation("running", "start:running ready:waiting"),
        make.operation("undoing", "start:done ready:failed", code="libvirt-refused", message="no such CPU"),
        make.operation("undone", "start:undone ready:failed", code="libvirt-refused", message="no such CPU"),
    )
    done = vmorch("vm", "start", "web-1")
    marks = [line.split()[:2] for line in done.stderr.splitlines()[1:4]]
    assert marks == [["ok", "start"], ["!!", "ready"], ["<-", "start"]]
    assert "what it had done was taken back" in done.stderr
    assert done.returncode == 1


def test_a_change_of_the_record_only_needs_no_waiting(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-1/label", make.accepted("web-1", operation=None))
    done = vmorch("vm", "label", "web-1", "--set", "tier=gold", "--remove", "old")
    assert api.changes()[0].json() == {"set": {"tier": "gold"}, "remove": ["old"]}
    assert done.stdout == "web-1: recorded (event 48190)\n"


def test_the_policy_is_changed_by_naming_what_shall_be_otherwise(api: Api, vmorch: Run) -> None:
    api.on("PATCH /v1/cluster", make.accepted("", operation=None))
    done = vmorch("cluster", "set", "--no-clear-migration", "--migrations-out", "2", "-m", "CHG-7")
    assert done.returncode == 0, done.stderr
    [asked] = api.changes()
    assert asked.json() == {"clear_migration": False, "migrations_out": 2}
    assert asked.headers["vmorch-reason"] == "CHG-7"
    assert vmorch("cluster", "set").returncode == 2
    assert vmorch("cluster", "set", "--migrations", "0").returncode == 2


def test_timeout_exits_8_and_cancels_nothing(api: Api, vmorch: Run) -> None:
    over = threading.Event()

    def slow(asked: Asked) -> Reply:
        def chunks() -> Iterator[bytes]:
            yield from make.events(("operation", STEPS[1]))
            over.wait(30)

        return make.stream(chunks())

    api.on("POST /v1/vms/web-1/start", make.accepted("web-1"))
    api.on(f"GET /v1/operations/{make.OP}/watch", slow)
    done = vmorch("vm", "start", "web-1", "--timeout", "500ms")
    over.set()
    assert done.returncode == 8
    assert f"timeout: op {make.OP} still runs. Nothing was cancelled." in done.stderr
    assert [each.path for each in api.changes()] == ["/v1/vms/web-1/start"]


def test_a_lost_answer_is_asked_for_again_under_the_same_request_id(api: Api, vmorch: Run) -> None:
    answers = [Reply(drop=True), make.accepted("web-1", operation=None)]
    api.on("POST /v1/vms/web-1/label", lambda asked: answers.pop(0))
    assert vmorch("vm", "label", "web-1", "--set", "a=b").returncode == 0
    ids = [each.headers["vmorch-request-id"] for each in api.changes()]
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_a_vm_told_at_the_end_of_its_operation_is_not_asked_for(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-3/start", make.accepted("web-3"))
    told = make.events(("operation", STEPS[2]), ("vm", make.vm("web-3")), ("operation", STEPS[3]))
    api.on(f"GET /v1/operations/{make.OP}/watch", lambda asked: make.stream(told))
    done = vmorch("vm", "start", "web-3")
    assert done.stdout == "web-3 is running on hv-02 at 10.0.4.13\n", done.stderr
    assert [each.path for each in api.asked] == ["/v1/vms/web-3/start", f"/v1/operations/{make.OP}/watch"]


def test_the_watch_outlives_a_restart_of_the_server_and_says_so_once(api: Api, vmorch: Run) -> None:
    broken = [
        make.stream(make.events(("operation", STEPS[0]))),
        Reply(drop=True),
        Reply(drop=True),
        make.problem("log-unavailable", "starting"),
        make.stream(make.events(("operation", STEPS[3]))),
    ]
    api.on("POST /v1/vms/web-3/start", make.accepted("web-3"))
    api.on(f"GET /v1/operations/{make.OP}/watch", lambda asked: broken.pop(0))
    api.on("GET /v1/vms/id-web-3", make.single("Vm", make.vm("web-3")))
    done = vmorch("vm", "start", "web-3")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the server is away") == 1


def test_several_vms_are_changed_and_some_failures_exit_9(api: Api, vmorch: Run) -> None:
    found = [make.vm("web-1"), make.vm("web-2"), make.vm("web-3")]
    api.on("GET /v1/vms", make.listing("Vm", found))
    api.on("POST /v1/vms/web-1/start", make.accepted("web-1", operation=None))
    api.on("POST /v1/vms/web-2/start", make.problem("already-so", "web-2 runs already"))
    api.on("POST /v1/vms/web-3/start", make.accepted("web-3"))
    watched(api, STEPS[3])
    done = vmorch("vm", "start", "web-*", "web-[1]", "-l", "tier=test", "--max-parallel", "2")
    assert done.returncode == 9
    assert api.asked[0].query["name"] == ["web-*"]
    assert api.asked[0].query["label"] == ["tier=test"]
    assert "2 of 3 done, 1 failed" in done.stderr
    assert "error[already-so]: web-2 runs already" in done.stderr
    assert len({each.headers["vmorch-request-id"] for each in api.changes()}) == 3
    document = json.loads(vmorch("vm", "start", "web-*", "-o", "json", "-q").stdout)
    assert {item["name"]: item["ok"] for item in document["items"]} == {
        "web-1": True,
        "web-2": False,
        "web-3": True,
    }


def test_a_pattern_that_matches_nothing_exits_3(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", []))
    done = vmorch("vm", "stop", "wbe-*")
    assert done.returncode == 3
    assert "no VM matches 'wbe-*'" in done.stderr
    assert vmorch("vm", "stop").returncode == 2


def test_a_plain_name_beside_a_selector_is_not_widened(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("web-2")]))
    api.on("POST /v1/vms/web-1/start", make.accepted("web-1", operation=None))
    done = vmorch("vm", "start", "web-1", "-l", "tier=test")
    assert done.returncode == 2
    assert api.changes() == []


def test_names_come_from_stdin(api: Api, vmorch: Run) -> None:
    for name in ("a", "b"):
        api.on(f"POST /v1/vms/{name}/start", make.accepted(name, operation=None))
    assert vmorch("vm", "start", "-", input="a\nb\n").returncode == 0
    assert {each.path for each in api.changes()} == {"/v1/vms/a/start", "/v1/vms/b/start"}


@pytest.mark.parametrize(
    "line",
    [
        "vm delete web-1",
        "vm stop web-1 --force",
        "vm resolve web-1 hv-02",
        "host retire hv-1",
        "image remove i",
        "token revoke t",
        "vm delete a b",
        "audit erase vm/web-1 -m why",
    ],
)
def test_destructive_verbs_need_yes_without_a_terminal(api: Api, vmorch: Run, line: str) -> None:
    done = vmorch(*line.split())
    assert done.returncode == 6
    assert done.stderr.startswith("error[confirmation-missing]")
    assert "--yes" in done.stderr
    assert api.asked == []


def test_yes_deletes(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-1/delete", make.accepted("web-1"))
    watched(api, make.operation("succeeded", "stop:done", verb="delete"))
    done = vmorch("vm", "delete", "web-1", "--yes", "--keep-disks")
    assert api.changes()[0].json() == {"keep_disks": True}
    assert done.stdout == "web-1 is deleted\n"


def test_an_erasure_needs_a_reason_and_says_what_it_does_not_reach(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/audit/erase", make.accepted("web-1", operation=None))
    refused = vmorch("audit", "erase", "vm/web-1", "--yes")
    assert (refused.returncode, refused.stderr.split(":")[0]) == (6, "error[reason-missing]")
    assert api.asked == []
    done = vmorch("audit", "erase", "vm/web-1", "--yes", "-m", "case 4711")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("what was sealed for web-1 is erased (event ")
    for unreached in ("seed images", "journals", "backups", "dumps of the database", "master key"):
        assert unreached in " ".join(done.stderr.split())
    assert api.changes()[0].json() == {"subject": "vm/web-1"}


def test_a_protected_context_demands_a_reason(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/vms/web-1/label", make.accepted("web-1", operation=None))
    assert vmorch("context", "add", "prod", "--api", api.url, "--protected").returncode == 0
    line = ("vm", "label", "web-1", "--set", "a=b")
    refused = vmorch(*line)
    assert refused.returncode == 6
    assert refused.stderr.startswith("error[reason-missing]")
    assert api.asked == []
    assert vmorch(*line, "-m", "CHG-1").returncode == 0
    assert vmorch(*line, VMORCH_REASON="CHG-2").returncode == 0
    assert [each.headers["vmorch-reason"] for each in api.changes()] == ["CHG-1", "CHG-2"]


def test_op_watch_wait_and_cancel(api: Api, vmorch: Run) -> None:
    watched(api, STEPS[3])
    api.on(f"POST /v1/operations/{make.OP}/cancel", make.accepted("web-3"))
    assert vmorch("op", "watch", make.OP).returncode == 0
    quiet = vmorch("op", "wait", make.OP)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    watched(api, make.operation("cancelled", "image:undone disk:failed", code="cancelled"))
    assert vmorch("op", "wait", make.OP).returncode == 1
    cancelled = vmorch("op", "cancel", make.OP)
    assert cancelled.returncode == 0, cancelled.stderr
    assert cancelled.stdout.startswith("create web-3 cancelled")


def test_cancelling_what_succeeds_after_all_is_not_called_a_cancellation(api: Api, vmorch: Run) -> None:
    watched(api, STEPS[3])
    api.on(f"POST /v1/operations/{make.OP}/cancel", make.accepted("web-3"))
    done = vmorch("op", "cancel", make.OP)
    assert done.returncode == 6
    assert "error[already-over]" in done.stderr


def test_an_image_is_uploaded(api: Api, vmorch: Run, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "disk.qcow2").write_bytes(data)
    api.on("PUT /v1/images/debian-13/content", make.single("Image", make.image("debian-13")))
    done = vmorch("image", "add", "debian-13", "--file", str(tmp_path / "disk.qcow2"), "--sha256", "AB" * 32)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("debian-13 is there: qcow2, 350Mi, sha256:9b9b9b9b9b9b")
    sent = api.changes()[0]
    assert hashlib.sha256(sent.body).digest() == hashlib.sha256(data).digest()
    assert sent.query == {"sha256": ["ab" * 32], "source": ["disk.qcow2"]}


def test_an_upload_that_is_refused_early_still_says_why(api: Api, vmorch: Run, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 8 * 1024 * 1024)
    api.on("PUT /v1/images/a/content", make.problem("name-taken", "an image called a exists"))
    assert vmorch("image", "add", "a", "--file", str(tmp_path / "disk")).returncode == 5


def test_an_image_is_fetched_by_the_server(api: Api, vmorch: Run) -> None:
    api.on(
        "POST /v1/images",
        lambda asked: make.stream(
            make.events(
                ("progress", {"bytes": 10, "total": None}), ("image", make.image(asked.json()["name"]))
            )
        ),
    )
    done = vmorch("image", "add", "debian-13", "--url", "http://example.org/i.qcow2")
    assert done.returncode == 0, done.stderr
    assert api.changes()[0].headers["accept"] == "text/event-stream"
    body = {**json.loads(make.problem("wrong-checksum", "the checksum differs").body)}
    api.on("POST /v1/images", lambda asked: make.stream(make.events(("problem", body))))
    assert vmorch("image", "add", "debian-13", "--url", "http://example.org/i.qcow2").returncode == 6


def test_host_verbs(api: Api, vmorch: Run) -> None:
    for verb in ("cordon", "uncordon", "label", "overcommit", "retire"):
        api.on(f"POST /v1/hosts/hv-01/{verb}", make.accepted("hv-01", operation=None))
    assert vmorch("host", "cordon", "hv-01", "-m", "DIMM").stdout == "hv-01 is cordoned (event 48190)\n"
    vmorch("host", "uncordon", "hv-01")
    vmorch("host", "label", "hv-01", "--set", "rack=b2")
    vmorch("host", "overcommit", "hv-01", "--cpu", "4")
    vmorch("host", "retire", "hv-01", "--yes")
    assert [each.json() for each in api.changes()] == [
        {"reason": "DIMM"},
        {},
        {"set": {"rack": "b2"}, "remove": []},
        {"cpu": 4.0},
        {},
    ]


def test_secrets_are_printed_once_on_stdout(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/tokens", make.document("NewToken", name="ci", token="s3cret"))
    api.on(
        "POST /v1/hosts", make.document("Invitation", host="h", name="hv-04", token="invite", expires="soon")
    )
    assert vmorch("token", "create", "ci", "--role", "operator", "--expires-in", "90d").stdout == "s3cret\n"
    assert api.changes()[0].json() == {"name": "ci", "role": "operator", "expires_in": 7776000.0}
    assert "invite" in vmorch("host", "enroll", "hv-04").stdout
