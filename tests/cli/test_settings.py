"""Contexts, tokens, and which of flag, environment and file wins."""

import json
import stat
from pathlib import Path

from tests.cli import api as make
from tests.cli.api import Api
from tests.cli.conftest import Run


def config(tmp_path: Path) -> Path:
    return tmp_path / "config" / "vmorch"


def test_contexts_are_added_used_and_removed(vmorch: Run, tmp_path: Path) -> None:
    assert vmorch("context", "add", "dev", "--api", "unix:/run/vmorch/api.sock").returncode == 0
    assert (
        vmorch("context", "add", "prod", "--api", "https://vmorch.example.org", "--protected").returncode == 0
    )
    assert vmorch("context", "list").stdout.splitlines() == [
        "   NAME  API                         TOKEN  PROTECTED",
        "*  dev   unix:/run/vmorch/api.sock   no     no",
        "   prod  https://vmorch.example.org  no     yes",
    ]
    assert vmorch("context", "use", "prod").returncode == 0
    assert json.loads(vmorch("context", "show", "-o", "json").stdout)["item"]["context"] == "prod"
    assert vmorch("context", "remove", "prod").returncode == 0
    assert vmorch("context", "use", "prod").returncode == 2
    assert (
        config(tmp_path) / "config.toml"
    ).read_text() == '[contexts."dev"]\napi = "unix:/run/vmorch/api.sock"\n'


def test_login_keeps_a_token_the_server_recognised_where_only_its_owner_reads_it(
    api: Api, vmorch: Run, tmp_path: Path
) -> None:
    api.on("GET /v1/whoami", make.document("Identity", name="oncall", role="operator"))
    done = vmorch("login", input="s3cret\n")
    assert done.returncode == 0, done.stderr
    assert "logged in to default as oncall (operator)" in done.stderr
    tokens = config(tmp_path) / "tokens.toml"
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert stat.S_IMODE((config(tmp_path) / "config.toml").stat().st_mode) == 0o600
    assert "s3cret" not in (config(tmp_path) / "config.toml").read_text()
    vmorch("whoami")
    assert [each.headers["authorization"] for each in api.asked] == ["Bearer s3cret", "Bearer s3cret"]


def test_a_token_that_the_server_refuses_is_not_kept(api: Api, vmorch: Run, tmp_path: Path) -> None:
    api.on("GET /v1/whoami", make.problem("unauthenticated", "the token is not known"))
    assert vmorch("login", input="wrong\n").returncode == 4
    assert not (config(tmp_path) / "tokens.toml").exists()


def test_a_kept_token_is_not_sent_to_another_address(api: Api, vmorch: Run, tmp_path: Path) -> None:
    api.on("GET /v1/whoami", make.document("Identity", name="oncall", role="operator"))
    vmorch("login", input="s3cret\n")
    with Api() as other:
        other.on("GET /v1/whoami", make.document("Identity", name="nobody"))
        vmorch("whoami", "--api", other.url)
        assert "authorization" not in other.asked[0].headers


def test_flag_wins_over_environment_over_context_over_default(api: Api, vmorch: Run) -> None:
    def api_in_force(*flags: str, **env: str) -> str:
        return str(json.loads(vmorch("context", "show", "-o", "json", *flags, **env).stdout)["item"]["api"])

    assert api_in_force(VMORCH_API="") == "http://127.0.0.1:8650"
    vmorch("context", "add", "one", "--api", "http://one")
    vmorch("context", "add", "two", "--api", "http://two")
    assert api_in_force(VMORCH_API="") == "http://one"
    assert api_in_force(VMORCH_API="", VMORCH_CONTEXT="two") == "http://two"
    assert api_in_force("-C", "one", VMORCH_API="", VMORCH_CONTEXT="two") == "http://one"
    assert api_in_force(VMORCH_API="http://three") == "http://three"
    assert api_in_force("--api", "http://four", VMORCH_API="http://three") == "http://four"


def test_the_output_may_be_set_by_environment_and_context(api: Api, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("web-1")]))
    assert vmorch("vm", "list", VMORCH_OUTPUT="name").stdout == "web-1\n"
    vmorch("context", "add", "one", "--api", api.url, "--default-output", "name")
    assert vmorch("vm", "list").stdout == "web-1\n"
    assert vmorch("vm", "list", "-o", "table").stdout.startswith("NAME")


def test_a_file_that_cannot_be_read_is_named(vmorch: Run, tmp_path: Path) -> None:
    config(tmp_path).mkdir(parents=True)
    (config(tmp_path) / "config.toml").write_text("current = [")
    done = vmorch("vm", "list")
    assert done.returncode == 2
    assert str(config(tmp_path) / "config.toml") in done.stderr


def test_a_context_that_does_not_exist_is_an_error(vmorch: Run) -> None:
    done = vmorch("vm", "list", "-C", "nowhere")
    assert done.returncode == 2
    assert "no context 'nowhere'" in done.stderr


def test_an_address_that_is_none_is_an_error(vmorch: Run) -> None:
    assert vmorch("vm", "list", "--api", "ftp://x").returncode == 2
    assert vmorch("vm", "list", "--api", "http://x:port").returncode == 2
