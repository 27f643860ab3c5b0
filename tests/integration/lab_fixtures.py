"""One lab of real hosts with its control plane for a whole test run, and the means to use and to examine it.

What the product says comes from its API and CLI; what is true comes from libvirt, QEMU's logs and files, which are
asked without the product.
"""

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import pytest

from deploy.lab import network
from deploy.lab.container import CHECKOUT
from deploy.lab.control_node import UnixConnection
from deploy.lab.errors import LabError
from deploy.lab.host import Host
from deploy.lab.images import cached_tiny
from deploy.lab.lab import Lab, running_labs
from deploy.lab.process import identify, kill_and_wait

BLANK = b"\0" * 1024 * 1024
"""A raw image that boots nothing, so that a VM on it costs the machine next to nothing."""

T = TypeVar("T")

needs_lab = [
    pytest.mark.lab,
    pytest.mark.libvirt,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root, for namespaces and libvirtd"),
    pytest.mark.skipif(shutil.which("libvirtd") is None, reason="libvirtd is not installed"),
]
needs_guest = [
    *needs_lab,
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the guest's image is made of Debian packages"),
]


def until(condition: Callable[[], T], seconds: float, what: str, *, every: float = 0.1) -> T:
    """The first value of the condition that counts as true, asked for `every` so often; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every)
    return found


@dataclass(frozen=True)
class Answer:
    """What the API said."""

    status: int
    body: Any


class Away(Exception):
    """The API did not answer at all."""


class Api:
    """The HTTP API over its Unix socket, as any program would speak to it."""

    def __init__(self, socket: Path, token: str) -> None:
        self._socket = socket
        self._token = token

    def ask(
        self, method: str, path: str, body: Any = None, *, timeout: float = 30.0, request_id: str | None = None
    ) -> Answer:
        """One request. `body` is sent as it is if it is bytes, else as JSON. Raises Away."""
        connection = UnixConnection(self._socket, timeout=timeout)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            named = {} if request_id is None else {"Vmorch-Request-Id": request_id}
            connection.request(method, path, data, {"Authorization": f"Bearer {self._token}", **named})
            answer = connection.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        return Answer(answer.status, json.loads(raw) if raw else None)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.ask("GET", f"{path}?{urlencode(query)}" if query else path)
        assert answer.status == 200, f"GET {path}: {answer}"
        return answer.body

    def change(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a change that is accepted."""
        answer = self.ask("POST", path, body)
        assert answer.status < 300, f"POST {path} {body}: {answer}"
        return dict(answer.body)

    def refused(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a change that is refused; the problem document."""
        answer = self.ask("POST", path, body)
        assert answer.status >= 400, f"POST {path} {body}: {answer}"
        return dict(answer.body)

    def items(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Every item of a list, all pages, as of now: lists come from read models, which follow the log."""
        found: list[dict[str, Any]] = []
        if path != "/v1/events":
            query = {**query, "minPosition": self.get("/v1/status")["head"]}
        while True:
            page = self.get(path, **query)
            found += page["items"]
            if page["next"] is None:
                return found
            query = {**query, "after": page["next"]}

    def vm(self, ref: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/vms/{quote(ref)}")["item"])

    def host(self, ref: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/hosts/{quote(ref)}")["item"])

    def operation(self, id: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/operations/{id}")["item"])

    def over(self, id: str, seconds: float = 120.0) -> dict[str, Any]:
        """The operation at its end, through absences of the API."""

        def ended() -> dict[str, Any] | None:
            try:
                answer = self.ask("GET", f"/v1/operations/{id}", timeout=10)
            except Away:
                return None
            return dict(answer.body["item"]) if answer.status == 200 and answer.body["item"]["ended_at"] else None

        return until(ended, seconds, f"the end of operation {id}") or {}

    def do(self, path: str, body: Mapping[str, Any], seconds: float = 120.0) -> dict[str, Any]:
        """Ask for a change, wait for its end and require its success."""
        operation = self.over(self.change(path, body)["operation"], seconds)
        assert operation["state"] == "succeeded", operation
        return operation

    def on_vm(self, ref: str, verb: str, seconds: float = 120.0, **arguments: Any) -> dict[str, Any]:
        """A VM's operation, carried through."""
        return self.do(f"/v1/vms/{quote(ref)}/{verb}", arguments, seconds)

    def create(self, name: str, **arguments: Any) -> str:
        """The id of a new VM on the blank image, which is there at the end."""
        wanted = {"image": "blank", "memory": 64, "ready": {"by": "none"}, **arguments}
        accepted = self.change("/v1/vms", {"name": name, **wanted})
        operation = self.over(accepted["operation"])
        assert operation["state"] == "succeeded", operation
        return str(operation["vm"])


class Cli:
    """The CLI as an operator types it."""

    def __init__(self, socket: Path, token: str) -> None:
        # nothing of the operator's own settings
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VMORCH_")}
        self._environment = {**kept, "VMORCH_API": f"unix:{socket}", "VMORCH_TOKEN": token, "NO_COLOR": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that runs on; whoever starts it waits for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments],
            env=self._environment, cwd=CHECKOUT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, exits: int = 0, timeout: float = 150.0) -> str:
        """All that a command printed, to stdout and then to stderr; it must exit so."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert process.returncode == exits, f"vmorch {' '.join(arguments)}: {process.returncode}\n{out}{err}"
        return out + err


class Site:
    """A lab that is up, its API and CLI, and ways to see what really is."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        token = lab.control.admin_token()
        self.api = Api(lab.control.api_socket, token)
        self.cli = Cli(lab.control.api_socket, token)

    def host(self, name: str) -> Host:
        return self.lab.host(name)

    # -- what is true ---------------------------------------------------------------------------------------------

    @contextmanager
    def libvirt(self, host: str) -> Iterator[Any]:
        """A connection of our own to a host's libvirt."""
        # here, because the tests of a machine without libvirt import this module too
        import libvirt

        with closing(libvirt.open(self.host(host).uri)) as connection:
            yield connection

    def domains(self, host: str) -> dict[str, bool]:
        """Every domain that a host's libvirt knows: name to whether it is active."""
        with self.libvirt(host) as connection:
            return {domain.name(): bool(domain.isActive()) for domain in connection.listAllDomains()}

    def vm_files(self, host: str) -> set[str]:
        """Every file and directory of VMs on a host, local or shared."""
        place = self.host(host)
        roots = (place.local / "vmorch/vms", place.shared / "vmorch/vms")
        return {str(found.relative_to(root)) for root in roots for found in root.rglob("*")}

    def serial_log(self, host: str, vm: str) -> str:
        """All that a guest ever printed; empty before its first start."""
        log = self.host(host).local / "vmorch/vms" / vm / "serial.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def boots(self, host: str, vm: str) -> int:
        """How often QEMU was started for a VM, by libvirt's own book, which outlives the domain."""
        log = self.host(host).directory / "log/qemu" / f"{vm}.log"
        return len(re.findall(r"^[^ ]+ [^ ]+: starting up", log.read_text(), re.MULTILINE)) if log.exists() else 0

    def virsh(self, host: str, *arguments: str, text: str | None = None) -> str:
        """What an administrator types on the host itself."""
        return self.host(host).run(["virsh", "-c", "qemu:///system", *arguments], text=text).stdout

    def ask_guest(self, address: str, path: str) -> Any:
        """What a guest answers over HTTP to somebody on the lab's network; None if it does not."""
        url = f"http://{address}{path}"
        script = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=2).read().decode())"
        done = self.lab.control.container.run([sys.executable, "-c", script], check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def in_guest(self, host: str, vm: str, *argv: str) -> str:
        """What a command printed inside the guest, run by its agent. Raises LabError if that does not answer."""
        import libvirt
        import libvirt_qemu

        def agent(execute: str, **arguments: Any) -> Any:
            request = json.dumps({"execute": execute, "arguments": arguments})
            return json.loads(libvirt_qemu.qemuAgentCommand(domain, request, 20, 0))["return"]

        def ended() -> dict[str, Any] | None:
            status = agent("guest-exec-status", pid=started["pid"])
            return dict(status) if status["exited"] else None

        try:
            with self.libvirt(host) as connection:
                domain = connection.lookupByName(vm)
                started = agent("guest-exec", path=argv[0], arg=list(argv[1:]), **{"capture-output": True})
                status = until(ended, 20, f"the end of {argv} in the guest") or {}
        except libvirt.libvirtError as error:
            raise LabError(f"{vm} on {host}: {error}") from error
        return base64.b64decode(status.get("out-data", "")).decode()

    # -- waiting for the product ----------------------------------------------------------------------------------

    def connected(self, *names: str, seconds: float = 60.0) -> None:
        """Wait until the hosts (all, if none is named) are connected."""

        def all_are() -> bool:
            try:
                hosts = self.api.items("/v1/hosts")
            except (Away, AssertionError):
                return False
            return all(host["agent"] == "connected" for host in hosts if not names or host["name"] in names)

        until(all_are, seconds, f"connection of {names or 'every host'}")

    def clean(self) -> None:
        """Delete every VM, and see that nothing of any is left on any host nor promised."""
        self.connected()
        running = {vm["operation"] for vm in self.api.items("/v1/vms") if vm["operation"]}
        for operation in running:
            self.api.over(operation)
        asked = [self.api.change(f"/v1/vms/{vm['id']}/delete", {}) for vm in self.api.items("/v1/vms")]
        for each in asked:
            operation = self.api.over(each["operation"])
            assert operation["state"] == "succeeded", operation
        self.assert_empty()

    def assert_empty(self) -> None:
        """No VM, no domain, no file of one and no promise to one exists."""
        assert self.api.items("/v1/vms") == []
        for host in self.lab.hosts:
            assert self.domains(host.name) == {}, host.name
            assert self.vm_files(host.name) == set(), host.name
            promised = self.api.host(host.name)["promised"]
            assert set(promised.values()) == {0}, promised


def lab_of_this_run() -> Iterator[Lab]:
    """A lab of two hosts with a control plane, named after this process; gone afterwards."""
    end_labs_of_killed_runs()
    own = identify(os.getpid())
    assert own is not None
    place = Path(tempfile.mkdtemp(prefix=f"vmorch-lab-{own.pid}-{own.started}-"))
    # Postgres runs as an ordinary user and must reach its data
    place.chmod(0o711)
    lab = Lab(f"e2e-{own.pid}", place / "lab")
    try:
        lab.up(hosts=2)
        yield lab
    finally:
        lab.down()
        shutil.rmtree(place)


def end_labs_of_killed_runs() -> None:
    """A run that was killed could not end its lab; its directory says which process it was."""
    running = {directory: name for name, directory in running_labs()}
    for place in Path(tempfile.gettempdir()).glob("vmorch-lab-*-*-*"):
        maker = re.fullmatch(r"vmorch-lab-(\d+)-(\d+)-.+", place.name)
        if maker is None:
            continue
        process = identify(int(maker[1]))
        if process is not None and process.started == int(maker[2]):
            continue
        for directory, name in running.items():
            if directory.parent == place:
                Lab(name, directory).down()
        shutil.rmtree(place, ignore_errors=True)


def images_of(site: Site) -> None:
    """Give the site the two images that tests use."""
    answer = site.api.ask("PUT", "/v1/images/blank/content?format=raw", BLANK)
    assert answer.status == 201, answer


def tiny_image() -> tuple[Path, str]:
    """The small guest's image, built once for the machine, and its SHA-256."""
    cache = Path(os.environ.get("VMORCH_LAB_CACHE", "~/.cache/vmorch/lab")).expanduser()
    image = cached_tiny(cache)
    return image, hashlib.sha256(image.read_bytes()).hexdigest()


@contextmanager
def web_server(site: Site, directory: Path) -> Iterator[str]:
    """Serve a directory over HTTP on the lab's network; the base URL."""
    container = site.lab.control.container
    address, port = str(network.CONTROL_ADDRESS), 8700
    script = (
        "import functools, http.server as h; "
        f"handler = functools.partial(h.SimpleHTTPRequestHandler, directory={str(directory)!r}); "
        f"h.ThreadingHTTPServer(({address!r}, {port}), handler).serve_forever()"
    )
    container.start("web", [sys.executable, "-c", script], site.lab.directory / "web.log")
    knock = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
    try:
        until(
            lambda: container.run([sys.executable, "-c", knock], check=False).returncode == 0, 20, "the web server"
        )
        yield f"http://{address}:{port}"
    finally:
        kill_and_wait(container.daemons()["web"])
