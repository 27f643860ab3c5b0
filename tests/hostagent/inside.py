"""The agent's hypervisor inside of a lab host, driven from outside over a socket: a process that can be killed.

Run as `python inside.py SOCKET CONFIG`: each line is a request, each answer a line, in any order.
"""

import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from hostagent.hypervisor import Expired, HypervisorLost, Withdrawn
from hostagent.libvirt_hypervisor import LibvirtHypervisor
from hostagent.scope import OrderScope
from vmorch.core.codec import Packed, unpack_host_command
from vmorch.core.ids import VmId


class Server:
    """Serves one connection after another, each request in a thread."""

    def __init__(self, hypervisor: LibvirtHypervisor) -> None:
        self.hypervisor = hypervisor
        self.scopes: dict[int, OrderScope] = {}

    def serve(self, address: str) -> None:
        Path(address).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen()
            while True:
                line, _ = listener.accept()
                threading.Thread(target=self._attend, args=(line,), daemon=True).start()

    def _attend(self, line: socket.socket) -> None:
        lock = threading.Lock()

        def say(number: int, **said: Any) -> None:
            with lock:
                line.sendall(msgspec.json.encode({"number": number, **said}) + b"\n")

        for text in line.makefile("rb"):
            asked = json.loads(text)
            if asked["do"] == "withdraw":
                self.scopes[asked["number"]].withdraw()
                continue
            number = asked["number"]
            until = time.monotonic() + asked.get("seconds", 60)
            self.scopes[number] = OrderScope(
                time.monotonic, until, lambda sample, number=number: say(number, sample=msgspec.to_builtins(sample))
            )
            threading.Thread(target=self._answer, args=(asked, say), daemon=True).start()

    def _answer(self, asked: dict[str, Any], say: Any) -> None:
        number = asked["number"]
        try:
            say(number, answer=msgspec.to_builtins(self._do(asked, self.scopes[number])))
        except (Withdrawn, Expired, HypervisorLost) as raised:
            say(number, raised=type(raised).__name__, words=str(raised))
        except Exception as fault:
            say(number, raised="Fault", words=repr(fault))

    def _do(self, asked: dict[str, Any], scope: OrderScope) -> Any:
        hypervisor = self.hypervisor
        match asked["do"]:
            case "execute" | "resolve" as what:
                command = unpack_host_command(msgspec.json.decode(msgspec.json.encode(asked["command"]), type=Packed))
                return getattr(hypervisor, what)(command, scope)
            case "observe":
                return hypervisor.observe(VmId(asked["vm"]))
            case "facts":
                return hypervisor.facts()
            case "reconnect":
                return hypervisor.reconnect()


def main(address: str, config: str) -> None:
    settings = json.loads(config)
    hypervisor = LibvirtHypervisor(
        uri="qemu:///system",
        local_dir=Path(settings["local"]),
        shared_dir=Path(settings["shared"]),
        default_network=settings["network"],
        accel="tcg",
        cluster=settings["cluster"],
        fetch_base_url=lambda: "",
        request_headers=lambda path: {},
        address=settings["address"],
        pki_dir=Path(settings["pki"]),
        hooks_dir=Path(settings["hooks"]),
    )
    Server(hypervisor).serve(address)


if __name__ == "__main__":
    main(*sys.argv[1:])
