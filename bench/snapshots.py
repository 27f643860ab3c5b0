"""What snapshots, rollbacks and deletions cost through vmorch, against the same calls made directly by libvirt-python.

    python -m bench.snapshots [--rounds N] [--calm SECONDS]

Needs root: it makes a lab of its own with real libvirt hosts and removes it. Two small guests run on shared storage,
one made by vmorch, one by libvirt's own calls. In each round both, in an order that turns, get a snapshot of their
disk while they keep a processor busy, one with their memory, write WRITTEN MiB, go back to the one with memory (what
they are is kept first), forward again, and have the snapshots' layers merged under them. Afterwards both are idle, get
more disks, and have snapshots of those taken. Compared is the time until the caller knows: the last call returned, or
the event stream said that the operation finished. Ours also compares the layers with the log, journals, records and
waits until the guest answers after a rollback; the direct calls do nothing of it. The guest's pause is the longest time
in which its processor got nothing done while it counted, without what it waited for a processor of the host, as the
kernel's book of its thread says. Exits with 1 if a promise is missed at the median.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from bench.figures import machine, ratios, spread, table
from bench.travellers import Travellers, travellers
from bench.warm import await_calm
from hostagent.domain_xml import disk_device, with_disks

RATIO, PAUSE_RATIO = 1.2, 1.1
WRITTEN = 24
WIDER = (1, 2, 4)
"""How many disks the idle guests have, one after another."""
SHARED = "/srv/vmorch/shared"
PAUSE = "guest's pause in a snapshot"
_STROKE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
Way = dict[str, float]
"""What was done, and how many milliseconds it took."""
Figures = dict[str, dict[str, list[float]]]
"""What was done, by which way, and how many milliseconds it took in each round."""


class Stillness:
    """Inside the block a guest counts as fast as it can; `longest` is then the longest time it got nothing done, in
    milliseconds."""

    EVERY = 0.0005

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self.longest = 0.0
        self._over = threading.Event()

    def __enter__(self) -> "Stillness":
        in_guest(self._domain, "timeout 1.5 sh -c 'while :; do :; done'", wait=False)
        time.sleep(0.3)
        self._thread = threading.Thread(target=self._watch, args=(_vcpu(self._domain.UUIDString()),))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        time.sleep(1.5)

    def _watch(self, clock: Path) -> None:
        worked, waited, since = 0, 0, time.monotonic()
        while not self._over.is_set():
            work, wait = map(int, clock.read_text().split()[:2])
            now = time.monotonic()
            if work != worked:
                # what it waited for a processor of the host is the host's affair
                still = (now - since) * 1000 - (wait - waited) / 1e6
                self.longest = max(self.longest, still if worked else 0.0)
                worked, waited, since = work, wait, now
            time.sleep(self.EVERY)


def _vcpu(vm: str) -> Path:
    """The clock of the thread that is the guest's processor."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if vm not in (process / "cmdline").read_text() or "qemu-system" not in (process / "exe").readlink().name:
                continue
            for task in (process / "task").iterdir():
                if re.match(r"CPU 0/", (task / "comm").read_text()):
                    return task / "schedstat"
        except OSError:
            continue
    raise RuntimeError(f"no processor of {vm} is to be seen")


