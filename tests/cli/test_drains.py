"""Drains on the command line: what is asked for, what is shown while it goes, how it ends."""

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.cli import api as make
from tests.cli.api import Api, Asked
from tests.cli.conftest import OnTerminal, Run
from vmorch.core.drain_resources import DrainDetail, TouchResource

ID = make.OP
PLANNED = make.drain(
    "planned",
    make.drain_vm("db-1", "planned"),
    make.drain_vm("ci-19", "planned", how="restart", wave=2, destination="hv-02", why="its eviction is restart"),
    make.blocked_vm("gpu-7", "its eviction is never"),
)
DONE = make.drain("done", make.drain_vm("db-1", "moved"), make.drain_vm("web-1", "moved", wave=2))


def served(api: Api, drain: DrainDetail) -> None:
    api.on(f"GET /v1/drains/{ID}", make.single("Drain", drain))


def watched(api: Api, *states: DrainDetail) -> None:
    served(api, states[-1])
    api.on(
        f"GET /v1/drains/{ID}/watch",
        lambda asked: make.stream(make.events(*(("drain", state) for state in states))),
    )


def begun(api: Api, route: str = "POST /v1/drains") -> None:
    body = {"apiVersion": "v1", "kind": "Accepted", "subject": ID, "name": "drain", "position": 48260}
    api.on(route, make.Reply(json.dumps({**body, "operation": None}).encode(), 202))


def test_a_plan_is_stored_shown_and_ends_with_10(api: Api, vmorch: Run) -> None:
    begun(api)
    served(api, PLANNED)
    done = vmorch("host", "drain", "hv-03", "--plan", "--deadline", "2h", "--max-parallel", "3")
    assert done.returncode == 10, done.stderr
    assert done.stdout.splitlines() == [
        f"Plan {ID} for hv-03 at 48250: 3 VMs, 1 live, 1 restart, 1 blocked, about 9m",
        "WAVE  VM     TO     HOW      MEM  EST  WHY",
        "1     db-1   hv-01  live     8Gi  12s  71% of memory left",
        "2     ci-19  hv-02  restart  8Gi  12s  its eviction is restart",
        "-     gpu-7  -      BLOCKED  8Gi    -  its eviction is never",
        "After: hv-01 memory 71%",
        "One more host loss survivable: yes",
    ]
    assert f"vmorch plan apply {ID} --on-blocked skip" in done.stderr
    assert api.changes()[0].json() == {"hosts": ["hv-03"], "start": False, "deadline": 7200.0, "max_parallel": 3}


def test_a_plan_for_programs_is_the_document_as_it_came(api: Api, vmorch: Run) -> None:
    begun(api)
    served(api, PLANNED)
    done = vmorch("host", "drain", "hv-03", "--plan", "-o", "json")
    assert done.returncode == 10
    found = json.loads(done.stdout)
    assert [line["name"] for line in found["item"]["lines"]] == ["db-1", "ci-19", "gpu-7"]


def test_a_drain_is_watched_vm_by_vm_to_its_end(api: Api, vmorch: Run) -> None:
    begun(api)
    running = make.drain("running", make.drain_vm("db-1", "moving"), make.drain_vm("web-1", "waiting", wave=2))
    later = make.drain("running", make.drain_vm("db-1", "moved"), make.drain_vm("web-1", "moving", wave=2))
    watched(api, running, later, DONE)
    done = vmorch("host", "drain", "hv-03", "-m", "CHG-2211")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "drain of hv-03 is done in 0.0s: 2 moved\n"
    assert done.stderr.splitlines() == [
        f"drain {ID}  hv-03",
        "  wave 1 of 2: 1 VM",
        "  ok  db-1   moved to hv-01",
        "  wave 2 of 2: 1 VM",
        "  ok  web-1  moved to hv-01",
    ]
    assert api.changes()[0].headers["vmorch-reason"] == "CHG-2211"


def test_a_drain_that_leaves_vms_behind_ends_with_9_and_says_why(api: Api, vmorch: Run) -> None:
    begun(api)
    words = "operation failed: guest CPU doesn't match specification"
    failed = make.drain_vm("db-1", "failed", code="migration-failed", message=words)
    blocked = make.blocked_vm("gpu-7", "its eviction is never")
    watched(api, make.drain("incomplete", failed, blocked))
    done = vmorch("host", "drain", "hv-03", "--on-blocked", "skip")
    assert done.returncode == 9
    assert f"!!  db-1   failed: {words}" in done.stderr
    assert "!!  gpu-7  blocked: its eviction is never" in done.stderr
    assert done.stdout == "drain of hv-03 is incomplete in 0.0s: 1 failed, 1 blocked\n"


def test_a_drain_that_was_cancelled_by_somebody_else_ends_with_1(api: Api, vmorch: Run) -> None:
    begun(api)
    watched(api, make.drain("cancelled", make.drain_vm("db-1", "left", message="not begun")))
    done = vmorch("host", "drain", "hv-03")
    assert done.returncode == 1
    assert "error[drain-ended]" in done.stderr


def test_a_refusal_names_what_is_blocked(api: Api, vmorch: Run) -> None:
    facts = {"gpu-7": ["its eviction is never"]}
    api.on("POST /v1/drains", make.problem("drain-blocked", "1 VM cannot be moved, so nothing was begun", facts=facts))
    done = vmorch("host", "drain", "hv-03")
    assert done.returncode == 6
    assert "gpu-7  its eviction is never" in done.stderr


