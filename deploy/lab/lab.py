"""A whole lab: make it, repair it, find it again from another process, and end it without a trace.

The lab outlives the process that made it. Must not be used from inside one of its own namespaces.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import msgspec

from deploy.lab import host_files, network, prerequisites, state
from deploy.lab.container import running_containers
from deploy.lab.control_node import SERVER_URL, ControlNode
from deploy.lab.errors import LabError
from deploy.lab.host import Host
from deploy.lab.process import kill_and_wait
from deploy.lab.state import LabState

Say = Callable[[str], None]


def _silent(_: str) -> None: ...


class Lab:
    """The lab called `name`, whose state is in `directory` (default `/var/lib/vmorch-lab/NAME`)."""

    def __init__(self, name: str = "lab", directory: Path | str | None = None, say: Say = _silent) -> None:
        state.check_name(name)
        self.name = name
        self.directory = Path(directory or state.HOME / name).resolve()
        state.check_directory(self.directory)
        self.control = ControlNode(name, self.directory)
        self._say = say

    @classmethod
    def attach(cls, name: str = "lab", directory: Path | str | None = None, say: Say = _silent) -> Self:
        """The lab that another process made; LabError if there is none or if several labs have this name."""
        if directory is None:
            places = {lab_dir for lab_name, lab_dir in running_labs() if lab_name == name}
            if (state.HOME / name / "lab.json").exists():
                places.add(state.HOME / name)
            if not places:
                raise LabError(f"there is no lab {name}", f"make it: python -m deploy.lab up --name {name}")
            if len(places) > 1:
                where = ", ".join(map(str, sorted(places)))
                raise LabError(f"several labs are called {name}: {where}", "name one by --dir")
            directory = places.pop()
        lab = cls(name, directory, say)
        lab.state()
        return lab

    def state(self) -> LabState:
        """What the lab is made of; LabError if its directory holds no lab of this name."""
        found = state.read(self.directory)
        if found is None:
            make = f"make it: python -m deploy.lab up --name {self.name}"
            raise LabError(f"there is no lab in {self.directory}", make)
        if found.name != self.name:
            raise LabError(f"the lab in {self.directory} is called {found.name}", f"say --name {found.name}")
        return found

    @property
    def hosts(self) -> list[Host]:
        """Every host of the lab, on or off, in order."""
        return [self._host(name, index) for index, name in enumerate(self.state().hosts, start=1)]

    def host(self, name: str) -> Host:
        """The host called `name` (hv-01, hv-02 ...)."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"lab {self.name} has no host {name}", f"it has {', '.join(self.state().hosts)}")

    def _host(self, name: str, index: int) -> Host:
        return Host(self.name, name, index, self.directory / name, self.control.container)

    # -- up -----------------------------------------------------------------------------------------------------

    def up(self, hosts: int = 2, *, control: bool = True) -> None:
        """Make the lab, or add and repair what an existing one lacks; return when everything serves.

        `control` asks for the control plane and for agents on the hosts. A lab keeps the hosts it has.
        """
        prerequisites.check()
        if not 1 <= hosts <= network.MAX_HOSTS:
            raise LabError(f"{hosts} hosts: a lab has 1 to {network.MAX_HOSTS}")
        known = state.read(self.directory)
        if known is None and self.directory.exists() and self._foreign_files():
            raise LabError(f"{self.directory} is not empty and holds no lab", "name another directory")
        with state.locked(self.directory / "lab.lock", f"lab {self.name}"):
            self.directory.chmod(0o755)
            known = state.read(self.directory)
            if known is not None:
                self.state()
            if known is None or known.phase != "up":
                self._end_leftovers()
            else:
                self._say(f"lab {self.name} is already up: repairing what is missing")
            names = list(known.hosts) if known else []
            names += [f"hv-{index:02d}" for index in range(len(names) + 1, hosts + 1)]
            with_control = control or (known is not None and known.control)
            wanted = LabState(name=self.name, phase="changing", hosts=names, control=with_control)
            state.write(self.directory, wanted)
            self._bring_up(wanted)
            state.write(self.directory, msgspec.structs.replace(wanted, phase="up"))
        self._say(f"lab {self.name} is up: {len(names)} hosts, state in {self.directory}")

    def _foreign_files(self) -> bool:
        return any(not entry.name.startswith("lab.") for entry in self.directory.iterdir())

    def _bring_up(self, wanted: LabState) -> None:
        (self.directory / "shared" / "backups").mkdir(parents=True, exist_ok=True)
        # in place: a new file would not show through the bind mounts of running hosts
        (self.directory / "hosts").write_text(host_files.hosts_file(wanted.hosts))
        self.control.boot()
        self._say(f"control namespace: {network.CONTROL_ADDRESS}, DHCP {network.DHCP_FIRST}-{network.DHCP_LAST}")
        hosts = self.hosts
        with ThreadPoolExecutor(max_workers=min(len(hosts), 8)) as pool:
            for _ in pool.map(self._bring_up_host, hosts):
                pass
        if wanted.control:
            self.control.start_control_plane()
            self._say(f"control plane: {self.control.api_socket}")
            for host in hosts:
                if not host.is_enrolled():
                    host.enrol(SERVER_URL, self.control.register_host(host.name))
                host.encrypt()
                host.start("agent")
            self.control.await_agents([host.name for host in hosts])
            self._say("agents connected")

    def _bring_up_host(self, host: Host) -> None:
        host.directory.mkdir(exist_ok=True)
        if host.container.is_frozen():
            host.thaw()
        control = self.control.container.pid()
        init = host.container.init()
        if init is not None and not network.has_cable(control, host.index):
            network.relay(control, init.pid, host.index)
        seconds = host.boot()
        host.restore_link()
        self._say(f"{host.name}: {host.address}, libvirtd ready after {seconds:.1f} s")

    # -- down ---------------------------------------------------------------------------------------------------

    def down(self, *, keep: bool = False) -> None:
        """End the lab: processes, namespaces, links and, unless `keep`, its directory. Quiet if there is none.

        With `keep` the control plane is stopped in order, and the next `up` finds every disk as it was.
        """
        known = state.read(self.directory)
        if known is not None:
            self.state()
        elif not self._leftovers() and not self.directory.exists():
            self._say(f"there is no lab {self.name}")
            return
        elif self.directory.exists() and self._foreign_files() and not self._leftovers():
            raise LabError(f"{self.directory} holds no lab: nothing is removed")
        with state.locked(self.directory / "lab.lock", f"lab {self.name}"):
            if keep and self.control.is_on():
                self.control.stop_control_plane()
            self._end_leftovers()
            if keep:
                state.write(self.directory, msgspec.structs.replace(self.state(), phase="down"))
            else:
                shutil.rmtree(self.directory)
        if not keep and self.directory.parent == state.HOME and not any(state.HOME.iterdir()):
            state.HOME.rmdir()
        self._say(f"lab {self.name} is down" + (f"; its disks are in {self.directory}" if keep else ""))

    def _leftovers(self) -> list[tuple[str, Path]]:
        return [(name, place) for name, place, _ in running_containers() if place.parent == self.directory]

    def _end_leftovers(self) -> None:
        """End every container of this directory, whether or not a record of it survived."""
        known = state.read(self.directory)
        for index, name in enumerate(known.hosts if known else [], start=1):
            if (self.directory / name).exists():
                self._host(name, index).power_cut()
        for name, place, init in running_containers():
            if place.parent == self.directory and not kill_and_wait(init):
                raise LabError(f"{name}: pid {init.pid} does not die")


def running_labs() -> set[tuple[str, Path]]:
    """Name and state directory of every lab on this machine that has a process."""
    return {
        (name.removeprefix("vmorch-").removesuffix(f"-{place.name}"), place.parent)
        for name, place, _ in running_containers()
    }
