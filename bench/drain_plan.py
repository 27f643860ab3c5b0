"""How long it takes to plan a drain of several hosts together, whether the cluster could then lose one more included.

    python -m bench.drain_plan [--hosts N] [--vms N] [--drain N] [--crowded SHARE] [--rounds N]

Counted is processor time, which other work on the machine does not lengthen. The cluster is invented: VMs of four
sizes, a third of them with anti-affinity, a fifth under budgets, half on shared storage. With --crowded that share of
the other hosts' memory is promised already, so that some or all of the VMs are blocked and every cause is looked for.
"""

import argparse
import random
import sys
import time
from datetime import UTC, datetime

from msgspec.structs import replace

from bench.figures import machine, spread, table
from vmorch.core.aggregates.budget import Budget
from vmorch.core.aggregates.cluster import Policy
from vmorch.core.aggregates.drain import DrainOptions, DrainPlan
from vmorch.core.aggregates.host import Host, Reservation
from vmorch.core.aggregates.vm import Vm
from vmorch.core.ids import GiB, HostId, MiB, Position, VmId
from vmorch.core.planning.drain import plan_drain
from vmorch.core.planning.view import ClusterView
from vmorch.core.spec import DiskSpec, HostFacts, Placing, VmSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
SIZES = ((2, 4096), (4, 8192), (8, 16384), (16, 65536))


def cluster(hosts: int, vms: int, crowded: float) -> ClusterView:
    """An invented cluster, always the same for the same figures."""
    chance = random.Random(1)
    made = [_host(number) for number in range(hosts)]
    standing: dict[HostId, list[Vm]] = {host.id: [] for host in made}
    for number in range(vms):
        host = made[number % hosts]
        standing[host.id].append(_vm(number, host.id, chance))
    filler = Reservation(vcpus=0, memory=MiB(int(1048576 * crowded)), local_gib=GiB(0), shared_gib=GiB(0))
    full = []
    for host in made:
        held = {vm.id: Reservation.of(vm.spec) for vm in standing[host.id] if vm.spec is not None}
        if crowded:
            held[VmId("filler")] = filler
        full.append(replace(host, reservations=held))
    budgets = [
        Budget(id=f"budget-{tier}", name=f"tier-{tier}", selector={"tier": str(tier)}, max_unavailable=5)
        for tier in range(20)
    ]
    return ClusterView(
        position=Position(1),
        hosts=tuple(full),
        vms_on={host: tuple(found) for host, found in standing.items()},
        policy=Policy(clear_migration=True),
        budgets=tuple(budgets),
    )


def _host(number: int) -> Host:
    facts = HostFacts(
        hostname=f"hv-{number:03}",
        machine_id=str(number),
        cpus=128,
        memory=MiB(1048576),
        local_gib=GiB(20000),
        shared_gib=GiB(200000),
        shared_id="ceph",
        accel="kvm",
        libvirt="9.0.0",
        qemu="7.2.0",
        networks=("prod", "dev"),
        address=f"10.0.0.{number}",
        machines=("pc-q35-7.2",),
    )
    return Host(id=HostId(f"host-{number:03}"), name=f"hv-{number:03}", agent="connected", facts=facts)


def _vm(number: int, host: HostId, chance: random.Random) -> Vm:
    vcpus, memory = chance.choice(SIZES)
    app = f"app-{number // 6}"
    away = {"app": app} if chance.random() < 1 / 3 else {}
    labels = {"app": app, "env": chance.choice(("prod", "dev"))}
    if chance.random() < 0.2:
        labels["tier"] = str(chance.randrange(20))
    disk = DiskSpec(name="vda", size=GiB(40), storage=chance.choice(("shared", "local")))
    spec = VmSpec(
        vcpus=vcpus,
        max_vcpus=vcpus,
        memory=MiB(memory),
        max_memory=MiB(memory),
        disks=(disk,),
        placing=Placing(away_from=away),
    )
    return Vm(
        id=VmId(f"vm-{number:05}"),
        name=f"vm-{number:05}",
        spec=spec,
        labels=labels,
        host=host,
        power="running",
        created_at=START,
    )


def measure(view: ClusterView, drained: int, rounds: int) -> tuple[DrainPlan, list[float]]:
    hosts = [host.id for host in view.hosts[:drained]]
    times = []
    for _ in range(rounds):
        began = time.process_time()
        plan = plan_drain(view, hosts, DrainOptions())
        times.append(time.process_time() - began)
    return plan, times


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.drain_plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=500, help="hosts of the cluster (default: 500)")
    parser.add_argument("--vms", type=int, default=10_000, help="VMs of the cluster (default: 10,000)")
    parser.add_argument("--drain", type=int, default=10, help="hosts to drain together (default: 10)")
    parser.add_argument(
        "--crowded", type=float, nargs="*", default=[0, 0.6, 1.0], help="shares promised already (default: 0, 0.6, 1)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="plans of each kind (default: 5)")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    rows = []
    for crowded in arguments.crowded:
        view = cluster(arguments.hosts, arguments.vms, crowded)
        plan, times = measure(view, arguments.drain, arguments.rounds)
        waves = max((move.wave for move in plan.moves), default=0)
        survivable = "yes" if plan.survival.survivable else f"no ({len(plan.survival.losses)} hosts or more)"
        rows.append(
            (
                f"{crowded:.0%}",
                str(len(plan.moves)),
                str(len(plan.blocked)),
                str(waves),
                survivable,
                spread([1000 * each for each in times], digits=0),
            )
        )
    head = f"{arguments.drain} of {arguments.hosts} hosts, {arguments.vms:,} VMs: promised beside them"
    print(table([head, "moves", "blocked", "waves", "one more loss", "CPU ms a plan"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
