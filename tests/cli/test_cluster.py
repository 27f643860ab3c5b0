"""The CLI against a whole cluster: the real server on real Postgres and NATS, with simulated hosts."""

import contextlib
import ctypes
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run

pytestmark = [pytest.mark.postgres, pytest.mark.nats]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_the_tests() -> None:
    """A killed test run takes its cluster with it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """The directory of a development cluster with two hosts, gone afterwards."""
    with development_cluster(2) as (directory, _):
        yield directory


@contextlib.contextmanager
def development_cluster(hosts: int) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A cluster's directory and its supervisor, both gone afterwards."""
    # not under pytest's own directory: Postgres does not run as root and must be able to enter
    directory = Path(tempfile.mkdtemp(prefix="vmorch-cli-"))
    directory.chmod(0o755)
    (directory / "ports").write_text(f"{free_port()} {free_port()}")
    log = (directory / "log").open("wb")
    line = [sys.executable, "-m", "vmorch.dev", "serve", "--dir", str(directory), "--hosts", str(hosts)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log, preexec_fn=end_with_the_tests)
    try:
        deadline = time.monotonic() + 90
        while not (directory / "ready").exists():
            told = (directory / "log").read_text(errors="replace")
            assert process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        yield directory, process
    finally:
        process.terminate()
        process.wait(60)
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def live(cluster: Path, vmorch: Run, env: dict[str, str]) -> Run:
    """The CLI, talking to the cluster as its admin."""
    env["VMORCH_API"] = f"unix:{cluster}/api.sock"
    env["VMORCH_TOKEN"] = (cluster / "server/admin.token").read_text().strip()
    return vmorch


@pytest.fixture
def image(live: Run, tmp_path: Path) -> str:
    (tmp_path / "disk.raw").write_bytes(b"\x55" * 1024 * 1024)
    done = live("image", "add", "tiny", "--file", str(tmp_path / "disk.raw"))
    assert done.returncode in (0, 5), done.stderr
    return "tiny"


def test_a_vm_lives_and_dies_by_the_command_line(live: Run, image: str) -> None:
    plan = live("vm", "create", "web-1", "--image", image, "--memory", "256Mi", "--dry-run")
    assert (plan.returncode, plan.stdout.splitlines()[1]) == (10, "Steps")
    made = live(
        "vm", "create", "web-1", "--image", image, "--memory", "256Mi", "-l", "app=web", "-m", "CHG-1"
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("web-1 is running on sim-")
    assert live("vm", "list", "-l", "app=web", "-o", "name").stdout == "web-1\n"
    assert live("vm", "label", "web-1", "--set", "tier=gold").returncode == 0
    assert live("vm", "stop", "web-*").returncode == 0
    assert live("vm", "start", "web-1", "--timeout", "1m").returncode == 0
    assert live("vm", "start", "web-1").returncode == 6
    assert live("vm", "rename", "web-1", "db-1").returncode == 0
    described = live("vm", "describe", "db-1").stdout
    assert "Name db-1   State running" in described
    assert "app=web,tier=gold" in described
    assert "vm.renamed" in described
    kinds = [
        json.loads(line)["kind"]
        for line in live("event", "list", "--for", "vm/db-1", "-o", "jsonl").stdout.splitlines()
    ]
    assert kinds[0] == "vm.created"
    assert live("vm", "delete", "db-1", "--yes").stdout == "db-1 is deleted\n"
    assert live("vm", "describe", "db-1").returncode == 3


def test_what_cannot_be_placed_says_why_for_every_host(live: Run, image: str) -> None:
    done = live("vm", "create", "huge", "--image", image, "--memory", "9000Gi")
    assert done.returncode == 6
    assert done.stderr.startswith("error[no-host-fits]")
    assert "\n  sim-1  " in done.stderr
    assert "\n  sim-2  " in done.stderr


def test_a_repeated_request_gives_the_same_operation(live: Run, image: str) -> None:
    line = ("vm", "create", "again", "--image", image, "--memory", "256Mi", "-d", "-o", "json")
    id = ("--request-id", "0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d")
    first, second = (json.loads(live(*line, *id).stdout) for _ in range(2))
    assert first["operation"] == second["operation"]
    assert live("op", "wait", first["operation"]).returncode == 0


def test_hosts_tokens_and_the_cluster_itself(live: Run) -> None:
    assert live("host", "list", "-o", "name").stdout == "sim-1\nsim-2\n"
    assert live("host", "cordon", "sim-2", "-m", "DIMM").returncode == 0
    assert "Cordoned  DIMM" in live("host", "describe", "sim-2").stdout
    assert live("host", "uncordon", "sim-2").returncode == 0
    assert live("host", "label", "sim-1", "--set", "rack=a").returncode == 0
    assert live("host", "overcommit", "sim-1", "--cpu", "8").returncode == 0
    assert live("doctor").returncode == 0
    assert "hosts   2: 2 active" in live("status").stdout
    token = live("token", "create", "reader", "--role", "viewer", "--expires-in", "1d", "-q").stdout.strip()
    assert live("whoami", "-o", "name", VMORCH_TOKEN=token).stdout == "reader\n"
    assert live("host", "cordon", "sim-1", VMORCH_TOKEN=token).returncode == 4
    assert live("token", "revoke", "reader", "--yes").returncode == 0
    assert live("whoami", VMORCH_TOKEN=token).returncode == 4
    assert live("projection", "rebuild").returncode == 0
    assert live("event", "show", "1").returncode == 0
    assert live("event", "show", "999999").returncode == 3


def test_a_killed_supervisor_leaves_no_process_behind() -> None:
    with development_cluster(1) as (directory, supervisor):
        assert len(processes_of(directory)) == 5  # the supervisor, Postgres, NATS, the server, the hosts
        supervisor.kill()
        supervisor.wait()
        deadline = time.monotonic() + 20
        while left := processes_of(directory):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def processes_of(directory: Path) -> list[list[str]]:
    """The command lines that name the directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().decode(errors="replace").split("\0"))
    return [line for line in lines if any(str(directory) in each for each in line)]