def in_guest(domain: Any, script: str, *, wait: bool = True) -> None:
    """A script runs inside the guest, by its agent."""
    def ask(execute: str, **arguments: Any) -> Any:
        order = json.dumps({"execute": execute, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuAgentCommand(domain, order, 30, 0))["return"]

    pid = ask("guest-exec", path="/bin/sh", arg=["-c", script])["pid"]
    while wait and not ask("guest-exec-status", pid=pid)["exited"]:
        time.sleep(0.05)


class Bench:
    """Two guests and the two ways."""

    def __init__(self, guests: Travellers) -> None:
        self.api, self.moments = guests.api, guests.moments
        (self.direct,), (self.ours,) = guests.direct, guests.ours
        self.connection = libvirt.open(guests.lab.hosts[0].uri)
        self.outside = guests.lab.hosts[0].shared
        self.number = 0
        self.names = ["vda"]

    def by_api(self) -> Way:
        self.number += 1
        domain, plain, full = self.connection.lookupByUUIDString(self.ours), f"p{self.number}", f"m{self.number}"
        way: Way = {}
        with Stillness(domain) as still:
            way["snapshot"] = self._asked("snapshot", {"name": plain})
        way["snapshot with memory"] = self._asked("snapshot", {"name": full, "memory": True})
        self._write(domain)
        way["rollback"] = self._asked("rollback", {"to": full})
        held = self.api.ask("GET", f"/v1/vms/{self.ours}")["item"]["snapshots"]
        self._asked("rollback", {"to": next(each["name"] for each in held if each["origin"] == "safety")})
        for each in self.api.ask("GET", f"/v1/vms/{self.ours}")["item"]["snapshots"]:
            if each["name"] not in (plain, full):
                self._asked("delete-snapshot", {"snapshot": each["name"]})
        self._asked("delete-snapshot", {"snapshot": plain})
        way["delete"] = self._asked("delete-snapshot", {"snapshot": full})
        return way | {PAUSE: still.longest}

    def _asked(self, verb: str, body: dict[str, object]) -> float:
        self.api.warm()
        began = time.monotonic()
        accepted = self.api.ask("POST", f"/v1/vms/{self.ours}/{verb}", body)
        ended = self.moments.after(began, "event", "vm.operation-finished", accepted["operation"])
        found = self.api.ask("GET", f"/v1/operations/{accepted['operation']}")["item"]
        if found["state"] != "succeeded":
            raise RuntimeError(f"{verb}: {found}")
        return (ended - began) * 1000

    def by_direct_calls(self) -> Way:
        domain = self.connection.lookupByUUIDString(self.direct)
        place = f"{SHARED}/direct/{self.direct}"
        way: Way = {}
        with Stillness(domain) as still:
            way["snapshot"] = _timed(lambda: self._snapshot(domain, f"{place}/vda.1.qcow2", ""))
        way["snapshot with memory"] = _timed(
            lambda: self._snapshot(domain, f"{place}/vda.2.qcow2", f"{place}/memory.2")
        )
        self._write(domain)
        way["rollback"] = _timed(lambda: self._go(domain, place, "memory.3", "memory.2", 3, on=1))
        self._go(domain, place, "memory.4", "memory.3", 4, on=2)
        self._merge(domain, f"{place}/vda.4.qcow2", f"{place}/vda.2.qcow2")
        self._merge_below(domain, f"{place}/vda.1.qcow2", f"{place}/vda.qcow2")
        way["delete"] = _timed(lambda: self._forget(domain, place))
        for path in self._here(place).glob("memory.*"):
            path.unlink()
        self._here(f"{place}/vda.3.qcow2").unlink()
        return way | {PAUSE: still.longest}

    def _here(self, path: str) -> Path:
        return self.outside / Path(path).relative_to(SHARED)

    def widen(self, guests: Travellers, disks: int) -> None:
        """Both guests have so many disks."""
        domain, place = self.connection.lookupByUUIDString(self.direct), f"{SHARED}/direct/{self.direct}"
        while len(self.names) < disks:
            name = f"vd{'abcdefgh'[len(self.names)]}"
            guests.warm.vmorch("volume", "create", name, "--size", "1Gi", "--host", guests.lab.hosts[0].name)
            guests.warm.vmorch("volume", "attach", name, self.ours)
            path = f"{place}/{name}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self._here(path), "1G"], check=True)
            flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
            domain.attachDeviceFlags(disk_device(name, Path(path)), flags)
            self.names.append(name)

    def _wide(self) -> str:
        return f"snapshot of {len(self.names)} disk{'s' * (len(self.names) > 1)}, idle"

    def wide_by_api(self) -> Way:
        self.number += 1
        name = f"w{self.number}"
        way = {self._wide(): self._asked("snapshot", {"name": name})}
        self._asked("delete-snapshot", {"snapshot": name})
        return way

    def wide_by_direct_calls(self) -> Way:
        domain, place = self.connection.lookupByUUIDString(self.direct), f"{SHARED}/direct/{self.direct}"
        layers = {name: f"{place}/{name}.5.qcow2" for name in self.names}
        way = {self._wide(): _timed(lambda: self._snapshot_of(domain, layers, ""))}
        for name, layer in layers.items():
            self._merge(domain, layer, f"{place}/{name}.qcow2", name)
        return way

    def _snapshot(self, domain: Any, layer: str, memory: str) -> None:
        self._snapshot_of(domain, {"vda": layer}, memory)

    def _snapshot_of(self, domain: Any, layers: dict[str, str], memory: str) -> None:
        kept = f"<memory snapshot='external' file='{memory}'/>" if memory else ""
        disks = "<disk name='vdz' snapshot='no'/>" + "".join(
            f"<disk name='{name}' snapshot='external'><driver type='qcow2'/><source file='{layer}'/></disk>"
            for name, layer in layers.items()
        )
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE if memory else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        domain.snapshotCreateXML(
            f"<domainsnapshot><name>x</name>{kept}<disks>{disks}</disks></domainsnapshot>", _STROKE | flags
        )

    def _go(self, domain: Any, place: str, keep: str, take: str, layer: int, *, on: int) -> None:
        """Keep the guest's memory, make a layer, and have it go on from another memory above that layer."""
        new, below = f"{place}/vda.{layer}.qcow2", f"{place}/vda.{on}.qcow2"
        domain.saveFlags(f"{place}/{keep}", None, 0)
        subprocess.run(
            ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, self._here(new), "1G"],
            check=True,
        )
        files = {"vda": Path(new)}
        self.connection.defineXMLFlags(with_disks(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), files), 0)
        xml = with_disks(self.connection.saveImageGetXMLDesc(f"{place}/{take}", 0), files)
        self.connection.restoreFlags(f"{place}/{take}", xml, 0)

    def _forget(self, domain: Any, place: str) -> None:
        self._here(f"{place}/memory.2").unlink()
        self._merge(domain, f"{place}/vda.2.qcow2", f"{place}/vda.qcow2")

    def _merge(self, domain: Any, top: str, into: str, disk: str = "vda") -> None:
        domain.blockCommit(disk, into, top, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        while (job := domain.blockJobInfo(disk, 0)) and not (job["end"] and job["cur"] == job["end"]):
            time.sleep(0.005)
        while True:
            try:
                domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                break
            except libvirt.libvirtError as error:
                # its figures are there a moment before libvirt takes it for ready
                if error.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
                    raise
                time.sleep(0.005)
        self._here(top).unlink()

    def _merge_below(self, domain: Any, top: str, into: str) -> None:
        domain.blockCommit("vda", into, top, 0, 0)
        while domain.blockJobInfo("vda", 0):
            time.sleep(0.005)
        self._here(top).unlink()

    def _write(self, domain: Any) -> None:
        in_guest(domain, f"dd if=/dev/urandom of=/data/written bs=1M count={WRITTEN}; sync")


def _timed(do: Callable[[], None]) -> float:
    began = time.monotonic()
    do()
    return (time.monotonic() - began) * 1000


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.snapshots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds after one that warms up (default: 9)")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds to wait for a calm machine (default: 15)")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    # errors come as exceptions; without this each is also printed
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    figures: Figures = {}
    with travellers(1) as guests:
        it = Bench(guests)
        take_turns(figures, it.by_api, it.by_direct_calls, arguments.rounds, arguments.calm)
        for disks in WIDER:
            it.widen(guests, disks)
            take_turns(figures, it.wide_by_api, it.wide_by_direct_calls, arguments.rounds, arguments.calm)
    return report(figures, arguments.rounds)


