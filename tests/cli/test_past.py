"""--as-of: which commands take it, what goes to the server, and what is shown."""

import pytest

from tests.cli import api as make
from tests.cli.api import Api
from tests.cli.conftest import Run
from tests.cli.test_help import COMMANDS

NOW_ONLY = {"context list"}
"""Lists of what is on this machine."""


@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if path[-1] in ("list", "describe")], ids=" ".join
)
def test_every_list_and_description_can_be_of_the_past(path: tuple[str, ...], vmorch: Run) -> None:
    shown = vmorch(*path, "--help").stdout
    assert ("--as-of" in shown) == (" ".join(path) not in NOW_ONLY)


def test_a_list_of_the_past_says_of_which_moment_it_is(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("db-1")]))
    done = vmorch("vm", "list", "db-*", "--as-of", "-2h")
    assert done.returncode == 0
    assert api.asked[0].query == {"name": ["db-*"], "limit": ["1000"], "asOf": ["-2h"]}
    assert done.stdout.splitlines()[1].split()[:2] == ["db-1", "running"]
    assert "as of 2026-11-20 12:00:00 UTC (@48204)" in done.stderr


def test_everything_that_a_description_is_made_of_is_of_then(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms/db-1", make.single("Vm", make.vm("db-1")))
    api.on("GET /v1/events", make.listing("Event", []))
    assert vmorch("vm", "describe", "db-1", "--as-of", "@17").returncode == 0
    assert [asked.query["asOf"] for asked in api.asked] == [["@17"], ["@17"]]


def test_the_past_cannot_be_watched(api: Api, vmorch: Run) -> None:
    done = vmorch("vm", "list", "-w", "--as-of", "-2h")
    assert done.returncode == 2
    assert "--watch is for now" in done.stderr
    assert api.asked == []


def test_a_moment_that_has_not_come_is_a_usage_error(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/hosts", make.problem("future-moment", "the log ends at @48204"))
    done = vmorch("host", "list", "--as-of", "@99999")
    assert done.returncode == 2
    assert "error[future-moment]: the log ends at @48204" in done.stderr


def test_a_dry_run_can_be_of_the_past(api: Api, vmorch: Run) -> None:
    api.on(
        "POST /v1/vms/db-1/stop",
        make.document("Plan", host="hv-02", verdicts=[], steps=["stop domain"], spec=None, position=17),
    )
    done = vmorch("vm", "stop", "db-1", "--dry-run", "--as-of", "@17")
    assert done.returncode == 10
    assert api.asked[0].query == {"dryRun": ["true"], "asOf": ["@17"]}
    assert "at 17: on hv-02" in done.stdout


DIFFERENCE = {
    "subject": "vm/0192f0c1",
    "name": "web-1",
    "change": "changed",
    "fields": [
        {
            "field": "labels.app",
            "before": None,
            "after": "shop",
            "position": 48190,
            "event": "vm.labelled",
            "actor": "ada",
            "reason": "CHG-7",
            "times": 1,
        }
    ],
}


def test_a_difference_is_shown_with_who_made_it_and_exits_10(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/diff", make.document("Diff", **{"from": 48000, "to": 48204}, items=[DIFFERENCE]))
    done = vmorch("diff", "-2h", "now", "vm/web-1")
    assert done.returncode == 10
    assert api.asked[0].query == {"from": ["-2h"], "to": ["now"], "subject": ["vm/web-1"]}
    head, change = done.stdout.splitlines()
    assert head == "~ vm/web-1  changed"
    assert change.split() == ["labels.app", "-", "shop", "@48190", "vm.labelled", "ada", "CHG-7"]


def test_now_may_be_left_out_of_a_difference(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/diff", make.document("Diff", **{"from": 48000, "to": 48204}, items=[]))
    done = vmorch("diff", "@48000", "vm/web-1")
    assert done.returncode == 0
    assert api.asked[0].query == {"from": ["@48000"], "to": ["now"], "subject": ["vm/web-1"]}
    assert "nothing differs between @48000 and @48204" in done.stderr
    assert vmorch("diff", "@48000", "-l", "app=web").returncode == 0
    assert api.asked[1].query == {"from": ["@48000"], "to": ["now"], "label": ["app=web"]}


def replayed(**more: object) -> dict[str, object]:
    return {
        "position": 48204, "time": "2026-11-20T12:00:00Z", "events": 48204, "seconds": 2.0, "rate": 24102.0,
        "things": 31, "digest": "ab" * 32, "unreadable": {}, "verified": True, "checkpoints": 4, "rows": 90,
        "live": True, "total": 0, "differences": [], **more,
    }  # fmt: skip


def test_a_replay_tells_its_rate_and_what_was_compared(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/audit/replay", make.single("Replay", replayed()))
    done = vmorch("audit", "replay", "--verify")
    assert done.returncode == 0
    assert api.asked[0].query == {"verify": ["true"]}
    assert "48,204 in 2.0 s, 24,102/s" in done.stdout
    assert "4 checkpoints, live state, 90 rows" in done.stdout


def test_a_replay_that_finds_a_difference_names_the_last_event_and_exits_10(api: Api, vmorch: Run) -> None:
    differing = {
        "where": "checkpoint @40000", "subject": "vm/0192f0c1", "detail": "epoch", "position": 39000,
        "event": "vm.labelled",
    }  # fmt: skip
    api.on("GET /v1/audit/replay", make.single("Replay", replayed(total=1, differences=[differing])))
    done = vmorch("audit", "replay", "--verify", "--to", "-1h")
    assert done.returncode == 10
    assert api.asked[0].query == {"verify": ["true"], "to": ["-1h"]}
    assert "checkpoint @40000  vm/0192f0c1  epoch" in done.stdout
    assert "@39000 vm.labelled" in done.stdout
