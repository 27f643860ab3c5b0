"""Maintenance on the command line: names of hosts begin one, the operator's turn ends the waiting."""

import json
from typing import Any

from tests.cli import api as make
from tests.cli.api import Api
from tests.cli.conftest import Run
from vmorch.core.maintenance_resources import GroupResource, MaintenanceResource, StationResource

ID = make.OP


def station(host: str, phase: str, **more: Any) -> StationResource:
    fields = {"since": make.AT, "drain": None, "waits_for": "", "code": "", "message": ""}
    return StationResource(**{"host": host, "phase": phase, **fields, **more})


def maintenance(state: str, *hosts: StationResource) -> MaintenanceResource:
    return MaintenanceResource(
        id=ID,
        state=state,
        hosts=hosts,
        groups=(tuple(each.host for each in hosts),),
        at_once=1,
        bring_back=False,
        on_blocked="refuse",
        actor="oncall",
        reason="",
        started_at=make.AT,
        deadline=None,
        ended_at=None if state in ("running", "cancelling") else make.AT,
        version=3,
    )


def begun(api: Api, route: str) -> None:
    body = {"apiVersion": "v1", "kind": "Accepted", "subject": ID, "name": "maintenance", "position": 48260}
    api.on(route, make.Reply(json.dumps({**body, "operation": None}).encode(), 202))


def watched(api: Api, *states: MaintenanceResource) -> None:
    api.on(f"GET /v1/maintenances/{ID}", make.single("Maintenance", states[-1]))
    api.on(
        f"GET /v1/maintenances/{ID}/watch",
        lambda asked: make.stream(make.events(*(("maintenance", state) for state in states))),
    )


def test_names_of_hosts_begin_one_and_the_first_is_waited_for(api: Api, vmorch: Run) -> None:
    begun(api, "POST /v1/maintenances")
    watched(
        api,
        maintenance("running", station("hv-03", "draining"), station("hv-04", "waiting")),
        maintenance("running", station("hv-03", "preparing"), station("hv-04", "waiting")),
        maintenance("running", station("hv-03", "open"), station("hv-04", "waiting")),
    )
    done = vmorch("host", "maintenance", "hv-03", "hv-04", "--bring-back", "-m", "DIMM")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hv-03 is open for work\n"
    assert done.stderr.splitlines() == [
        f"maintenance {ID}  hv-03, hv-04",
        "  ..  hv-03  draining",
        "  ..  hv-03  preparing",
        "  ->  hv-03  open",
        "hint: when it is done: vmorch host maintenance done hv-03",
    ]
    assert api.changes()[0].json() == {"hosts": ["hv-03", "hv-04"], "bring_back": True}


def test_work_that_is_done_is_followed_to_the_next_turn_or_the_end(api: Api, vmorch: Run) -> None:
    begun(api, "POST /v1/hosts/hv-03/maintenance-done")
    watched(
        api,
        maintenance("running", station("hv-03", "finishing")),
        maintenance("running", station("hv-03", "checking", waits_for="hv-03 to be well")),
        maintenance("done", station("hv-03", "done")),
    )
    done = vmorch("host", "maintenance", "done", "hv-03")
    assert (done.returncode, done.stdout) == (0, "maintenance of hv-03 is done\n")


def test_a_failure_is_a_problem_with_the_hosts_own_words(api: Api, vmorch: Run) -> None:
    begun(api, "POST /v1/maintenances")
    words = "before-maintenance ended with 1: disk is not clean"
    watched(api, maintenance("failed", station("hv-03", "failed", code="hook-failed", message=words)))
    done = vmorch("host", "maintenance", "hv-03")
    assert done.returncode == 1
    assert "error[hook-failed]: maintenance of hv-03 failed" in done.stderr
    assert words in done.stderr


def test_groups_are_shown_before_anything_begins(api: Api, vmorch: Run) -> None:
    groups = [
        GroupResource(hosts=("hv-01", "hv-02"), moves=12, blocked={}, estimate=300.0, survivable=True),
        GroupResource(hosts=("hv-03",), moves=5, blocked={"gpu-7": ("eviction",)}, estimate=90.0, survivable=False),
    ]
    api.on("POST /v1/maintenances", make.document("MaintenancePlan", groups=groups, position=48204))
    done = vmorch("host", "maintenance", "hv-01", "hv-02", "hv-03", "--at-once", "2", "--plan")
    assert done.returncode == 10
    assert done.stdout.splitlines()[1:] == [
        "GROUP  HOSTS         VMS  BLOCKED    EST  ONE MORE LOSS",
        "    1  hv-01, hv-02   12  -           5m  survivable",
        "    2  hv-03           5  gpu-7    1m30s  NOT survivable",
        "  gpu-7: eviction",
    ]
    assert api.changes()[0].query == {"dryRun": ["true"]}


def test_a_maintenance_is_listed_described_and_cancelled(api: Api, vmorch: Run) -> None:
    running = maintenance("running", station("hv-03", "open", waits_for="the operator"), station("hv-04", "waiting"))
    api.on("GET /v1/maintenances", make.listing("Maintenance", [running]))
    watched(api, running, maintenance("cancelled", station("hv-03", "undone"), station("hv-04", "waiting")))
    begun(api, f"POST /v1/maintenances/{ID}/cancel")
    assert "hv-03 open" in vmorch("host", "maintenance", "list").stdout
    api.on(f"GET /v1/maintenances/{ID}", make.single("Maintenance", running))
    assert "hv-03  open     the operator" in vmorch("host", "maintenance", "describe", ID).stdout
    done = vmorch("host", "maintenance", "cancel", ID, "--bring-back")
    assert (done.returncode, done.stdout) == (0, "maintenance of hv-03, hv-04 was cancelled\n")
    assert api.changes()[0].json() == {"bring_back": True}


def test_a_verb_of_another_tool_is_answered_with_ours(vmorch: Run) -> None:
    done = vmorch("host", "maintenance", "exit", "hv-03")
    assert done.returncode == 2
    assert "vmorch host maintenance done HOST" in done.stderr