def test_globs_name_hosts(api: Api, vmorch: Run) -> None:
    begun(api)
    watched(api, DONE)

    def hosts(asked: Asked) -> make.Reply:
        return make.listing("Host", [make.host("hv-01"), make.host("hv-02")])

    api.on("GET /v1/hosts", hosts)
    assert vmorch("host", "drain", "hv-0*", "hv-02").returncode == 0
    assert api.changes()[0].json()["hosts"] == ["hv-01", "hv-02"]


def test_ctrl_c_detaches_from_a_drain(api: Api, terminal: Callable[..., OnTerminal]) -> None:
    begun(api)
    release = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield from make.events(("drain", make.drain("running", make.drain_vm("db-1", "moving", doing="migrate"))))
        release.wait(20)

    served(api, DONE)
    api.on(f"GET /v1/drains/{ID}/watch", lambda asked: make.stream(chunks()))
    run = terminal("host", "drain", "hv-03")
    run.read_until("db-1 migrate")
    run.interrupt()
    assert run.end() == 130
    release.set()
    assert f"drain {ID} still runs" in run.seen
    assert f"vmorch drain watch {ID} | vmorch drain cancel {ID}" in run.seen
    assert len(api.changes()) == 1


def test_a_detached_drain_says_how_to_come_back(api: Api, vmorch: Run) -> None:
    begun(api)
    done = vmorch("host", "drain", "hv-03", "-d")
    assert (done.returncode, done.stdout) == (0, f"drain {ID} has begun\n")
    assert f"vmorch drain watch {ID}" in done.stderr


def test_a_stale_plan_ends_with_5_and_names_the_events(api: Api, vmorch: Run) -> None:
    facts = {"48255": 'host.cordoned  host/hv-02  oncall "raid rebuild"'}
    stale = make.problem("plan-stale", "plan is stale: 1 later event touches what it decided", facts=facts)
    api.on(f"POST /v1/drains/{ID}/apply", stale)
    done = vmorch("plan", "apply", ID)
    assert done.returncode == 5
    assert '48255  host.cordoned  host/hv-02  oncall "raid rebuild"' in done.stderr


def test_a_plan_is_applied_as_asked(api: Api, vmorch: Run) -> None:
    begun(api, f"POST /v1/drains/{ID}/apply")
    watched(api, DONE)
    assert vmorch("plan", "apply", ID, "--rebase", "--on-blocked", "stop", "--deadline", "1h").returncode == 0
    assert api.changes()[0].json() == {"rebase": True, "on_blocked": "stop", "deadline": 3600.0}


def test_a_stale_plan_shows_what_touched_it(api: Api, vmorch: Run) -> None:
    touch = TouchResource(
        position=48255, kind="host.cordoned", subject="host/hv-02", actor="oncall", reason="raid rebuild", detail=""
    )
    served(api, make.drain("planned", make.drain_vm("db-1", "planned"), touched=(touch,)))
    done = vmorch("plan", "describe", ID)
    assert "Stale: 1 later events touch what it decided" in done.stdout
    assert '48255  host.cordoned  host/hv-02  oncall  "raid rebuild"' in done.stdout


@pytest.mark.parametrize(("noun", "started"), [("plan", "false"), ("drain", "true")])
def test_plans_and_drains_are_listed_apart(api: Api, vmorch: Run, noun: str, started: str) -> None:
    api.on("GET /v1/drains", make.listing("Drain", [PLANNED]))
    done = vmorch(noun, "list")
    assert done.returncode == 0, done.stderr
    assert ID in done.stdout
    assert api.asked[0].query["started"] == [started]


def test_a_drain_is_described_with_what_is_waited_for(api: Api, vmorch: Run) -> None:
    waits = make.drain_vm("web-1", "waiting", wave=2, waits_for="hv-03, which is unreachable")
    served(api, make.drain("running", make.drain_vm("db-1", "moving", doing="migrate"), waits))
    done = vmorch("drain", "describe", ID)
    assert "db-1   moving   hv-03  hv-01  live     1  migrate" in done.stdout
    assert "waits for hv-03, which is unreachable" in done.stdout


def test_a_cancelled_drain_tells_what_was_left_and_that_hosts_stay_closed(api: Api, vmorch: Run) -> None:
    begun(api, f"POST /v1/drains/{ID}/cancel")
    watched(api, make.drain("cancelled", make.drain_vm("db-1", "left", message="its move was taken back")))
    done = vmorch("drain", "cancel", ID)
    assert done.returncode == 0, done.stderr
    assert "--  db-1  left: its move was taken back" in done.stderr
    assert "vmorch host activate hv-03" in done.stderr


def test_an_activated_host_may_get_its_vms_back(api: Api, vmorch: Run) -> None:
    begun(api, "POST /v1/hosts/hv-03/activate")
    home = make.drain_vm("db-1", "moved", destination="hv-03", host="hv-03")
    watched(api, make.drain("done", home, purpose="return"))
    done = vmorch("host", "activate", "hv-03", "--bring-back")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "return to hv-03 is done in 0.0s: 1 moved\n"
    assert api.changes()[0].json() == {"bring_back": True}


def test_a_budget_is_created_listed_and_deleted(api: Api, vmorch: Run) -> None:
    api.on("POST /v1/budgets", make.accepted("web", None))
    api.on("GET /v1/budgets", make.listing("Budget", [make.budget("web")]))
    api.on("POST /v1/budgets/web/delete", make.accepted("web", None))
    assert vmorch("budget", "create", "web", "-l", "app=web", "--max-unavailable", "2").returncode == 0
    assert api.changes()[0].json() == {"name": "web", "selector": {"app": "web"}, "max_unavailable": 2}
    assert "app=web     5   1/2" in vmorch("budget", "list").stdout
    assert vmorch("budget", "delete", "web").returncode == 0
