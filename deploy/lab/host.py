"""One lab host: a libvirtd and an agent that believe they have a machine, and the faults a machine can have.

Must not know about the control plane beyond where the agent finds it.
"""

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import CompletedProcess
from uuid import UUID

import msgspec

from deploy.lab import host_files, network, state
from deploy.lab.container import START_SECONDS, Container, wait_for
from deploy.lab.errors import LabError
from deploy.lab.process import command_line, kill_and_wait

AGENT_ARGV = (sys.executable, "-m", "hostagent.main", "run", "--config", host_files.AGENT_CONFIG)
# as the drop-in for its unit does
_LIBVIRTD = f"{sys.executable} -m hostagent.main mend-libvirt; exec libvirtd --listen"
_DAEMONS: dict[str, Sequence[str]] = {"libvirtd": ("sh", "-c", _LIBVIRTD), "agent": AGENT_ARGV}


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A host at one moment. `power` is "on", "off" or "frozen"; `cable` tells whether its link is plugged in."""

    name: str
    power: str
    address: str
    cable: bool
    daemons: list[str]
    guests: list[str]
    uri: str


class Host:
    """The `index`-th host of a lab, counted from 1. Its disk is `directory`."""

    def __init__(self, lab: str, name: str, index: int, directory: Path, control: Container) -> None:
        self.lab = lab
        self.name = name
        self.index = index
        self.directory = directory
        self.container = Container(f"vmorch-{lab}-{name}", directory)
        self._control = control

    @property
    def address(self) -> IPv4Address:
        return network.host_address(self.index)

    @property
    def uuid(self) -> UUID:
        return host_files.host_uuid(self.lab, self.name)

    @property
    def uri(self) -> str:
        """The libvirt URI by which processes of the machine reach this host's libvirtd; the same after a reboot."""
        return f"qemu+unix:///system?socket={self.directory}/run/libvirt/libvirt-sock"

    @property
    def shared(self) -> Path:
        """The storage all hosts share, as the machine sees it; a host sees it at `/srv/vmorch/shared`."""
        return self.directory.parent / "shared"

    @property
    def local(self) -> Path:
        """The host's own storage, as the machine sees it; the host sees it at `/srv/vmorch/local`."""
        return self.directory / "local"

    # -- power --------------------------------------------------------------------------------------------------

    def is_on(self) -> bool:
        return self.container.init() is not None

    def boot(self) -> float:
        """Power on and return once libvirtd serves, with the agent started if the host was enrolled.

        Quiet if the host is on. Returns the seconds it took.
        """
        started = time.monotonic()
        with state.locked(self.directory / "lock", f"host {self.name}") as lock:
            control = self._control.pid()
            plugged = self.directory / "run" / "plugged-in"
            if not (self.is_on() and plugged.exists()):
                # on, but never plugged in: whoever booted it was killed on the way
                self.container.power_off()
                host_files.prepare(self.directory, self.lab, self.name, self.index)
                hosts = self.directory.parent / "hosts"
                self.container.spawn(host_files.plan(self.directory, self.name, hosts, self.shared), lock)
                network.plug_in(control, self.container.pid(), self.index)
                plugged.touch()
            self.start("libvirtd")
            # until the bridge has its carrier it drops what is sent, for up to a second
            wait_for(lambda: self._is_connected(control), START_SECONDS, f"carrier of {self.name}")
            if self.is_enrolled():
                self.start("agent")
        return time.monotonic() - started

    def power_cut(self) -> None:
        """Take the power away: no process of the host runs on, no peer is told, /run is lost. Quiet if it is off."""
        with state.locked(self.directory / "lock", f"host {self.name}"):
            control = self._control.init()
            if control is not None and network.has_cable(control.pid, self.index):
                # a dying kernel sends no FIN, but ours lives on and would
                network.set_cable(control.pid, self.index, up=False)
            self.container.power_off()
            if control is not None:
                network.unplug(control.pid, self.index)

    def freeze(self) -> None:
        """Stop every process of the host, guests included, as a hung machine would; pings are still answered."""
        self.container.freeze()

    def thaw(self) -> None:
        """Let a frozen host go on. Quiet if it is not frozen."""
        self.container.thaw()

    # -- network ------------------------------------------------------------------------------------------------

    def cut_link(self) -> None:
        """Pull the network cable: every connection of the host and its guests goes silent, none is closed."""
        network.set_cable(self._control.pid(), self.index, up=False)

    def restore_link(self) -> None:
        """Plug the network cable in again."""
        network.set_cable(self._control.pid(), self.index, up=True)

    # -- processes ----------------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        text: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> CompletedProcess[str]:
        """Run a command on the host; LabError if it fails and `check` is set."""
        return self.container.run(argv, check=check, text=text, timeout=timeout, env=env)

    def pids(self) -> dict[str, int]:
        """The running daemons ("libvirtd", "agent") by their pids on the machine."""
        return {name: process.pid for name, process in self.container.daemons().items()}

    def qemus(self) -> dict[str, int]:
        """The QEMU processes of this host: guest name to pid on the machine."""
        found = {}
        for pid in self.container.processes():
            arguments = command_line(pid)
            if arguments and "qemu-system" in arguments[0] and "-name" in arguments:
                options = arguments[arguments.index("-name") + 1].split(",")
                guest = next((one.removeprefix("guest=") for one in options if one.startswith("guest=")), None)
                if guest is not None:
                    found[guest] = pid
        return found

    def start(self, daemon: str) -> None:
        """Start "libvirtd" and return when it serves, or start "agent". Quiet if it runs."""
        argv = _DAEMONS.get(daemon)
        if argv is None:
            raise LabError(f"no daemon {daemon!r}", f"a host has {' and '.join(_DAEMONS)}")
        if daemon in self.container.daemons():
            return
        self.container.start(daemon, argv, self._log(daemon))
        if daemon == "libvirtd":
            wait_for(self._libvirtd_serves, START_SECONDS, f"start of libvirtd on {self.name}")

    def kill(self, daemon: str, number: int = signal.SIGKILL) -> None:
        """Signal one daemon and return when it is gone; guests run on, and nothing starts it again."""
        process = self.container.daemons().get(daemon)
        if process is None:
            raise LabError(f"{daemon} does not run on {self.name}", f"see {self._log(daemon)}")
        if not kill_and_wait(process, number):
            raise LabError(f"{daemon} on {self.name} did not end", f"its pid is {process.pid}")

    def _log(self, daemon: str) -> Path:
        return self.directory / "log" / f"{daemon}.log"

    def _libvirtd_serves(self) -> bool:
        code = self.container.exit_code("libvirtd")
        if code is not None:
            raise LabError(f"libvirtd on {self.name} exited with {code}", f"see {self._log('libvirtd')}")
        # its socket exists before its drivers are ready; a call is answered only after
        asked = self.run(["virsh", "-c", "qemu:///system", "net-info", host_files.NETWORK], check=False)
        return asked.returncode == 0

    def _is_connected(self, control: int) -> bool:
        """Whether the host's packets pass, or cannot because its cable was pulled."""
        return network.has_carrier(self.container.pid()) or not network.cable_is_up(control, self.index)

    # -- the agent ----------------------------------------------------------------------------------------------

    def is_enrolled(self) -> bool:
        return (self.directory / "agent" / "identity.json").exists()

    def enrol(self, server: str, token: str) -> None:
        """Give the host's agent its identity with the control plane at `server`."""
        # by standard input: a token on the command line would stand in the process list
        enroll = [*AGENT_ARGV[:3], "enroll", server, "--config", host_files.AGENT_CONFIG]
        self.run([*enroll, "--token-file", "-"], text=token)

    def encrypt(self) -> None:
        """Let libvirt serve and migrate with the certificates that enrolment brought. Quiet if it does already.

        libvirtd does not start with settings that name certificates which are not there, so this comes after
        enrolment, and holds from then on. Clear connections stay possible, for tests of what they are refused for.
        """
        if self.run(["mountpoint", "-q", "/etc/pki"], check=False).returncode != 0:
            # the links would be made on the machine itself
            raise LabError(f"{self.name} has no /etc/pki of its own", f"boot it again: power-cut and boot {self.name}")
        setup = [*AGENT_ARGV[:3], "setup-libvirt", "--write", "--clear-migration", "--config", host_files.AGENT_CONFIG]
        if ": set" in self.run(setup).stdout:
            self.kill("libvirtd", signal.SIGTERM)
            self.start("libvirtd")

    def status(self) -> HostStatus:
        control = self._control.init()
        power = "frozen" if self.container.is_frozen() else "on" if self.is_on() else "off"
        return HostStatus(
            name=self.name,
            power=power,
            address=str(self.address),
            cable=control is not None and network.cable_is_up(control.pid, self.index),
            daemons=sorted(self.pids()),
            guests=sorted(self.qemus()),
            uri=self.uri,
        )
