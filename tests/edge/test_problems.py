"""Every refusal has its place in the list of codes, and every trouble of the log its words."""

import re
from pathlib import Path

import pytest

import vmorch
from vmorch.core.codes import CODES
from vmorch.core.errors import Rejected
from vmorch.core.ids import Stream
from vmorch.edge.problems import problem_of, refusal_of
from vmorch.log.errors import InvalidAppend, LogError, LogFull, LogUnavailable, NameTaken, VersionConflict

SOURCES = sorted(Path(vmorch.__file__).parent.rglob("*.py"))


def test_every_code_that_is_raised_is_documented() -> None:
    raised = {
        (code, path.name)
        for path in SOURCES
        for code in re.findall(r"""Rejected\(\s*"([a-z-]+)\"""", path.read_text())
    }
    assert {code for code, _ in raised} - set(CODES) == set(), raised
    assert len(raised) > 20


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LogUnavailable("gone"), "log-unavailable"),
        (VersionConflict(Stream("vm/1"), 1, 2), "version-conflict"),
        (NameTaken("vm", "web", Stream("vm/1")), "name-taken"),
        (LogFull("no partition"), None),
        (InvalidAppend("malformed"), None),
        (ZeroDivisionError(), None),
    ],
)
def test_a_trouble_of_the_log_is_told_and_a_fault_of_ours_is_not(error: LogError, code: str | None) -> None:
    told = refusal_of(error)
    assert (None if told is None else told.code) == code


def test_a_code_that_nobody_listed_is_a_fault_of_ours() -> None:
    problem = problem_of(Rejected("never-heard-of", "x"), "id")
    assert (problem.status, problem.code) == (500, "never-heard-of")
