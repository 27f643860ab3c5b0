"""Commands made from the registry of messages."""

from typing import Annotated, Literal

import click
import pytest
from msgspec import Meta

from cli.derived import body_of, command_for, fields_of, vm_verbs, wants_confirmation
from cli.problems import Problem
from cli.verbs import DURATION, PAIR, SIZE_GIB, SIZE_MIB
from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.ids import MiB
from vmorch.core.operations.label import LabelVm
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
    made = command_for(command)
    with made.make_context("x", list(arguments)) as context:
        return body_of(command, fields_of(command), context.params)


def test_every_verb_of_the_registry_is_a_command() -> None:
    expected = {"start", "stop", "reboot", "pause", "resume", "delete", "rename", "label", "resize"}
    assert expected <= set(vm_verbs())
    assert "create" not in vm_verbs()


def test_fields_become_parameters_in_the_operators_notation() -> None:
    kinds = {field.name: field.kind for field in fields_of(Odd)}
    assert kinds["memory"] is SIZE_MIB
    assert kinds["disk"] is SIZE_GIB
    assert kinds["grace"] is DURATION
    assert kinds["labels"] is PAIR
    assert isinstance(kinds["speed"], click.Choice)


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


def test_a_verb_that_must_be_told_something_takes_one_vm() -> None:
    assert [param.nargs for param in command_for(Odd).params if isinstance(param, click.Argument)] == [1, 1]
    assert [param.nargs for param in command_for(StopVm).params if isinstance(param, click.Argument)] == [-1]


def test_destructive_verbs_want_confirmation() -> None:
    verbs = vm_verbs()
    assert wants_confirmation(verbs["delete"]) == "always"
    assert wants_confirmation(verbs["stop"]) == "force"
    assert wants_confirmation(verbs["start"]) is None
