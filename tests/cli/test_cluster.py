"""The CLI against a whole cluster: the real server on real Postgres and NATS, with simulated hosts."""

import asyncio
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
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nats
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
    why = live("why", "vm/db-1", "power").stdout.splitlines()
    assert why[0] == "vm/db-1 power is running, before off"
    assert "vm.operation-started" in why[1]
    assert "host:sim-" in why[-1]
    assert "vm.renamed" in live("why", "vm/db-1", "name").stdout
    assert live("why", "vm/db-1", "colour").returncode == 2
    kinds = [
        json.loads(line)["kind"]
        for line in live("event", "list", "--for", "vm/db-1", "-o", "jsonl").stdout.splitlines()
    ]
    assert kinds[0] == "vm.created"
    assert live("vm", "delete", "db-1", "--yes").stdout == "db-1 is deleted\n"
    assert live("vm", "describe", "db-1").returncode == 3


def test_the_published_log_is_as_far_as_the_log(live: Run, cluster: Path, tmp_path: Path) -> None:
    def published() -> dict[str, object]:
        found = json.loads(live("projection", "status", "-o", "json").stdout)["items"]
        return next(each for each in found if each["name"] == "published-log")

    deadline = time.monotonic() + 30
    while (now := published())["position"] != now["head"]:
        assert time.monotonic() < deadline, now
        time.sleep(0.2)
    assert now["trouble"] == ""
    assert live("doctor").returncode == 0
    settings = str(cluster / "server.toml")
    credentials = live("server", "reader", "--config", settings, "audit").stdout
    assert "BEGIN NATS USER JWT" in credentials
    (tmp_path / "audit.creds").write_text(credentials)
    url = str(tomllib.loads(Path(settings).read_text())["nats"]["url"])
    events = asyncio.run(_read(url, str(tmp_path / "audit.creds"), int(str(now["position"]))))
    assert [event["position"] for event in events] == [str(number + 1) for number in range(len(events))]
    assert events[0]["source"] == "/vmorch/dev"


async def _read(url: str, credentials: str, count: int) -> list[dict[str, object]]:
    """The first events of the published log, as any NATS client with a reader's credential gets them."""
    client = await nats.connect(url, user_credentials=credentials, inbox_prefix="_INBOX_reader_audit")
    stream = await client.jetstream().find_stream_name_by_subject("vmorch.dev.log.>")
    subscription = await client.jetstream().pull_subscribe("vmorch.dev.log.>", durable="audit", stream=stream)
    found: list[dict[str, object]] = []
    while len(found) < count:
        for message in await subscription.fetch(100, timeout=10):
            await message.ack()
            found.append(json.loads(message.data))
    await client.close()
    return found


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
