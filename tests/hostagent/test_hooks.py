"""The host's own scripts: each run once, bounded, and never again when nobody saw how it ended."""

import os
import threading
import time
from pathlib import Path

import pytest
from contract import scope

from hostagent.hooks import TAIL_BYTES, Hooks
from hostagent.hypervisor import Withdrawn
from vmorch.core.errors import Rejected

NAME = "before-maintenance"


@pytest.fixture
def hooks(tmp_path: Path) -> Hooks:
    (tmp_path / "scripts").mkdir()
    return Hooks(tmp_path / "scripts", tmp_path / "records")


def script(tmp_path: Path, text: str, mode: int = 0o755) -> Path:
    path = tmp_path / "scripts" / NAME
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def refused(hooks: Hooks, run: str) -> str:
    with pytest.raises(Rejected) as caught:
        hooks.run(NAME, run, scope())
    assert caught.value.code == "hook-failed"
    return caught.value.reason


def test_a_script_is_told_what_it_runs_for_and_runs_once(hooks: Hooks, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script(tmp_path, f'echo "$VMORCH_HOOK $VMORCH_RUN" >> {ran}')
    assert not hooks.has_run(NAME, "r1")
    hooks.run(NAME, "r1", scope())
    assert hooks.has_run(NAME, "r1")
    assert Hooks(tmp_path / "scripts", tmp_path / "records").has_run(NAME, "r1")
    assert not hooks.has_run(NAME, "r2")
    hooks.run(NAME, "r2", scope())
    assert ran.read_text() == f"{NAME} r1\n{NAME} r2\n"


def test_a_failure_carries_the_scripts_last_words_and_is_remembered(hooks: Hooks, tmp_path: Path) -> None:
    script(tmp_path, "seq 10000; echo the disk is broken >&2; exit 7")
    said = refused(hooks, "r1")
    assert said.startswith(f"{NAME} ended with 7: ")
    assert said.endswith("the disk is broken")
    assert len(said) < TAIL_BYTES + 100
    with pytest.raises(Rejected, match="ended with 7"):
        hooks.has_run(NAME, "r1")


def test_a_script_whose_end_nobody_saw_does_not_run_again(hooks: Hooks, tmp_path: Path) -> None:
    script(tmp_path, "exit 0")
    (tmp_path / "records").mkdir()
    # as an agent that was killed in the middle leaves it
    (tmp_path / "records" / f"{NAME}.json").write_text('{"run":"r1","phase":"begun"}')
    with pytest.raises(Rejected, match="nobody saw how it ended"):
        hooks.has_run(NAME, "r1")
    hooks.run(NAME, "r2", scope())


def test_a_withdrawn_script_is_ended_with_all_that_it_started(hooks: Hooks, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script(tmp_path, f"sleep 600 & echo $! $$ > {pids}; wait")
    order = scope()

    def withdraw() -> None:
        while not (pids.exists() and pids.read_text().endswith("\n")):
            time.sleep(0.01)
        order.withdraw()

    threading.Thread(target=withdraw).start()
    with pytest.raises(Withdrawn):
        hooks.run(NAME, "r1", order)
    until = time.monotonic() + 20
    while any(_lives(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(Rejected, match="signal 9"):
        hooks.has_run(NAME, "r1")


def test_a_script_that_takes_too_long_is_ended_within_its_orders_time(hooks: Hooks, tmp_path: Path) -> None:
    script(tmp_path, "sleep 600")
    with pytest.raises(Rejected, match="signal 9"):
        hooks.run(NAME, "r1", scope(1.5))


@pytest.mark.parametrize(("mode", "why"), [(0o777, "only its owner"), (0o644, "not executable")])
def test_a_script_that_others_could_change_or_nobody_can_run_is_refused(
    hooks: Hooks, tmp_path: Path, mode: int, why: str
) -> None:
    script(tmp_path, "exit 0", mode)
    assert why in refused(hooks, "r1")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
