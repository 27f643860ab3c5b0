"""What an incremental backup writes to its target, against what the guest had written since the one before.

    python -m bench.backups [--rounds N] [--calm SECONDS]

Needs root: it makes a lab of its own with one real libvirt host and removes it. A small guest has a raw disk beside its
own, of which it overwrites known places past its caches: so much in a row, so many blocks of 64 KiB here and there, and
so many of 4 KiB. What it writes to its own disk besides, its noise, is backed up too: dirtied is what QEMU counts of
both, in blocks of 4 KiB, when the backup is asked for. Written is what all files of the backup take in their target.
Exits with 1 if that is more than PROMISED times what was dirtied, or where many bytes were overwritten, so that the
noise is of no weight, more than PROMISED times those alone; at the median.
"""

import argparse
import json
import random
import statistics
import sys
import time
from typing import Any

import libvirt
import libvirt_qemu

from bench.figures import machine, spread, table
from bench.snapshots import in_guest
from bench.warm import Api, Moments, await_calm, warm_lab
from hostagent.commands._noting import note_name
from vmorch.core.ids import BackupId

PROMISED = 1.1
MIB, BLOCK = 2**20, 64 * 1024
CASES = (("in a row", 16 * MIB, 0), ("in a row", 128 * MIB, 0), ("blocks of 64 KiB", 32 * MIB, BLOCK),
         ("blocks of 4 KiB", 2 * MIB, 4096))  # fmt: skip
DISK = 1024 * MIB


class Bench:
    """One guest and its backups."""

    def __init__(self, api: Api, moments: Moments, vm: str, domain: Any) -> None:
        self.api, self.moments, self.vm, self.domain = api, moments, vm, domain
        self.chance = random.Random(7)
        self.last = BackupId("")

    def dirty(self, amount: int, block: int) -> None:
        """Have the guest overwrite so many bytes, in blocks of that size here and there, or all in a row."""
        if not block:
            start = self.chance.randrange((DISK - amount) // MIB)
            order = f"dd if=/dev/urandom of=/dev/vdb bs=1M seek={start} count={amount // MIB} conv=notrunc"
        else:
            places = self.chance.sample(range(DISK // BLOCK), amount // block)
            one = f"dd if=/tmp/random of=/dev/vdb bs={block} seek=$((n * {BLOCK // block})) count=1 conv=notrunc"
            each = f"for n in {' '.join(map(str, places))}; do {one}; done"
            order = f"dd if=/dev/urandom of=/tmp/random bs={block} count=1; {each}"
        in_guest(self.domain, f"({order}) 2>/dev/null; sync")

    def dirtied(self) -> int:
        """How many bytes the guest dirtied since the last backup, as QEMU counts them."""
        order = json.dumps({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
        nodes = json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, order, 0))["return"]
        bitmaps = (each for node in nodes for each in node.get("dirty-bitmaps", ()))
        return sum(each["count"] for each in bitmaps if each.get("name") == note_name(self.last))

    def back_up(self, **more: object) -> tuple[dict[str, Any], float]:
        """A backup and how many seconds passed until the caller knew."""
        self.api.warm()
        began = time.monotonic()
        accepted = self.api.ask("POST", f"/v1/vms/{self.vm}/backup", more)
        ended = self.moments.after(began, "event", "vm.operation-finished", accepted["operation"])
        found: dict[str, Any] = self.api.ask("GET", f"/v1/backups/{accepted['operation']}")["item"]
        if found["state"] != "whole":
            raise RuntimeError(f"backup: {found}")
        self.last = BackupId(accepted["operation"])
        return found, ended - began


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.backups", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds to wait for a calm machine (default: 15)")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    rows, missed = [], []
    with warm_lab(1) as warm:
        warm.vmorch("vm", "create", "web", "--image", "tiny", "--memory", "128Mi", "--extra-disk", "1Gi")
        warm.api.warm()
        vm = str(warm.api.ask("GET", "/v1/vms/web")["item"]["id"])
        it = Bench(warm.api, warm.moments, vm, libvirt.open(warm.lab.hosts[0].uri).lookupByUUIDString(vm))
        await_calm(arguments.calm)
        it.dirty(256 * MIB, 0)
        full, seconds = it.back_up(full=True)
        rows.append(["full", "", "", f"{full['bytes'] / MIB:.1f}", "", "", f"{seconds:.2f}"])
        for what, amount, block in CASES:
            dirtied, taken, ratios, of_all, times = [], [], [], [], []
            for _ in range(arguments.rounds):
                it.dirty(amount, block)
                await_calm(arguments.calm)
                dirty = it.dirtied()
                found, seconds = it.back_up()
                if found["kind"] != "incremental":
                    raise RuntimeError(f"backup: {found}")
                dirtied.append(dirty / MIB)
                taken.append(found["bytes"] / MIB)
                of_all.append(found["bytes"] / dirty)
                ratios.append(found["bytes"] / amount)
                times.append(seconds)
            cells = [spread(each, digits=2) for each in (dirtied, taken, of_all, ratios, times)]
            rows.append([f"incremental, {what}", f"{amount // MIB}", *cells])
            if statistics.median(of_all) > PROMISED:
                missed.append(f"{what}: {statistics.median(of_all):.2f} of what was dirtied")
            if block in (0, BLOCK) and statistics.median(ratios) > PROMISED:
                missed.append(f"{what}: {statistics.median(ratios):.2f} of what was overwritten")
    print(f"Median (lowest-highest) of {arguments.rounds} rounds; sizes in MiB, times in seconds.\n")
    columns = ["backup", "overwritten", "dirtied", "written", "of dirtied", "of overwritten", "until the caller knows"]
    print(table(columns, rows))
    for each in missed:
        print(f"missed: {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
