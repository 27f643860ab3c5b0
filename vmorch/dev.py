"""A whole cluster on one laptop: embedded Postgres and NATS, the server, and simulated hosts. No root, no libvirt.

One supervisor process starts the parts as its children and takes all of them with it when it ends. Must not be used
for anything that matters: its data goes when it stops, unless it is kept.
"""

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import platformdirs

from vmorch.embedded import EmbeddedError, EmbeddedNats, EmbeddedPostgres, dying_with_parent

PATIENCE = 90.0
"""Seconds to wait until everything serves."""

SETTINGS = """\
[server]
cluster = "dev"
data_dir = "{dir}/server"
listen_unix = "{dir}/api.sock"
listen_tcp = "127.0.0.1:{http}"
public_url = "http://127.0.0.1:{http}"

[database]
url = "{url}"
owner_url = "{owner}"

[nats]
url = "nats://127.0.0.1:{nats}"
config_file = "{dir}/nats.conf"
listen = "127.0.0.1:{nats}"

[images]
allowed_networks = ["127.0.0.0/8"]
"""


class DevError(Exception):
    """The development cluster could not be started or stopped; the message says why."""


def default_directory() -> Path:
    """Where the cluster lives: Postgres, which root runs as nobody, must be able to enter it."""
    if os.geteuid() == 0:
        return Path("/var/lib/vmorch-dev")
    return Path(platformdirs.user_state_dir("vmorch")) / "dev"


def supervise(directory: Path, hosts: int) -> None:
    """Run everything until SIGTERM or SIGINT. Raises DevError, EmbeddedError."""
    with _lock(directory), _told_to_end() as told, contextlib.ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(directory / "postgres"))
        settings = directory / "server.toml"
        http_port, nats_port = _ports(directory)
        settings.write_text(
            SETTINGS.format(
                dir=directory,
                http=http_port,
                nats=nats_port,
                url=postgres.url("vmorch", "vmorch_server"),
                owner=postgres.url("vmorch"),
            )
        )
        subprocess.run([sys.executable, "-m", "vmorch.main", "init", "--config", str(settings)], check=True)
        stack.enter_context(EmbeddedNats(directory / "nats", directory / "nats.conf"))
        server = stack.enter_context(_child("vmorch.main", "run", "--config", str(settings)))
        _await_health(directory, server)
        children = {"the server": server}
        if hosts:
            tokens = _invite(directory, hosts)
            arguments = ("--hosts", str(hosts), "--server", f"unix:{directory}/api.sock", "--token-file", str(tokens))
            place = ("--directory", str(directory / "hosts"))
            children["the hosts' process"] = stack.enter_context(_child("hostagent.simulated", *arguments, *place))
            _await_hosts(directory, hosts, [*children.values()])
        (directory / "ready").write_text(json.dumps({"http": http_port, "hosts": hosts}))
        stack.callback((directory / "ready").unlink, missing_ok=True)
        while not told:
            for name, child in children.items():
                if child.poll() is not None:
                    raise DevError(f"{name} ended by itself; see {directory}/dev.log")
            time.sleep(0.2)


def ask(directory: Path, method: str, path: str, body: object = None) -> dict[str, object]:
    """One request to the cluster's API as its admin. Raises DevError, OSError."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(directory / "api.sock"))
    token = (directory / "server/admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        answer: dict[str, object] = json.loads(response.read())
    if response.status >= 400:
        raise DevError(f"{method} {path}: {answer.get('detail')}")
    return answer


def running(directory: Path) -> int | None:
    """The supervisor's pid, if one runs there."""
    try:
        with (directory / "dev.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        return None
    return None


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory / "dev.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DevError(f"a development cluster already runs in {directory}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _told_to_end() -> Iterator[list[int]]:
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: told.append(got))
    yield told


