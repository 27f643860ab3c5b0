"""A `Hypervisor` whose real one runs in a process inside of a lab host, where an agent would run."""

import itertools
import json
import socket
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from deploy.lab import host_files
from deploy.lab.host import Host
from hostagent.hypervisor import Expired, HypervisorLost, Scope, Withdrawn
from vmorch.core.codec import pack
from vmorch.core.hostcommands import Answer, Observed, Sample
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import HostFacts

CLUSTER, DAEMON = "contract", "hypervisor"
PKI_DIR, HOOKS_DIR = "/srv/vmorch/agent/pki", "/srv/vmorch/agent/hooks"
_RAISED = {each.__name__: each for each in (Withdrawn, Expired, HypervisorLost)}


class AgentDied(Exception):
    """The process in the host ended in the middle."""


class RemoteHypervisor:
    """Starts the process at the first call, and again after it was killed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._socket = host.directory / "hv.sock"
        self._log = host.directory / "log" / "hypervisor.log"
        self._numbers = itertools.count(1)
        self._waiting: dict[int, SimpleQueue[dict[str, Any] | None]] = {}
        self._line: socket.socket | None = None
        self._lock = threading.Lock()

    # -- the protocol ---------------------------------------------------------------------------------------------

    def facts(self) -> HostFacts:
        return msgspec.convert(self._ask({"do": "facts"}), HostFacts)

    def execute(self, command: HostCommand, scope: Scope) -> Answer:
        return self._order("execute", command, scope)

    def resolve(self, command: HostCommand, scope: Scope) -> Answer:
        return self._order("resolve", command, scope)

    def observe(self, vm: VmId) -> Observed:
        return msgspec.convert(self._ask({"do": "observe", "vm": vm}), Observed)

    def reconnect(self) -> None:
        self._ask({"do": "reconnect"})

    def close(self) -> None:
        self.kill()

    # -- its process ----------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End the process as kill -9 does; who waits for an answer of it is told. Quiet if it does not run."""
        if DAEMON in self.host.container.daemons():
            self.host.kill(DAEMON)
        with self._lock:
            self._line = None

    def log(self) -> str:
        """What the process has logged."""
        return self._log.read_text(errors="replace")

    def _order(self, what: str, command: HostCommand, scope: Scope) -> Answer:
        order = msgspec.json.decode(msgspec.json.encode(pack(command)))
        asked = {"do": what, "command": order, "seconds": scope.remaining()}
        answer: Answer = msgspec.convert(self._ask(asked, scope), Answer)  # type: ignore[arg-type]
        return answer

    def _ask(self, asked: dict[str, Any], scope: Scope | None = None) -> Any:
        number = next(self._numbers)
        heard = self._waiting[number] = SimpleQueue()
        line = self._connected()
        self._say(line, {**asked, "number": number})
        withdrawn = False
        while True:
            if scope is not None and not withdrawn:
                try:
                    scope.check()
                except Withdrawn:
                    withdrawn = True
                    self._say(line, {"do": "withdraw", "number": number})
                except Expired:
                    pass
            try:
                said = heard.get(timeout=0.02)
            except Empty:
                continue
            if said is None:
                raise AgentDied
            if "sample" in said:
                assert scope is not None
                scope.tell(msgspec.convert(said["sample"], Sample))
                continue
            del self._waiting[number]
            if "raised" in said:
                raise _RAISED.get(said["raised"], RuntimeError)(said["words"])
            return said["answer"]

    def _say(self, line: socket.socket, said: dict[str, Any]) -> None:
        with self._lock:
            line.sendall(json.dumps(said).encode() + b"\n")

    def _connected(self) -> socket.socket:
        with self._lock:
            if self._line is None:
                self._start()
                self._line = self._connect()
                threading.Thread(target=self._hear, args=(self._line,), daemon=True).start()
            return self._line

    def _start(self) -> None:
        if DAEMON in self.host.container.daemons():
            return
        self._socket.unlink(missing_ok=True)
        settings = {
            "local": host_files.LOCAL_DIR,
            "shared": host_files.SHARED_DIR,
            "network": host_files.NETWORK,
            "cluster": CLUSTER,
            "address": str(self.host.address),
            "pki": PKI_DIR,
            "hooks": HOOKS_DIR,
        }
        program = Path(__file__).with_name("inside.py")
        argv = [sys.executable, str(program), str(self._socket), json.dumps(settings)]
        self.host.container.start(DAEMON, argv, self._log)

    def _connect(self) -> socket.socket:
        until = time.monotonic() + 30
        while True:
            line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                line.connect(str(self._socket))
            except OSError:
                line.close()
                assert time.monotonic() < until, f"no hypervisor in {self.host.name}"
                time.sleep(0.02)
                continue
            return line

    def _hear(self, line: socket.socket) -> None:
        try:
            for text in line.makefile("rb"):
                said = json.loads(text)
                self._waiting[said["number"]].put(said)
        except OSError:
            pass
        for heard in [*self._waiting.values()]:
            heard.put(None)
