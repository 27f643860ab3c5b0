"""Commands made from the registry of messages."""

from typing import Annotated, Literal

import click
import msgspec
import pytest
from msgspec import Meta
from msgspec.structs import replace

from cli.derived import body_of, command_for
from cli.limits import essence
from cli.problems import Problem
from cli.registry import derive
from cli.verb_data import load, summaries
from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.ids import MiB
from vmorch.core.operations.label import LabelVm
from vmorch.core.operations.rename import RenameVm
from vmorch.core.operations.resize import ResizeVm
from vmorch.core.operations.stop import StopVm
from vmorch.core.spec import DiskGiB, Labels


class Odd(VmCommand, frozen=True, kw_only=True):
    """A command with every sort of field."""

    verb = "odd"
    summary = "Do something odd"

    target: str
    speed: Literal["slow", "fast"] = "slow"
    memory: Annotated[MiB, Meta(ge=1)] | None = None
    disk: DiskGiB | None = None
    grace: Annotated[float, Meta(description="seconds to wait")] = 5.0
    times: int = 1
    sure: bool = False
    checked: bool = True
    tags: tuple[str, ...] = ()
    labels: Labels = {}  # noqa: RUF012  msgspec copies mutable defaults
    nested: tuple[tuple[int, int], ...] = ()


WHOLE = """
    web-1 there --speed fast --memory 2Gi --disk 40Gi --grace 2m --times 3 --sure --no-checked
    --tags a --tags b --labels k=v --nested [[1,2]]
"""


def parse(command: type[VmCommand], *arguments: str) -> dict[str, object]:
    data = derive(command)
    with command_for(data).make_context("x", list(arguments)) as context:
        return body_of(data, context.params)


def test_every_verb_of_the_registry_is_a_command() -> None:
    expected = {"start", "stop", "reboot", "pause", "resume", "delete", "rename", "label", "resize"}
    assert expected <= set(summaries())
    assert "create" not in summaries()
    assert load("create") is None


def test_what_a_verb_is_at_run_time_is_what_the_registry_says() -> None:
    assert load("resize") == derive(ResizeVm)
    assert load("label") == derive(LabelVm)


def test_fields_become_parameters_in_the_operators_notation() -> None:
    fields = {field.name: field for field in derive(Odd).fields}
    assert {name: field.kind for name, field in fields.items()} == {
        "target": "text",
        "speed": "choice",
        "memory": "mib",
        "disk": "gib",
        "grace": "duration",
        "times": "integer",
        "sure": "switch",
        "checked": "switch",
        "tags": "text",
        "labels": "pairs",
        "nested": "json",
    }
    assert [name for name, field in fields.items() if field.required] == ["target"]
    assert [name for name, field in fields.items() if field.many] == ["tags", "labels"]
    assert fields["speed"].choices == ("slow", "fast")
    assert fields["grace"].help == "Seconds to wait; default 5.0s."


def test_a_body_holds_what_was_typed_and_nothing_else() -> None:
    assert parse(Odd, "web-1", "there") == {"target": "there"}
    typed = parse(Odd, *WHOLE.split())
    assert typed == {
        "target": "there",
        "speed": "fast",
        "memory": 2048,
        "disk": 40,
        "grace": 120.0,
        "times": 3,
        "sure": True,
        "checked": False,
        "tags": ["a", "b"],
        "labels": {"k": "v"},
        "nested": [[1, 2]],
    }


def test_the_real_verbs_take_their_fields() -> None:
    assert parse(StopVm, "web-1", "--force", "--grace", "2m") == {"force": True, "grace": 120.0}
    assert parse(ResizeVm, "web-1", "--memory", "4Gi") == {"memory": 4096}
    assert parse(LabelVm, "web-1", "--set", "a=b", "--remove", "c") == {"set": {"a": "b"}, "remove": ["c"]}


def test_a_field_out_of_its_limits_is_refused_by_name() -> None:
    with pytest.raises(Problem, match="vcpus: Expected `int` <= 512") as refused:
        parse(ResizeVm, "web-1", "--vcpus", "1000")
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (ResizeVm, ["--vcpus", "0"]),
        (ResizeVm, ["--memory", "1Mi"]),
        (StopVm, ["--grace", "2h"]),
        (LabelVm, ["--set", "UPPER=x"]),
        (LabelVm, ["--set", f"long={'x' * 64}"]),
        (LabelVm, ["--remove", "-"]),
        (LabelVm, [each for index in range(33) for each in ("--remove", f"k{index}")]),
        (RenameVm, ["not_a_name"]),
        (Odd, ["there", "--disk", "99Ti"]),
    ],
)
def test_a_refusal_here_is_in_the_words_of_the_server(command: type[VmCommand], arguments: list[str]) -> None:
    data = derive(command)
    with command_for(data).make_context("x", ["web-1", *arguments]) as context:
        with pytest.raises(Problem) as refused:
            body_of(data, context.params)
        without_limits = replace(data, fields=tuple(replace(field, limits={}) for field in data.fields))
        body = body_of(without_limits, context.params)
    with pytest.raises(msgspec.ValidationError) as there:
        msgspec.convert(body, command)
    assert str(refused.value.__cause__) == str(there.value)


def test_what_cannot_be_checked_here_is_left_to_the_server() -> None:
    assert essence(msgspec.json.schema(tuple[int, str])) == {}
    assert essence(msgspec.json.schema(int | str)) == {}
    assert essence(msgspec.json.schema(str)) == {}


def test_a_verb_that_must_be_told_something_takes_one_vm() -> None:
    assert [param.nargs for param in command_for(derive(Odd)).params if isinstance(param, click.Argument)] == [1, 1]
    assert [param.nargs for param in command_for(derive(StopVm)).params if isinstance(param, click.Argument)] == [-1]


def test_destructive_verbs_want_confirmation() -> None:
    wanted = {verb: data.confirms for verb in summaries() if (data := load(verb)) is not None}
    assert wanted["delete"] == "always"
    assert wanted["stop"] == "force"
    assert wanted["start"] is None
