"""Help, start-up, and answers to verbs that are not ours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cli.root import ENTRIES, root
from cli.session import Session
from cli.verbs import Group, Verb
from tests.cli.conftest import ROOT, Run


def every_command(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from every_command(found, (*path, name))


COMMANDS = [path for path in every_command(root, ()) if path]


def test_the_tree_is_whole() -> None:
    tree = {" ".join(path) for path in COMMANDS}
    expected = """
        vm create list describe start stop reboot pause resume delete rename label resize rollback
        vm snapshot create list describe delete policy
        host enroll list describe cordon uncordon drain activate label overcommit retire
        drain list describe watch cancel
        host maintenance
        plan list describe apply discard
        budget list describe create delete
        image add list describe remove
        op list describe wait cancel watch
        event list show tail
        audit status key verify export witness erase
        context list use add remove show
        token create list revoke
        projection status rebuild
        server run init reader archive restore-archive
        dev up down status
    """
    for line in expected.strip().splitlines():
        noun, *verbs = line.split()
        if f"{noun} {verbs[0]} {verbs[-1]}" in tree:
            noun, verbs = f"{noun} {verbs[0]}", verbs[1:]
        for verb in verbs:
            assert f"{noun} {verb}" in tree
    assert {"status", "doctor", "explain", "schema", "completion", "whoami", "login", "api", "why"} <= tree


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_in_80_columns(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(root, [*path, "--help"], obj=Session(), prog_name="vmorch", terminal_width=80)
    assert result.exit_code == 0, result.output
    assert "Examples:" in result.output
    assert "  vmorch" in result.output or "<(vmorch" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_every_summary_in_a_table_names_a_command_that_exists() -> None:
    for name in ENTRIES:
        command = root.get_command(click.Context(root), name)
        assert isinstance(command, Group | Verb)


def test_help_imports_no_library_of_the_server_and_nothing_above_the_core() -> None:
    code = (
        "import sys, json, cli.root as m; sys.stdout = open('/dev/null', 'w'); from cli.session import Session\n"
        "m.run(sys.argv[1:], Session()); json.dump(sorted(sys.modules), sys.stderr)"
    )
    for arguments in (["--help"], ["vm", "--help"], ["vm", "stop", "--help"], ["explain", "vm"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        modules = json.loads(done.stderr)
        heavy = {"sqlalchemy", "psycopg", "nats", "libvirt", "starlette", "httpx2", "rich", "yaml", "asyncio"}
        assert heavy.isdisjoint(modules)
        above = ("vmorch.log", "vmorch.bus", "vmorch.views", "vmorch.engine", "vmorch.edge", "hostagent")
        assert not [name for name in modules if name.startswith(above)]


def test_the_first_help_screen_loads_no_command_and_no_client() -> None:
    code = "import sys, json, cli.root as m; from cli.session import Session\nm.run(['--help'], Session())\n"
    code += "json.dump(sorted(sys.modules), sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stderr))
    assert not {name for name in modules if name.startswith(("cli.commands", "vmorch.core.operations"))}
    assert {"http.client", "ssl", "cli.client"}.isdisjoint(modules)


def test_a_change_is_asked_for_before_what_follows_is_imported() -> None:
    code = """if True:
        import http.client, json, os, sys
        def connect(connection):
            json.dump(sorted(sys.modules), sys.stderr)
            sys.stderr.flush()
            os._exit(0)
        http.client.HTTPConnection.connect = connect
        from cli.main import main
        main()
    """
    lines = (
        "vm start web-1",
        "vm stop web-1 --grace 5s",
        "vm create web-1 --image debian-13 --memory 2Gi",
        "vm snapshot create web-1 --quiesce",
        "vm rollback web-1 --to old --yes",
    )
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-c", code, *line.split()],
            cwd=ROOT,
            env={**os.environ, "VMORCH_API": "http://127.0.0.1:1"},
            capture_output=True,
            text=True,
            check=True,
        )
        modules = set(json.loads(done.stderr))
        assert {"cli.outcome", "cli.follow", "cli.shapes", "cli.table", "cli.registry"}.isdisjoint(modules)
        assert {"vmorch.core.messages", "vmorch.core.operations", "queue", "hashlib"}.isdisjoint(modules)


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("get vms", "vmorch vm list"),
        ("dominfo web-1", "vmorch vm describe NAME"),
        ("ls", "vmorch vm list"),
        ("vm destroy web-1", "vmorch vm stop NAME --force"),
        ("vm lst", "did you mean 'list'"),
        ("host delete hv-1", "vmorch host retire NAME"),
        ("image pull x", "vmorch image add NAME --url URL"),
    ],
)
def test_a_foreign_verb_is_answered_with_ours(vmorch: Run, typed: str, ours: str) -> None:
    done = vmorch(*typed.split())
    assert done.returncode == 2
    assert ours in done.stderr
    assert done.stdout == ""


def test_no_command_shows_help(vmorch: Run) -> None:
    assert "vmorch NOUN VERB" in vmorch().stderr + vmorch().stdout


def test_events_is_event(vmorch: Run) -> None:
    assert vmorch("events", "--help").returncode == 0


def test_explain_needs_no_server(vmorch: Run) -> None:
    done = vmorch("explain", "no-host-fits")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "no-host-fits: No host can take the VM"
    assert done.stdout.splitlines()[-1] == "HTTP 409, exit 6"
    assert vmorch("explain", "no-host-fit").returncode == 3
    assert "power_reason" in vmorch("explain", "vm").stdout


def test_schemas_need_no_server_and_are_schemas(vmorch: Run) -> None:
    import jsonschema  # type: ignore[import-untyped]  # its stubs are no dependency of ours

    for words in ("vm create", "vm list", "vm describe", "vm.stop", "op list", "event"):
        done = vmorch("schema", *words.split())
        assert done.returncode == 0, done.stderr
        jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))
    assert "vm create" in vmorch("schema").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(vmorch: Run, shell: str) -> None:
    assert "_VMORCH_COMPLETE" in vmorch("completion", shell).stdout
