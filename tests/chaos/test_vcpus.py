"""The observer of QEMU processes finds what it is there to find."""

import os
import subprocess

from tests.chaos.vcpus import Ran, is_ending, overlaps


def ran(*processes: int) -> list[Ran]:
    return [Ran(float(at), "web", pid, 0.01) for at, pid in enumerate(processes)]


def test_one_process_after_another_is_no_overlap() -> None:
    assert overlaps(ran(1, 1, 1, 2, 2, 3), "web") == []


def test_a_process_that_runs_after_a_later_one_is_told() -> None:
    assert len(overlaps(ran(1, 1, 2, 1, 2), "web")) == 1
    assert len(overlaps(ran(1, 2, 1, 1), "web")) == 2


def test_other_vms_do_not_count() -> None:
    other = [Ran(each.at, "shop", each.pid, each.seconds) for each in ran(7, 8, 7)]
    assert overlaps([*ran(1, 2), *other], "web") == []


def test_what_a_process_does_while_it_is_taken_down_is_no_guests() -> None:
    assert not is_ending(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not is_ending(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_ending(process.pid)
    assert is_ending(process.pid)