@contextlib.contextmanager
def _child(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    # a killed supervisor must leave nothing: the next one would take an answer of the old server for its own's
    line = [*dying_with_parent("KILL"), sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(line, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ports(directory: Path) -> tuple[int, int]:
    """The API's and the broker's ports: 8650 and 4222 if they are free, the same again at the next start."""
    known = directory / "ports"
    if known.exists():
        http_port, nats_port = map(int, known.read_text().split())
        return http_port, nats_port
    http_port, nats_port = (_free_port(wanted) for wanted in (8650, 4222))
    known.write_text(f"{http_port} {nats_port}")
    return http_port, nats_port


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise DevError("no free port on 127.0.0.1")


def _await_health(directory: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DevError(f"the server ended with exit code {server.returncode}; see {directory}/dev.log")
        with contextlib.suppress(OSError, json.JSONDecodeError, http.client.HTTPException):
            ask(directory, "GET", "/v1/whoami")
            return
        time.sleep(0.05)
    raise DevError(f"the server did not answer within {PATIENCE:.0f} s; see {directory}/dev.log")


def _invite(directory: Path, hosts: int) -> Path:
    """A file with a token for each host that is not enrolled yet, in the hosts' order."""
    tokens = []
    for index in range(1, hosts + 1):
        enrolled = (directory / "hosts" / f"sim-{index}" / "identity.json").exists()
        answer = {"token": "-"} if enrolled else ask(directory, "POST", "/v1/hosts", {"name": f"sim-{index}"})
        tokens.append(str(answer["token"]))
    path = directory / "tokens"
    path.touch(mode=0o600)
    path.write_text("\n".join(tokens) + "\n")
    return path


def _await_hosts(directory: Path, hosts: int, children: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if any(child.poll() is not None for child in children):
            raise DevError(f"a part ended by itself; see {directory}/dev.log")
        active = ask(directory, "GET", "/v1/hosts?state=active&limit=10000")["items"]
        if isinstance(active, list) and len(active) >= hosts:
            return
        time.sleep(0.05)
    raise DevError(f"the hosts did not connect within {PATIENCE:.0f} s; see {directory}/dev.log")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A development cluster with simulated hosts, not for production."""


_dir = click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=default_directory, show_default=True
)


@main.command()
@_dir
@click.option("--hosts", type=click.IntRange(0, 1000), default=3, show_default=True, help="How many simulated hosts.")
def up(directory: Path, hosts: int) -> None:
    """Start it in the background and say how to use it.

    Example: vmorch dev up --hosts 5
    """
    directory = directory.absolute()
    if running(directory) is None:
        (directory / "ready").unlink(missing_ok=True)
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (directory / "dev.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "vmorch.dev", "serve", "--dir", str(directory), "--hosts", str(hosts)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _await_ready(directory, process)
    ready = json.loads((directory / "ready").read_text())
    click.echo(
        f"""Development cluster, not for production. Its data goes with `vmorch dev down` (--keep keeps it).
  api      http://127.0.0.1:{ready["http"]}   unix:{directory}/api.sock
  hosts    {ready["hosts"]} simulated
  use it   export VMORCH_API=unix:{directory}/api.sock VMORCH_TOKEN=$(cat {directory}/server/admin.token)
  try      vmorch host list | vmorch status | vmorch event tail"""
    )


def _await_ready(directory: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (directory / "ready").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = (directory / "dev.log").read_text(errors="replace").strip().splitlines()
            raise click.ClickException("\n".join(["the cluster did not start:", *lines[-5:]]))
        time.sleep(0.05)


@main.command()
@_dir
@click.option("--hosts", type=click.IntRange(0, 1000), default=3, show_default=True)
def serve(directory: Path, hosts: int) -> None:
    """Run it in the foreground until interrupted.

    Example: vmorch dev serve --hosts 1
    """
    try:
        supervise(directory.absolute(), hosts)
    except (DevError, EmbeddedError, OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_dir
@click.option("--keep", is_flag=True, help="Keep the data for the next `up`.")
def down(directory: Path, keep: bool) -> None:
    """Stop it and remove its data.

    Example: vmorch dev down --keep
    """
    directory = directory.absolute()
    pid = running(directory)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while running(directory) is not None:
            if time.monotonic() > deadline:
                raise click.ClickException(f"process {pid} does not end; see {directory}/dev.log")
            time.sleep(0.05)
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    click.echo("stopped" if pid is not None else "it was not running")


@main.command()
@_dir
def status(directory: Path) -> None:
    """Say whether it runs.

    Example: vmorch dev status
    """
    pid = running(directory.absolute())
    click.echo("not running" if pid is None else f"running in {directory} (process {pid})")
    if pid is None:
        sys.exit(1)


if __name__ == "__main__":
    main()
