"""What a VM's life costs through vmorch, against the same made by libvirt's own calls on the same host.

    python -m bench.lifecycle [--rounds N] [--calm SECONDS] [--trace]

Needs root: it makes a lab of its own with one real libvirt host and removes it. Each round takes three VMs through
create, stop, start and delete, one after another, in an order that turns from round to round: one by direct calls
(qemu-img, a seed, define, create; no server, no log, no flush), one through the API on a connection that is kept
open, one by a `vmorch` process for each verb. "ready none" everywhere: nobody waits for a guest to boot. Stop cuts the
power in all three, because how long a guest takes to shut down is the guest's affair; delete finds the VM running.

Two moments are compared: when libvirt's own event reaches an observer outside (for create and start: STARTED), and
when the caller knows that it is done (direct: the last call returned; API: the event stream said that the operation
finished; CLI: the process ended). Exits with 1 if a promise is missed at the median.
"""

import argparse
import contextlib
import functools
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from bench.direct_calls import Wish
from bench.figures import machine, ratios, spread, table
from bench.leftovers import end_dead_labs, lab_name
from deploy.lab.container import wait_for
from deploy.lab.control_node import UnixConnection
from deploy.lab.images import cached_tiny
from deploy.lab.lab import Lab
from deploy.lab.operator import cache_directory
from vmorch.core.ids import GiB, MiB, VmId
from vmorch.core.operations.create import mac_address
from vmorch.core.spec import DiskSpec, ImagePin, NicSpec, ReadySpec, SeedSpec, VmSpec

PATIENCE = 60.0
MEMORY = 128
VERBS = ("create", "stop", "start", "delete")
EVENTS = {
    "create": libvirt.VIR_DOMAIN_EVENT_STARTED,
    "stop": libvirt.VIR_DOMAIN_EVENT_STOPPED,
    "start": libvirt.VIR_DOMAIN_EVENT_STARTED,
    "delete": libvirt.VIR_DOMAIN_EVENT_UNDEFINED,
}
RATIO, EXTRA_MS, RATIO_CLI = 1.2, 100.0, 1.5
CALM, LOOK = 0.25, 0.3
"""The share of all cores that may be busy for a machine to count as calm, and the seconds over which it is seen."""
STAGGER = 0.5


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


Life = dict[str, tuple[float, float]]
"""Verb -> milliseconds until libvirt's event, milliseconds until the caller knew."""


class Bench:
    """The three ways through a VM's life."""

    def __init__(self, lab: Lab, api: Api, direct: Direct, moments: Moments) -> None:
        self.lab = lab
        self.api = api
        self.direct = direct
        self.moments = moments
        self._environment = {
            **os.environ,
            "VMORCH_API": f"unix:{lab.control.api_socket}",
            "VMORCH_TOKEN": lab.control.admin_token(),
        }
        # an installed package is compiled; a checkout is by the round that warms up, unless this forbids it
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def by_direct_calls(self, name: str) -> Life:
        vm = VmId(str(uuid.uuid4()))
        life: Life = {}
        for verb in VERBS:
            began, ended = self.direct.do(verb, vm, name)
            seen = self.moments.after(began, "libvirt", vm, str(EVENTS[verb]))
            life[verb] = _ms(began, seen), _ms(began, ended)
            time.sleep(STAGGER)
        return life

    def by_api(self, name: str) -> Life:
        bodies: dict[str, tuple[str, object]] = {
            "create": (
                "/v1/vms",
                {"name": name, "image": "tiny", "memory": MEMORY, "disk": 1, "ready": {"by": "none"}},
            ),
            "stop": (f"/v1/vms/{name}/stop", {"grace": 0, "force": True}),
            "start": (f"/v1/vms/{name}/start", {}),
            "delete": (f"/v1/vms/{name}/delete", {}),
        }
        life: Life = {}
        for verb in VERBS:
            path, body = bodies[verb]
            self.api.lines.clear()
            self.api.warm()
            began = time.monotonic()
            accepted = self.api.ask("POST", path, body)
            answered = time.monotonic()
            seen = self.moments.after(began, "libvirt", accepted["subject"], str(EVENTS[verb]))
            known = self.moments.after(began, "event", "vm.operation-finished", accepted["operation"])
            life[verb] = _ms(began, seen), _ms(began, known)
            if self.api.lines:
                steps = ", ".join(f"{_ms(began, at):.0f} {what}" for at, what in self.api.lines)
                print(f"  {verb}: accepted {_ms(began, answered):.0f} ms; libvirt {life[verb][0]:.0f}; {steps}")
            time.sleep(STAGGER)
        return life

    def by_cli(self, name: str) -> Life:
        arguments = {
            "create": f"create {name} --image tiny --memory {MEMORY}Mi --disk 1Gi --ready none".split(),
            "stop": ["stop", name, "--force", "--grace", "0", "--yes"],
            "start": ["start", name],
            "delete": ["delete", name, "--yes"],
        }
        vm = ""
        life: Life = {}
        for verb in VERBS:
            began = time.monotonic()
            self._vmorch(arguments[verb])
            ended = time.monotonic()
            if not vm:
                self.api.warm()
                vm = self.api.ask("GET", f"/v1/vms/{name}")["item"]["id"]
            seen = self.moments.after(began, "libvirt", vm, str(EVENTS[verb]))
            life[verb] = _ms(began, seen), _ms(began, ended)
            time.sleep(STAGGER)
        return life

    def _vmorch(self, arguments: list[str]) -> None:
        vmorch = str(Path(sys.executable).with_name("vmorch"))
        done = subprocess.run([vmorch, "vm", *arguments], env=self._environment, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"vmorch vm {' '.join(arguments)}: {done.stderr.decode()}")


