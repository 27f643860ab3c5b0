"""Reports, trees of causes, comparisons by flag, and lists as CSV."""

import csv
import io

import msgspec
import pytest

from tests.cli import api as make
from tests.cli.api import Api, Asked, Reply
from tests.cli.conftest import Run
from tests.cli.test_past import DIFFERENCE
from vmorch.core.resources import ActResource

HOST_DIFFERENCE = {**DIFFERENCE, "subject": "host/0192f0c2", "name": "hv-01"}


def act(position: int, what: str, outcome: str, **more: object) -> ActResource:
    fields: dict[str, object] = {
        "position": position, "time": make.AT, "actor": "oncall", "what": what, "subject": "vm/id-web-1",
        "subject_name": "web-1", "reason": "CHG-7", "outcome": outcome, "code": "", "message": "",
        "operation": make.OP, "request": "r-1", "details": {"grace": 30}, "events": 2, **more,
    }  # fmt: skip
    return msgspec.convert(fields, ActResource)


def test_a_report_says_who_did_what_when_why_and_how_it_ended(api: Api, vmorch: Run) -> None:
    failed = act(9, "migrate", "undone", code="no-host-fits", message="none has room")
    api.on("GET /v1/audit/report", make.listing("Act", [act(7, "stop", "succeeded"), failed]))
    line = "audit report --actor oncall --object vm/web-1 --between -2h now --time utc"
    lines = vmorch(*line.split()).stdout.splitlines()
    assert [" ".join(each.split()) for each in lines] == [
        "POS TIME ACTOR WHAT OBJECT OUTCOME REASON",
        "7 2026-11-20 12:00:00Z oncall stop vm/web-1 succeeded CHG-7",
        "9 2026-11-20 12:00:00Z oncall migrate vm/web-1 undone (no-host-fits) CHG-7",
    ]
    query = api.asked[0].query
    assert (query["actor"], query["object"], query["from"], query["to"]) == (["oncall"], ["vm/web-1"], ["-2h"], ["now"])


def test_a_report_comes_as_csv_with_all_that_is_known(api: Api, vmorch: Run) -> None:
    reason = '=HYPERLINK("http://bad","a, b")'
    api.on("GET /v1/audit/report", make.listing("Act", [act(7, "stop", "succeeded", reason=reason)]))
    rows = list(csv.DictReader(io.StringIO(vmorch("audit", "report", "-o", "csv").stdout)))
    assert rows == [
        {
            "POS": "7", "TIME": "2026-11-20 12:00:00Z", "ACTOR": "oncall", "WHAT": "stop", "OBJECT": "vm/web-1",
            "OUTCOME": "succeeded", "REASON": f"'{reason}", "DETAILS": "grace 30", "MESSAGE": "",
            "OPERATION": make.OP, "REQUEST": "r-1",
        }
    ]  # fmt: skip


def test_only_lists_come_as_csv(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("db-1")]))
    api.on("GET /v1/vms/db-1", make.single("Vm", make.vm("db-1")))
    assert vmorch("vm", "list", "-o", "csv").stdout.startswith("NAME,STATE,HOST,")
    refused = vmorch("vm", "describe", "db-1", "-o", "csv")
    assert (refused.returncode, "only lists come as CSV" in refused.stderr) == (2, True)
    assert "only lists" in vmorch("vm", "list", "-w", "-o", "csv").stderr


@pytest.mark.parametrize(
    ("line", "shown", "query"),
    [
        ("vm list 'web-*' -l app=shop", ["vm/web-1"], {"label": ["app=shop"]}),
        ("vm list db-*", [], {}),
        ("host list", ["host/hv-01"], {}),
        ("vm describe web-1", ["vm/web-1", "host/hv-01"], {"subject": ["vm/web-1"]}),
    ],
)
def test_what_is_read_is_compared_at_two_moments_instead(
    api: Api, vmorch: Run, line: str, shown: list[str], query: dict[str, list[str]]
) -> None:
    items = [DIFFERENCE, HOST_DIFFERENCE]
    api.on("GET /v1/diff", make.document("Diff", **{"from": 48000, "to": 48204}, items=items))
    done = vmorch(*line.replace("'", "").split(), "--diff", "-2h", "@48204")
    assert done.returncode == (10 if shown else 0)
    heads = [each for each in done.stdout.splitlines() if not each.startswith(" ")]
    assert heads == [f"~ {each}  changed" for each in shown]
    assert api.asked[0].query == {"from": ["-2h"], "to": ["@48204"], **query}


def test_a_comparison_as_json_holds_what_was_chosen(api: Api, vmorch: Run) -> None:
    items = [DIFFERENCE, HOST_DIFFERENCE]
    api.on("GET /v1/diff", make.document("Diff", **{"from": 48000, "to": 48204}, items=items))
    done = vmorch("host", "list", "--diff", "-2h", "now", "-o", "json", "--query", "items[].name")
    assert msgspec.json.decode(done.stdout) == ["hv-01"]


def test_what_is_of_one_moment_chooses_no_comparison(api: Api, vmorch: Run) -> None:
    done = vmorch("vm", "list", "--state", "running", "--diff", "-2h", "now")
    assert (done.returncode, "state is of one" in done.stderr) == (2, True)
    assert api.asked == []


BEGUN = make.event(8, "vm.operation-started", {}, reason="CHG-7", parent=None)
STEP = make.event(9, "vm.step-done", {}, actor="host:node-1", parent=8)
OTHER = make.event(10, "vm.renamed", {}, parent=None)
DONE = make.event(11, "vm.operation-finished", {}, parent=9)
HEADS = ["vm.operation-started", "└ vm.step-done", "  └ vm.operation-finished"]


def heads(text: str) -> list[str]:
    """Each line without its position and time, up to the kind of the event."""
    return [line[31:].split("  vm/")[0] for line in text.splitlines()]


def test_events_are_listed_as_trees_of_their_causes(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/events", make.listing("Event", [OTHER, DONE]))
    api.on("GET /v1/events/11/causes", make.listing("Event", [DONE, STEP, BEGUN]))
    done = vmorch("event", "list", "--causes")
    assert api.asked[0].query["causes"] == ["true"]
    assert heads(done.stdout) == [*HEADS, "vm.renamed"]


def test_a_tail_shows_each_event_below_what_it_follows_from(api: Api, vmorch: Run) -> None:
    def tail(asked: Asked) -> Reply:
        if asked.query.get("after") is not None:
            return make.problem("forbidden", "enough")
        return make.stream(make.events(("event", STEP), ("event", OTHER), ("event", DONE)))

    api.on("GET /v1/events/tail", tail)
    api.on("GET /v1/events/9/causes", make.listing("Event", [STEP, BEGUN]))
    done = vmorch("event", "tail", "--causes")
    assert heads(done.stdout) == [*HEADS[:2], "vm.renamed", HEADS[2]]
    assert api.asked[0].query["causes"] == ["true"]
