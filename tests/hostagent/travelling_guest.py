"""A real guest that counts ticks on its disk, on one of two lab hosts, and what it and libvirt say of its travels."""

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import libvirt
import libvirt_qemu
from contract import scope
from msgspec.structs import replace
from passages import PLAIN, do, until
from remote import RemoteHypervisor

from deploy.lab.host import Host
from deploy.lab.lab import Lab
from hostagent.link import _start_event_loop
from tests.integration.lab_fixtures import tiny_image
from vmorch.core.hostcommands import (
    AwaitReady,
    ClearDomain,
    CreateDisk,
    DefineDomain,
    DeleteDisk,
    StartDomain,
    StopDomain,
    UndefineDomain,
)
from vmorch.core.ids import GiB, MiB, VmId
from vmorch.core.spec import DiskSpec, ReadySpec, Storage, VmSpec


class RealTrip:
    """The guest runs at `here`. Every tick it ever made is on its disk."""

    # of some 90 MB that the guest has
    slow = replace(PLAIN, bandwidth=20)
    endless = replace(PLAIN, bandwidth=10)

    def __init__(self, lab: Lab, vm: VmId, storage: Storage) -> None:
        self.vm = vm
        self.disk = DiskSpec(name="vda", size=GiB(1), storage=storage)
        self.spec = VmSpec(vcpus=1, max_vcpus=1, memory=MiB(128), max_memory=MiB(128), disks=(self.disk,))
        self.ends = [RemoteHypervisor(host) for host in lab.hosts[:2]]
        self.here, self.there = self.ends

    # -- its life -------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Make it anew, at the first host."""
        self.remove()
        self.here, self.there = self.ends
        do(self.here, CreateDisk(vm=self.vm, disk=self.disk))
        image, _ = tiny_image()
        host = self.here.host
        file = (host.shared if self.disk.storage == "shared" else host.local) / f"vmorch/vms/{self.vm}/vda.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, file], check=True)
        subprocess.run(["qemu-img", "resize", "-q", file, "1G"], check=True)
        do(self.here, DefineDomain(vm=self.vm, spec=self.spec))
        do(self.here, StartDomain(vm=self.vm))
        do(self.here, AwaitReady(vm=self.vm, ready=ReadySpec(by="agent", within=90), nics=()))
        # the guest's agent is up first, to save time
        until(self.ticks)

    def ready(self) -> None:
        """It runs and has calmed down, and the other host holds nothing of it."""
        left = [each.observe(self.vm) for each in self.ends]
        well = ("running", "", False)
        at = [index for index, each in enumerate(left) if (each.power, each.reason, each.moving) == well]
        if len(at) != 1:
            self.boot()
            at = [0]
        self.here, self.there = self.ends[at[0]], self.ends[1 - at[0]]
        do(self.there, ClearDomain(vm=self.vm))
        self.inside("/sbin/dirty", "0")

    def remove(self) -> None:
        """Nothing is left of it on any host."""
        for each in self.ends:
            for command in (
                StopDomain(vm=self.vm, grace=0, force=True),
                UndefineDomain(vm=self.vm),
                DeleteDisk(vm=self.vm, disk=self.disk),
            ):
                each.execute(command, scope())

    def restless(self) -> None:
        self.inside("/sbin/dirty", "40")

    # -- what it says ---------------------------------------------------------------------------------------------

    def ticks(self) -> list[tuple[str, int]]:
        """Boot and number of every tick, in the order in which they were written to the disk."""
        lines = self.inside("/bin/cat", "/data/ticks").splitlines()
        return [(line.split()[0], int(line.split()[1])) for line in lines if len(line.split()) == 3]

    def ticked_once_and_goes_on(self) -> None:
        """It never stepped back, never ran twice, and still runs."""
        ticks = self.ticks()
        assert len({boot for boot, _ in ticks}) == 1, f"it booted again: {ticks[-5:]}"
        assert [number for _, number in ticks] == list(range(1, len(ticks) + 1))
        until(lambda: len(self.ticks()) > len(ticks))

    def inside(self, *argv: str) -> str:
        """What a program in the guest prints, wherever the guest runs."""
        place = next(each.host for each in self.ends if each.observe(self.vm).power == "running")
        with domain_on(place, self.vm) as domain:

            def ask(execute: str, **arguments: Any) -> Any:
                asked = json.dumps({"execute": execute, "arguments": arguments})
                return json.loads(libvirt_qemu.qemuAgentCommand(domain, asked, 5, 0))["return"]

            # the channel needs a moment after an arrival
            until(lambda: _answers(lambda: ask("guest-ping")))
            started = ask("guest-exec", path=argv[0], arg=list(argv[1:]), **{"capture-output": True})
            status = until(lambda: (found := ask("guest-exec-status", pid=started["pid"]))["exited"] and found)
        return base64.b64decode(status.get("out-data", "")).decode()


def _answers(ask: Any) -> bool:
    try:
        ask()
    except libvirt.libvirtError:
        return False
    return True


@contextmanager
def domain_on(host: Host, vm: VmId) -> Iterator[Any]:
    """The domain, on a connection of an administrator's own."""
    _start_event_loop()
    with closing(libvirt.open(host.uri)) as connection:
        yield connection.lookupByUUIDString(vm)


@contextmanager
def arriving_on(host: Host, vm: VmId) -> Iterator[Any]:
    """The domain, as soon as it begins to arrive."""
    _start_event_loop()
    with closing(libvirt.open(host.uri)) as connection:
        yield until(lambda: next((each for each in connection.listAllDomains() if each.UUIDString() == vm), None))