def _ms(began: float, ended: float) -> float:
    return (ended - began) * 1000


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


@contextlib.contextmanager
def bench(trace: bool) -> Iterator[Bench]:
    """A lab of our own with everything warm."""
    end_dead_labs()
    lab = Lab(lab_name(os.getpid()))
    try:
        lab.up(1)
        moments = Moments()
        api = Api(lab.control.api_socket, lab.control.admin_token(), moments, trace)
        image = cached_tiny(cache_directory())
        environment = {
            **os.environ,
            "VMORCH_API": f"unix:{lab.control.api_socket}",
            "VMORCH_TOKEN": lab.control.admin_token(),
        }
        vmorch = str(Path(sys.executable).with_name("vmorch"))
        subprocess.run(
            [vmorch, "image", "add", "tiny", "--file", str(image)], env=environment, check=True, capture_output=True
        )
        wait_for(lambda: len(api.ask("GET", "/v1/hosts?state=active")["items"]) == 1, PATIENCE, "the host's connection")
        known = api.ask("GET", "/v1/images/tiny")["item"]
        pin = ImagePin(
            digest=known["digest"], format=known["format"], size=known["size"], virtual_size=known["virtual_size"]
        )
        connection = observe(lab.hosts[0].uri, moments)
        direct = Direct(lab, pin)
        try:
            yield Bench(lab, api, direct, moments)
        finally:
            direct.close()
            connection.close()
    finally:
        lab.down()


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.lifecycle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds after one that warms up (default: 11)")
    parser.add_argument(
        "--calm", type=float, default=15.0, help="seconds to wait, before each life, for a calm machine (default: 15)"
    )
    parser.add_argument("--trace", action="store_true", help="print when each event of an API operation was known")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    lives: dict[str, list[Life]] = {"direct": [], "API": [], "CLI": []}
    with bench(arguments.trace) as it:
        ways: list[tuple[str, Callable[[str], Life]]] = [
            ("API", it.by_api),
            ("direct", it.by_direct_calls),
            ("CLI", it.by_cli),
        ]
        restless = 0
        for number in range(arguments.rounds + 1):
            turn = number % len(ways)
            for way, live in ways[turn:] + ways[:turn]:
                restless += not await_calm(arguments.calm)
                life = live(f"{way.lower()}-{number}")
                if number:
                    lives[way].append(life)
    if restless:
        print(f"The machine was not calm before {restless} of {3 * (arguments.rounds + 1)} lives.\n")
    return report(lives)


def report(lives: dict[str, list[Life]]) -> int:
    """Print the tables; 1 if a promise is missed."""
    rows, missed = [], []
    for verb in VERBS:
        for index, moment in enumerate(("libvirt event", "caller knows")):
            times = {way: [life[verb][index] for life in of] for way, of in lives.items()}
            cells = [verb, moment, spread(times["direct"])]
            for way, promised in (("API", RATIO), ("CLI", RATIO_CLI)):
                found = ratios(times[way], times["direct"])
                more = statistics.median(times[way]) - statistics.median(times["direct"])
                cells += [spread(times[way]), spread(found, digits=2), f"{more:+.0f}"]
                late = way == "API" and more > EXTRA_MS
                if statistics.median(found) > promised or late:
                    missed.append(f"{verb} by {way}, {moment}: {statistics.median(found):.2f}x, {more:+.0f} ms")
            rows.append(cells)
    rounds = len(lives["API"])
    print(f"Milliseconds, median (lowest-highest) of {rounds} rounds; ratios to direct calls of the same round.\n")
    print(table(["verb", "until", "direct", "API", "ratio", "more", "CLI", "ratio", "more"], rows))
    for each in missed:
        print(f"missed: {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
