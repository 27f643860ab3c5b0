"""A named set of namespaces around our init, as seen and driven from the machine outside.

Hosts and the control node are both containers. Nothing pins the namespaces but their processes: when the init dies,
network, mounts and processes are gone with it, and there is nothing left to clean. Must not know what runs inside.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from deploy.lab.errors import LabError
from deploy.lab.process import (
    ProcessId,
    all_pids,
    boot_id,
    command_line,
    identify,
    inner_pid,
    is_alive,
    is_stopped,
    kill_and_wait,
    members,
    send_signal,
)  # fmt: skip

CHECKOUT = Path(__file__).resolve().parents[2]
INIT_MODULE = "deploy.lab.init"
START_SECONDS = 30.0

# nothing of the operator's shell (proxies, LIBVIRT_*, locale) may change how a host behaves
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(CHECKOUT),
    "PYTHONUNBUFFERED": "1",
}


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when the condition holds; LabError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.01)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What pid 1 makes of its namespaces; the paths of `binds` are (source on the machine, target inside). Targets in
    `tmpfs` are empty and those in `grown` as on the machine before, and what is bound inside either is made there."""

    hostname: str
    umask: str
    binds: Sequence[tuple[str, str]]
    tmpfs: Sequence[str] = ()
    grown: Sequence[str] = ()
    private_dev: bool = False
    sysctl: Mapping[str, str] = {}


