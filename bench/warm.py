"""A lab of a benchmark's own with everything warm, and the ways to speak to it.

Must not measure anything.
"""

import contextlib
import functools
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from bench.direct_calls import Wish
from bench.leftovers import end_dead_labs, lab_name
from deploy.lab.container import wait_for
from deploy.lab.control_node import UnixConnection
from deploy.lab.images import cached_tiny
from deploy.lab.lab import Lab
from deploy.lab.operator import cache_directory
from vmorch.core.aggregates.vm import mac_address
from vmorch.core.ids import GiB, MiB, VmId
from vmorch.core.spec import DiskSpec, ImagePin, NicSpec, ReadySpec, SeedSpec, VmSpec

PATIENCE = 60.0
MEMORY = 128
"""MiB of each guest."""
CALM, LOOK = 0.25, 0.3
"""The share of all cores that may be busy for a machine to count as calm, and the seconds over which it is seen."""


class Moments:
    """Named moments that threads note and others wait for; the newest of a name counts."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, ...], float] = {}
        self._changed = threading.Condition()

    def note(self, *name: str) -> None:
        now = time.monotonic()
        with self._changed:
            self._noted[name] = now
            self._changed.notify_all()

    def after(self, began: float, *name: str) -> float:
        """When it happened, once it happened after `began`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._noted.get(name, -1.0) > began, PATIENCE):
                raise TimeoutError(f"{name} did not happen within {PATIENCE:.0f} s")
            return self._noted[name]


@functools.cache
def libvirt_events() -> None:
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


def observe(uri: str, moments: Moments) -> Any:
    """Note libvirt's lifecycle events; the connection must be kept."""
    libvirt_events()
    connection = libvirt.open(uri)

    def seen(_connection: Any, domain: Any, event: int, _detail: int, _data: object) -> None:
        moments.note("libvirt", domain.UUIDString(), str(event))

    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, seen, None)
    return connection


class Api:
    """The API on one connection that is kept, and the event stream on another."""

    def __init__(self, socket: Path, token: str, moments: Moments, trace: bool) -> None:
        self._socket = socket
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection = UnixConnection(socket, timeout=PATIENCE)
        self._moments = moments
        self._trace = trace
        self.lines: list[tuple[float, str]] = []
        following = threading.Event()
        threading.Thread(target=self._follow, args=(following,), name="event stream", daemon=True).start()
        if not following.wait(PATIENCE):
            raise TimeoutError("the event stream did not begin")

    def warm(self) -> None:
        """Have an open connection: the server closes one that is idle for some seconds."""
        self._connection.close()
        self.ask("GET", "/v1/whoami")

    def ask(self, method: str, path: str, body: object = None) -> Any:
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        said = json.loads(answer.read())
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {said}")
        return said

    def _follow(self, following: threading.Event) -> None:
        connection = UnixConnection(self._socket, timeout=600)
        connection.request("GET", "/v1/events/tail", headers=self._headers)
        answer = connection.getresponse()
        following.set()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            while line := answer.readline():
                if line.startswith(b"data:"):
                    self._take(json.loads(line[5:]))

    def _take(self, event: dict[str, Any]) -> None:
        data = event.get("data") or {}
        self._moments.note("event", event["kind"], str(data.get("operation")))
        if self._trace:
            self.lines.append((time.monotonic(), f"{event['kind']} {data.get('index', '')}"))


class Direct:
    """The process of direct calls on the lab's host."""

    def __init__(self, lab: Lab, image: ImagePin, root: str = "/srv/vmorch/local") -> None:
        pid = str(lab.hosts[0].container.pid())
        self._image = image
        self._root = root
        self._process = subprocess.Popen(
            ["nsenter", "-t", pid, "-m", "-u", "-i", "-n", "-p", "--", sys.executable, "-m", "bench.direct_calls"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )

    def do(self, verb: str, vm: VmId, name: str) -> tuple[float, float]:
        spec = VmSpec(
            vcpus=1,
            max_vcpus=1,
            memory=MiB(MEMORY),
            max_memory=MiB(MEMORY),
            disks=(DiskSpec(name="vda", size=GiB(1), image=self._image),),
            nics=(NicSpec(mac=mac_address(vm, 0)),),
            seed=SeedSpec(hostname=name),
            ready=ReadySpec(by="none"),
        )
        base = f"{self._root}/vmorch/images/{self._image.digest}.{self._image.format}"
        directory = f"{self._root}/direct/{vm}"
        wish = Wish(do=verb, vm=vm, spec=spec, base=base, directory=directory, domain_type="qemu", network="lab")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(wish) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of direct calls has ended")
        began, ended = json.loads(line)
        return began, ended

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Warm:
    """A lab whose hosts are connected and which has the image `tiny`."""

    def __init__(self, lab: Lab, moments: Moments, api: Api, pin: ImagePin, environment: dict[str, str]) -> None:
        self.lab, self.moments, self.api, self.pin = lab, moments, api, pin
        self._environment = environment

    def vmorch(self, *arguments: str) -> None:
        """Run the command line as an operator does. Raises RuntimeError with its words if it fails."""
        _vmorch(arguments, self._environment)


@contextlib.contextmanager
def warm_lab(hosts: int, *, trace: bool = False) -> Iterator[Warm]:
    """A lab of this process with so many hosts; gone afterwards."""
    end_dead_labs()
    lab = Lab(lab_name(os.getpid()))
    try:
        lab.up(hosts)
        moments = Moments()
        token = lab.control.admin_token()
        api = Api(lab.control.api_socket, token, moments, trace)
        environment = {**os.environ, "VMORCH_API": f"unix:{lab.control.api_socket}", "VMORCH_TOKEN": token}
        # an installed package is compiled; a checkout is by the round that warms up, unless this forbids it
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        image = cached_tiny(cache_directory())
        _vmorch(("image", "add", "tiny", "--file", str(image)), environment)
        wait_for(
            lambda: len(api.ask("GET", "/v1/hosts?state=active")["items"]) == hosts, PATIENCE, "the hosts' connection"
        )
        known = api.ask("GET", "/v1/images/tiny")["item"]
        pin = ImagePin(
            digest=known["digest"], format=known["format"], size=known["size"], virtual_size=known["virtual_size"]
        )
        yield Warm(lab, moments, api, pin, environment)
    finally:
        lab.down()


def _vmorch(arguments: Sequence[str], environment: dict[str, str]) -> None:
    vmorch = str(Path(sys.executable).with_name("vmorch"))
    done = subprocess.run([vmorch, *arguments], env=environment, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"vmorch {' '.join(arguments)}: {done.stderr.decode()}")


def await_calm(patience: float) -> bool:
    """Wait until nobody else keeps the machine busy, or until patience is over; whether it is calm."""
    until = time.monotonic() + patience
    while True:
        idle, everything = _cpu_times()
        time.sleep(LOOK)
        idle_now, everything_now = _cpu_times()
        if 1 - (idle_now - idle) / (everything_now - everything) <= CALM:
            return True
        if time.monotonic() > until:
            return False


def _cpu_times() -> tuple[int, int]:
    """Idle ticks and all ticks of all cores."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
