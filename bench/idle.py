"""What a cluster costs while nothing happens: memory and processor time of every process, for a minute.

    python -m bench.idle [--seconds N] [--vms N] [--no-lab]

Three clusters, one after another: a development cluster with an empty log and one with N VMs that were never started
(ten simulated hosts in one process both times), and, as root, a lab with one real libvirt host and its real agent. The
proportional share (PSS) counts a page that several processes share only once; of Postgres all processes are summed.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cli_start import cluster
from bench.figures import machine, table
from bench.leftovers import end_dead_labs, lab_name
from deploy.lab.lab import Lab

SETTLE = 20.0
"""Seconds before the minute begins: what a start or a thousand creations leave behind shall be over."""
TICKS = os.sysconf("SC_CLK_TCK")


def _processes() -> dict[int, tuple[int, str]]:
    """pid -> its parent and its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = int(fields[1]), words
    return found


def parts(marks: dict[str, str], within: str) -> dict[str, list[int]]:
    """The processes of each part: those whose command line has its mark and names `within`, with their children."""
    known = _processes()
    found: dict[str, list[int]] = {}
    for part, mark in marks.items():
        roots = {pid for pid, (_, words) in known.items() if mark in words and within in words}
        while more := {pid for pid, (parent, _) in known.items() if parent in roots} - roots:
            roots |= more
        if roots:
            found[part] = sorted(roots)
    return found


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident and proportional memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return sizes["Rss:"], sizes["Pss:"]


def measure(found: dict[str, list[int]], seconds: float) -> dict[str, tuple[float, float, float]]:
    """Resident and proportional MiB, and percent of one core, of each part. Processes that come and go do not count."""

    def spent() -> dict[int, float]:
        times = {}
        for pid in (pid for of in found.values() for pid in of):
            with contextlib.suppress(OSError):
                times[pid] = cpu_seconds(pid)
        return times

    began, before = time.monotonic(), spent()
    time.sleep(seconds)
    took, after = time.monotonic() - began, spent()
    figures = {}
    for part, pids in found.items():
        lasting = [pid for pid in pids if pid in before and pid in after]
        sizes = [memory_mib(pid) for pid in lasting]
        busy = sum(after[pid] - before[pid] for pid in lasting)
        figures[part] = sum(rss for rss, _ in sizes), sum(pss for _, pss in sizes), 100 * busy / took
    return figures


DEVELOPMENT = {
    "server": "-m vmorch.main run",
    "10 simulated agents": "-m hostagent.simulated",
    "NATS": "nats-server",
    "Postgres": "postgres",
}


@contextlib.contextmanager
def real_host() -> Iterator[dict[str, list[int]]]:
    end_dead_labs()
    lab = Lab(lab_name(os.getpid()))
    try:
        lab.up(1)
        time.sleep(SETTLE)
        found = parts({"server": "-m vmorch.main run"}, str(lab.directory))
        daemons = lab.hosts[0].pids()
        yield {**found, "agent": [daemons["agent"]], "libvirtd": [daemons["libvirtd"]]}
    finally:
        lab.down()


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.idle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch each (default: 60)")
    parser.add_argument("--vms", type=int, default=1000, help="VMs of the second cluster (default: 1,000)")
    parser.add_argument("--no-lab", action="store_true", help="leave out the real host, which needs root")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    measured: dict[str, dict[str, tuple[float, float, float]]] = {}
    for vms in (0, arguments.vms):
        with cluster(vms) as made:
            time.sleep(SETTLE)
            place = str(made.socket.parent)
            events = made.ask("GET", "/v1/vms?limit=1")["asOf"]["position"] if vms else 0
            measured[f"{vms:,} VMs"] = measure(parts(DEVELOPMENT, place), arguments.seconds)
            if events:
                print(f"{vms:,} VMs took {events:,} events.")
    if not arguments.no_lab:
        with real_host() as found:
            measured["a real host"] = measure(found, arguments.seconds)
    rows = [
        (cluster_of, part, f"{rss:.0f}", f"{pss:.0f}", f"{busy:.1f}")
        for cluster_of, figures in measured.items()
        for part, (rss, pss, busy) in figures.items()
    ]
    print(f"\nIdle for {arguments.seconds:.0f} s.\n")
    print(table(["cluster", "part", "RSS MiB", "PSS MiB", "% of a core"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