class Container:
    """One set of namespaces; its identity on disk is `init.json` in `directory`."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    @property
    def _socket(self) -> Path:
        return self.directory / "init.sock"

    @property
    def _daemons_file(self) -> Path:
        return self.directory / "daemons.json"

    @property
    def log(self) -> Path:
        return self.directory / "init.log"

    def init(self) -> ProcessId | None:
        """Pid 1 of the container as the machine sees it, or None if the container is off."""
        try:
            record = msgspec.json.decode((self.directory / "init.json").read_bytes(), type=ProcessId)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return record if is_alive(record) else None

    def pid(self) -> int:
        """Pid 1 of the container as the machine sees it; LabError if it is off."""
        init = self.init()
        if init is None:
            raise LabError(f"{self.name} is off")
        return init.pid

    def spawn(self, plan: Plan, lock: int) -> None:
        """Start pid 1 in new namespaces and wait until it answers. `lock` is held until its identity is recorded."""
        self._daemons_file.unlink(missing_ok=True)
        self._socket.unlink(missing_ok=True)
        self._socket.with_name("init.sock.new").unlink(missing_ok=True)
        plan_file = self.directory / "plan.json"
        own = {
            "record": str(self.directory / "init.json"),
            "socket": str(self._socket),
            "daemons": str(self._daemons_file),
            "locks": [lock],
        }
        plan_file.write_bytes(msgspec.json.encode({**msgspec.to_builtins(plan), **own}))
        with self.log.open("ab") as log:
            outer = subprocess.run(
                [sys.executable, "-m", INIT_MODULE, self.name, str(plan_file)],
                env=ENVIRONMENT, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(lock,), start_new_session=True, timeout=START_SECONDS, check=False,
            )  # fmt: skip
        if outer.returncode != 0:
            raise LabError(f"{self.name}: no namespaces: {self._log_end()}", "they need root and CAP_SYS_ADMIN")
        wait_for(lambda: self._socket.exists() or self.init() is None, START_SECONDS, f"start of {self.name}")
        if self.init() is None:
            raise LabError(f"{self.name}: init failed: {self._log_end()}", f"see {self.log}")

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def power_off(self) -> None:
        """Kill pid 1 at once and with it every process of the container. Quiet if it is off already."""
        init = self.init()
        if init is not None and not kill_and_wait(init, signal.SIGKILL):
            raise LabError(f"{self.name}: pid {init.pid} does not die", "some process waits for a device")

    # -- processes inside ---------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        text: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside with `text` as its input; it and its group are killed after `timeout` seconds."""
        with (
            tempfile.TemporaryFile("w+") as fed,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            fed.write(text or "")
            fed.seek(0)
            try:
                answer = self._request({"argv": list(argv), "env": dict(env or {})}, (fed, out, err), timeout)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(list(argv), timeout) from error
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(list(argv), int(answer["exit"]), out.read(), err.read())
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(argv)} exited {done.returncode}: {done.stderr.strip()}")
        return done

    def start(self, daemon: str, argv: Sequence[str], log: Path) -> None:
        """Start a process under a name as a child of pid 1, with its output appended to `log`."""
        with Path("/dev/null").open() as nothing, log.open("a") as out:
            self._request({"argv": list(argv), "env": {}, "daemon": daemon}, (nothing, out, out), START_SECONDS)

    def _request(self, request: dict[str, Any], files: Sequence[IO[str]], timeout: float) -> dict[str, Any]:
        if self.is_frozen():
            raise LabError(f"{self.name} is frozen", "thaw it first")
        self.pid()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(timeout)
            try:
                link.connect(str(self._socket))
                socket.send_fds(link, [json.dumps(request).encode()], [file.fileno() for file in files])
                packet = link.recv(1 << 16)
            except (ConnectionError, FileNotFoundError) as error:
                raise LabError(f"{self.name} went off") from error
        if not packet:
            raise LabError(f"{self.name} went off")
        answer: dict[str, Any] = json.loads(packet)
        if "error" in answer:
            raise LabError(f"{self.name}: {request['argv'][0]}: {answer['error']}")
        return answer

    def daemons(self) -> dict[str, ProcessId]:
        """The living processes that were started by name, as the machine sees them."""
        init = self.init()
        if init is None:
            return {}
        inside = {inner_pid(pid): pid for pid in members(init.pid)}
        found = {}
        for name, record in self._daemon_records().items():
            outer = identify(inside.get(record["pid"], 0))
            if outer is not None and outer.started == record["started"]:
                found[name] = outer
        return found

    def exit_code(self, daemon: str) -> int | None:
        """How a named process ended; None while it runs or if it never ran since the container was started."""
        return self._daemon_records().get(daemon, {}).get("exit")

    def _daemon_records(self) -> dict[str, dict[str, int]]:
        try:
            records: dict[str, dict[str, int]] = json.loads(self._daemons_file.read_text())
        except FileNotFoundError:
            return {}
        return records

    def processes(self) -> list[int]:
        """Every living process inside, pid 1 included, by its pid on the machine."""
        init = self.init()
        return members(init.pid) if init is not None else []

    # -- a stopped clock ----------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stop every process inside. The network stays plugged in and answers pings: the kernel does not stop."""
        pid = self.pid()

        def all_stopped() -> bool:
            running = [one for one in members(pid) if not is_stopped(one)]
            for one in running:
                process = identify(one)
                if process is not None:
                    send_signal(process, signal.SIGSTOP)
            return not running

        # a process may fork while its siblings are being stopped: repeat until a pass finds nobody running
        wait_for(all_stopped, START_SECONDS, f"freeze of {self.name}")

    def thaw(self) -> None:
        """Let every process inside go on."""
        for one in members(self.pid()):
            process = identify(one)
            if process is not None:
                send_signal(process, signal.SIGCONT)
        wait_for(lambda: not self.is_frozen(), START_SECONDS, f"thaw of {self.name}")

    def is_frozen(self) -> bool:
        init = self.init()
        return init is not None and is_stopped(init.pid)


def running_containers() -> Iterator[tuple[str, Path, ProcessId]]:
    """Name, directory and pid 1 of every container of any lab on this machine, found without any file."""
    boot = boot_id()
    for pid in all_pids():
        arguments = command_line(pid)
        if len(arguments) == 5 and arguments[2] == INIT_MODULE and inner_pid(pid) == 1:
            process = identify(pid)
            if process is not None and process.boot == boot and os.path.isabs(arguments[4]):
                yield arguments[3], Path(arguments[4]).parent, process