def take_turns(
    figures: Figures, by_api: Callable[[], Way], by_direct_calls: Callable[[], Way], rounds: int, calm: float
) -> None:
    """Note what both ways take in so many rounds after one that warms up."""
    turns = [("API", by_api), ("direct", by_direct_calls)]
    for number in range(rounds + 1):
        for name, take in turns if number % 2 else reversed(turns):
            await_calm(calm)
            for what, took in take().items():
                if number:
                    figures.setdefault(what, {}).setdefault(name, []).append(took)


def report(figures: Figures, rounds: int) -> int:
    """Print the table; 1 if a promise is missed."""
    rows, missed = [], []
    for what, figure in figures.items():
        found = ratios(figure["API"], figure["direct"])
        more = statistics.median(figure["API"]) - statistics.median(figure["direct"])
        digits = 1 if what == PAUSE else 0
        cells = [spread(figure[way], digits=digits) for way in ("direct", "API")]
        rows.append([what, *cells, spread(found, digits=2), f"{more:+.{digits}f}"])
        if statistics.median(found) > (PAUSE_RATIO if what == PAUSE else RATIO):
            missed.append(f"{what}: {statistics.median(found):.2f}x, {more:+.0f} ms")
    print(f"Milliseconds, median (lowest-highest) of {rounds} rounds; ratios of the same round.\n")
    print(table(["what", "direct", "API", "ratio", "more"], rows))
    for each in missed:
        print(f"missed: {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
