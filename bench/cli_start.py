"""How long an operator waits for the shell to come back: whole `vmorch` processes.

    python -m bench.cli_start [--rounds N] [--vms N]

The package is installed into a throw-away environment as an operator would (`pip install`, without extras), and its
console script is what is measured. The server is a development cluster with N VMs that were never started; it is
warm. In the same rounds: a bare `python -c pass` of that environment (the limit), and virsh, where there is one.
Exits with 1 if a promise is missed at the median.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.figures import machine, ratios, spread, table
from bench.leftovers import cluster_prefix, end_dead_clusters
from deploy.lab.control_node import UnixConnection
from deploy.lab.images import cached_tiny
from deploy.lab.operator import cache_directory

CHECKOUT = Path(__file__).parents[1]
HELP_SECONDS, LIST_SECONDS = 0.2, 0.25
HOSTS = 10
CALLERS = 8
PATIENCE = 180.0


class Cluster:
    """A development cluster's API."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "api.sock"
        self.token = (directory / "server/admin.token").read_text().strip()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "VMORCH_API": f"unix:{self.socket}", "VMORCH_TOKEN": self.token}

    def ask(self, method: str, path: str, body: object = None) -> Any:
        connection = UnixConnection(self.socket, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {said}")
        return said


@contextlib.contextmanager
def cluster(vms: int, hosts: int = HOSTS) -> Iterator[Cluster]:
    """A development cluster on which `vms` VMs are defined and no operation runs any more."""
    # Postgres, which root runs as an ordinary user, must be able to get there
    parent = Path("/var/lib" if os.geteuid() == 0 else tempfile.gettempdir())
    end_dead_clusters(parent)
    directory = Path(tempfile.mkdtemp(prefix=cluster_prefix(os.getpid()), dir=parent))
    directory.chmod(0o755)
    dev = [sys.executable, "-m", "vmorch.dev"]
    try:
        subprocess.run([*dev, "up", "--dir", str(directory), "--hosts", str(hosts)], check=True, capture_output=True)
        made = Cluster(directory)
        if vms:
            fill(made, vms)
        yield made
    finally:
        subprocess.run([*dev, "down", "--dir", str(directory)], check=False, capture_output=True)
        shutil.rmtree(directory, ignore_errors=True)


def fill(made: Cluster, vms: int) -> None:
    """Define that many small VMs and wait until all of it is done."""
    image = cached_tiny(cache_directory())
    subprocess.run(
        [sys.executable, "-m", "cli.main", "image", "add", "tiny", "--file", str(image)],
        env=made.environment(), check=True, capture_output=True, cwd=CHECKOUT,
    )  # fmt: skip
    for host in made.ask("GET", "/v1/hosts")["items"]:
        ratios_of = {"cpu": 100.0, "memory": 100.0, "disk": 100.0}
        made.ask("POST", f"/v1/hosts/{host['name']}/overcommit", ratios_of)

    def create(number: int) -> None:
        labels = {"team": f"team-{number % 7}", "tier": "web"}
        wish = {"name": f"vm-{number:04}", "image": "tiny", "memory": 64, "disk": 1, "start": False, "labels": labels}
        made.ask("POST", "/v1/vms", wish)

    with ThreadPoolExecutor(CALLERS) as pool:
        for _ in pool.map(create, range(vms)):
            pass
    deadline = time.monotonic() + PATIENCE
    while made.ask("GET", "/v1/operations?state=running&limit=1")["items"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{vms} VMs were not made within {PATIENCE:.0f} s")
        time.sleep(0.2)


@contextlib.contextmanager
def installed() -> Iterator[Path]:
    """The bin directory of an environment that holds nothing but the bare package."""
    with tempfile.TemporaryDirectory(prefix="vmorch-bench-venv-") as place:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        copy = Path(place) / "source"
        # a build leaves files behind; not in the checkout
        shutil.copytree(CHECKOUT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "tests"))
        pip = [str(Path(place) / "bin/pip"), "install", "-q", "--disable-pip-version-check", str(copy)]
        subprocess.run(pip, check=True, capture_output=True)
        yield Path(place) / "bin"


def seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(rounds: int, vms: int) -> dict[str, list[float]]:
    with installed() as bin, cluster(vms) as made:
        environment = made.environment()
        listed = subprocess.run([bin / "vmorch", "vm", "list"], env=environment, check=True, capture_output=True)
        lines = len(listed.stdout.splitlines())
        if lines < vms:
            raise RuntimeError(f"`vmorch vm list` shows {lines} lines for {vms} VMs")
        commands = {
            "python -c pass": [str(bin / "python"), "-c", "pass"],
            "vmorch --help": [str(bin / "vmorch"), "--help"],
            "vmorch vm list": [str(bin / "vmorch"), "vm", "list"],
            "vmorch vm list -o json": [str(bin / "vmorch"), "vm", "list", "-o", "json"],
            "vmorch vm describe": [str(bin / "vmorch"), "vm", "describe", "vm-0007"],
        }
        if shutil.which("virsh"):
            commands["virsh --help"] = ["virsh", "--help"]
            commands["virsh -c test:///default list"] = ["virsh", "-c", "test:///default", "list", "--all"]
        found: dict[str, list[float]] = {name: [] for name in commands}
        names = list(commands)
        for number in range(rounds + 1):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                took = seconds(commands[name], environment)
                if number:
                    found[name].append(took)
    return found


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.cli_start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31, help="measured rounds after one that warms up (default: 31)")
    parser.add_argument("--vms", type=int, default=1000, help="VMs in the list (default: 1,000)")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    found = measure(arguments.rounds, arguments.vms)
    promised = {"vmorch --help": HELP_SECONDS, "vmorch vm list": LIST_SECONDS}
    bare = found["python -c pass"]
    rows = [
        (
            name,
            spread([1000 * each for each in took]),
            spread(ratios(took, bare), digits=1),
            f"{1000 * promised[name]:.0f}" if name in promised else "",
        )
        for name, took in found.items()
    ]
    print(f"Milliseconds of {arguments.rounds} whole processes each, {arguments.vms:,} VMs.\n")
    print(table(["process", "median (lowest-highest)", "times a bare python", "promised"], rows))
    missed = [name for name, limit in promised.items() if statistics.median(found[name]) > limit]
    for name in missed:
        print(f"missed: {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
