"""The control namespace: the lab's bridge, its DHCP server and, if wanted, the control plane.

Ending it takes the bridge with it, so hosts lose their cables. Must not hold state of the control plane: that lies in
the lab's directory.
"""

import http.client
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from deploy.lab import network, state
from deploy.lab.container import Container, Plan, wait_for
from deploy.lab.errors import LabError
from deploy.lab.process import kill_and_wait

SERVER_URL = f"http://{network.CONTROL_ADDRESS}:8650"
_NATS = f"{network.CONTROL_ADDRESS}:4222"
_SERVER_SECONDS = 120.0
_AGENT_SECONDS = 60.0

_SERVER_CONF = """\
[server]
cluster = "lab"
data_dir = "{lab}/server"
listen_unix = "{lab}/api.sock"
listen_tcp = "{address}:8650"
public_url = "{server}"

[database]
url = "postgresql://vmorch_server@/vmorch?host={lab}/postgres/run"
owner_url = "postgresql://postgres@/vmorch?host={lab}/postgres/run"

[nats]
url = "nats://{nats}"
config_file = "{lab}/server/nats.conf"
listen = "{nats}"

# nothing else can be reached from inside, and whoever serves images in a lab does so on its own network
[images]
allowed_networks = ["{subnet}"]
"""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket of the machine."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ControlNode:
    """The control namespace of the lab in `lab_directory`; its own files are in `ctl` there."""

    def __init__(self, lab: str, lab_directory: Path) -> None:
        self.lab_directory = lab_directory
        self.directory = lab_directory / "ctl"
        self.container = Container(f"vmorch-{lab}-ctl", self.directory)

    @property
    def api_socket(self) -> Path:
        """The server's Unix socket, usable from the machine."""
        return self.lab_directory / "api.sock"

    @property
    def config(self) -> Path:
        return self.lab_directory / "server.toml"

    @property
    def leases(self) -> Path:
        """The lease file of the DHCP server, in dnsmasq's format."""
        return self.directory / "dhcp.leases"

    def is_on(self) -> bool:
        return self.container.init() is not None

    def boot(self) -> None:
        """Make the bridge and start the DHCP server. Starts what is missing if the namespace is there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with state.locked(self.directory / "lock", "the control namespace") as lock:
            ready = self.directory / "ready"
            if not (self.is_on() and ready.exists()):
                self.container.power_off()
                ready.unlink(missing_ok=True)
                hosts = self.lab_directory / "hosts"
                plan = Plan(hostname="control", umask="0022", binds=[(str(hosts), "/etc/hosts")])
                self.container.spawn(plan, lock)
                network.set_up_control(self.container.pid())
                ready.touch()
            if "dnsmasq" not in self.container.daemons():
                self.container.start("dnsmasq", self._dnsmasq(), self.directory / "dnsmasq.log")

    def power_cut(self) -> None:
        """End every process of the control namespace at once, and with it the bridge. Quiet if it is off."""
        with state.locked(self.directory / "lock", "the control namespace"):
            self.container.power_off()

    def _dnsmasq(self) -> list[str]:
        return [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=",
            "--log-facility=-", "--port=0", f"--interface={network.BRIDGE}", "--bind-interfaces",
            "--dhcp-authoritative", "--no-ping",
            f"--dhcp-range={network.DHCP_FIRST},{network.DHCP_LAST},{network.SUBNET.netmask},12h",
            f"--dhcp-leasefile={self.leases}",
        ]  # fmt: skip

    # -- the control plane --------------------------------------------------------------------------------------

    def start_control_plane(self) -> None:
        """Run Postgres, NATS and the server; return when the server answers. Quiet if they run."""
        _require_traversable(self.lab_directory)
        self.config.write_text(
            _SERVER_CONF.format(
                lab=self.lab_directory,
                address=network.CONTROL_ADDRESS,
                server=SERVER_URL,
                nats=_NATS,
                subnet=network.SUBNET,
            )
        )
        if "control" not in self.container.daemons():
            argv = [sys.executable, "-m", "deploy.lab.control", "--config", str(self.config)]
            self.container.start("control", argv, self._log)
        wait_for(self._server_answers, _SERVER_SECONDS, "start of the control plane")

    def stop_control_plane(self) -> None:
        """End server, NATS and Postgres in that order, keeping what they wrote. Quiet if they do not run."""
        process = self.container.daemons().get("control")
        if process is not None and not kill_and_wait(process, signal.SIGTERM, 60.0):
            raise LabError("the control plane does not stop", f"its pid is {process.pid}; see {self._log}")

    @property
    def _log(self) -> Path:
        return self.directory / "control.log"

    def _server_answers(self) -> bool:
        code = self.container.exit_code("control")
        if code is not None:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise LabError(f"the control plane exited with {code}: {lines[-1] if lines else ''}", f"see {self._log}")
        connection = UnixConnection(self.api_socket, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status < 500
        except (ConnectionError, FileNotFoundError, TimeoutError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def admin_token(self) -> str:
        return (self.lab_directory / "server" / "admin.token").read_text().strip()

    def register_host(self, name: str) -> str:
        """Announce a host to the control plane; returns the token with which its agent may enrol once."""
        return str(self._ask("POST", "/v1/hosts", {"name": name})["token"])

    def await_agents(self, hosts: list[str]) -> None:
        """Return when the agents of these hosts are connected, so that VMs can be placed on them."""

        def connected() -> bool:
            items = self._ask("GET", "/v1/hosts?limit=10000")["items"]
            return set(hosts) <= {each["name"] for each in items if each["agent"] == "connected"}

        wait_for(connected, _AGENT_SECONDS, f"agents of {', '.join(hosts)}")

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        connection = UnixConnection(self.api_socket, timeout=30)
        try:
            headers = {"Authorization": f"Bearer {self.admin_token()}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 300:
            raise LabError(f"{method} {path} was refused: {answer.get('detail', response.reason)}")
        return answer


def _require_traversable(directory: Path) -> None:
    """Root cannot run Postgres; the account that does must be able to reach its data."""
    for place in (directory, *directory.parents):
        if not place.stat().st_mode & 0o001:
            raise LabError(f"Postgres runs as an ordinary user, who cannot enter {place}", f"chmod o+x {place}")
