"""Tables and errors as text."""

from cli.problems import Problem, from_document, render
from cli.table import Column, lines, pairs

COLUMNS: list[Column[tuple[str, int, str]]] = [
    Column(header="NAME", cell=lambda row: row[0]),
    Column(header="VCPU", cell=lambda row: str(row[1]), right=True),
    Column(header="LABELS", cell=lambda row: row[2], wide=True),
    Column(header="STATE", cell=lambda row: "up", style=lambda row: "good"),
]
ROWS = [("db-1", 16, "app=db"), ("web-33", 4, "")]


def plain(style: str, text: str) -> str:
    return text


def test_columns_are_aligned_and_lines_have_no_trailing_spaces() -> None:
    assert lines(COLUMNS, ROWS) == [
        "NAME    VCPU  STATE",
        "db-1      16  up",
        "web-33     4  up",
    ]


def test_wide_tables_have_more_columns_and_empty_cells_a_dash() -> None:
    assert lines(COLUMNS, ROWS, wide=True, headers=False) == [
        "db-1    16  app=db  up",
        "web-33   4  -       up",
    ]


def test_colour_does_not_move_columns() -> None:
    painted = lines(COLUMNS, ROWS, paint=lambda style, text: f"<{style}>{text}</>")
    assert painted[1] == "db-1      16  <good>up</>"


def test_pairs_are_aligned() -> None:
    assert pairs([("Name", "web-1"), ("Id", "1")], "  ") == ["  Name  web-1", "  Id    1"]


def test_an_error_says_what_then_the_facts_then_what_to_type() -> None:
    problem = Problem(
        "no-host-fits",
        "none of 2 hosts can take the VM",
        facts={"hv-01": "cordoned", "hv-number-2": "64 MiB of memory left"},
        hint="vmorch host list",
    )
    assert render(problem, plain) == [
        "error[no-host-fits]: none of 2 hosts can take the VM",
        "  hv-01        cordoned",
        "  hv-number-2  64 MiB of memory left",
        "hint: vmorch host list",
    ]


def test_an_error_without_a_hint_names_its_explanation() -> None:
    assert render(Problem("vm-gone", "web-1 was deleted"), plain)[-1] == "hint: vmorch explain vm-gone"


def test_facts_inside_facts_are_indented() -> None:
    problem = Problem("bad-request", "no", facts={"known": ["a", "b"], "deep": {"x": 1, "y": None}}, hint="h")
    assert render(problem, plain)[1:-1] == ["  known  a", "         b", "  deep", "    x  1", "    y  -"]


def test_a_problem_survives_its_document() -> None:
    problem = Problem("name-taken", "taken", hint="h", facts={"a": 1}, instance="r")
    again = from_document(problem.document(), 409)
    assert (again.code, again.detail, again.hint, again.facts, again.exit_code) == (
        "name-taken",
        "taken",
        "h",
        {"a": 1},
        5,
    )


def test_an_answer_that_is_no_problem_document_still_has_a_code() -> None:
    problem = from_document(b"<html>502</html>", 502)
    assert problem.code == "internal-error"
    assert "502" in problem.detail
