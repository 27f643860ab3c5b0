"""What a VM's life costs through vmorch, against the same made by libvirt's own calls on the same host.

    python -m bench.lifecycle [--rounds N] [--calm SECONDS] [--trace]

Needs root: it makes a lab of its own with one real libvirt host and removes it. Each round takes three VMs through
create, stop, start and delete, one after another, in an order that turns from round to round: one by direct calls
(qemu-img, a seed, define, create; no server, no log, no flush), one through the API on a connection that is kept
open, one by a `vmorch` process for each verb. "ready none" everywhere: nobody waits for a guest to boot. Stop cuts the
power in all three, because how long a guest takes to shut down is the guest's affair; delete finds the VM running.

Two moments are compared: when libvirt's own event reaches an observer outside (for create and start: STARTED), and
when the caller knows that it is done (direct: the last call returned; API: the event stream said that the operation
finished; CLI: the process ended). Exits with 1 if a promise is missed at the median.
"""

import argparse
import contextlib
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import libvirt

from bench.figures import machine, ratios, spread, table
from bench.warm import MEMORY, Direct, Warm, await_calm, observe, warm_lab
from vmorch.core.ids import VmId

VERBS = ("create", "stop", "start", "delete")
EVENTS = {
    "create": libvirt.VIR_DOMAIN_EVENT_STARTED,
    "stop": libvirt.VIR_DOMAIN_EVENT_STOPPED,
    "start": libvirt.VIR_DOMAIN_EVENT_STARTED,
    "delete": libvirt.VIR_DOMAIN_EVENT_UNDEFINED,
}
RATIO, EXTRA_MS, RATIO_CLI = 1.2, 100.0, 1.5
STAGGER = 0.5


Life = dict[str, tuple[float, float]]
"""Verb -> milliseconds until libvirt's event, milliseconds until the caller knew."""


class Bench:
    """The three ways through a VM's life."""

    def __init__(self, warm: Warm, direct: Direct) -> None:
        self.vmorch = warm.vmorch
        self.api = warm.api
        self.direct = direct
        self.moments = warm.moments

    def by_direct_calls(self, name: str) -> Life:
        vm = VmId(str(uuid.uuid4()))
        life: Life = {}
        for verb in VERBS:
            began, ended = self.direct.do(verb, vm, name)
            seen = self.moments.after(began, "libvirt", vm, str(EVENTS[verb]))
            life[verb] = _ms(began, seen), _ms(began, ended)
            time.sleep(STAGGER)
        return life

    def by_api(self, name: str) -> Life:
        bodies: dict[str, tuple[str, object]] = {
            "create": (
                "/v1/vms",
                {"name": name, "image": "tiny", "memory": MEMORY, "disk": 1, "ready": {"by": "none"}},
            ),
            "stop": (f"/v1/vms/{name}/stop", {"grace": 0, "force": True}),
            "start": (f"/v1/vms/{name}/start", {}),
            "delete": (f"/v1/vms/{name}/delete", {}),
        }
        life: Life = {}
        for verb in VERBS:
            path, body = bodies[verb]
            self.api.lines.clear()
            self.api.warm()
            began = time.monotonic()
            accepted = self.api.ask("POST", path, body)
            answered = time.monotonic()
            seen = self.moments.after(began, "libvirt", accepted["subject"], str(EVENTS[verb]))
            known = self.moments.after(began, "event", "vm.operation-finished", accepted["operation"])
            life[verb] = _ms(began, seen), _ms(began, known)
            if self.api.lines:
                steps = ", ".join(f"{_ms(began, at):.0f} {what}" for at, what in self.api.lines)
                print(f"  {verb}: accepted {_ms(began, answered):.0f} ms; libvirt {life[verb][0]:.0f}; {steps}")
            time.sleep(STAGGER)
        return life

    def by_cli(self, name: str) -> Life:
        arguments = {
            "create": f"create {name} --image tiny --memory {MEMORY}Mi --disk 1Gi --ready none".split(),
            "stop": ["stop", name, "--force", "--grace", "0", "--yes"],
            "start": ["start", name],
            "delete": ["delete", name, "--yes"],
        }
        vm = ""
        life: Life = {}
        for verb in VERBS:
            began = time.monotonic()
            self.vmorch("vm", *arguments[verb])
            ended = time.monotonic()
            if not vm:
                self.api.warm()
                vm = self.api.ask("GET", f"/v1/vms/{name}")["item"]["id"]
            seen = self.moments.after(began, "libvirt", vm, str(EVENTS[verb]))
            life[verb] = _ms(began, seen), _ms(began, ended)
            time.sleep(STAGGER)
        return life


def _ms(began: float, ended: float) -> float:
    return (ended - began) * 1000


@contextlib.contextmanager
def bench(trace: bool) -> Iterator[Bench]:
    """A lab of our own with an observer of its host's libvirt and the process of direct calls."""
    with warm_lab(1, trace=trace) as warm:
        connection = observe(warm.lab.hosts[0].uri, warm.moments)
        direct = Direct(warm.lab, warm.pin)
        try:
            yield Bench(warm, direct)
        finally:
            direct.close()
            connection.close()


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.lifecycle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds after one that warms up (default: 11)")
    parser.add_argument(
        "--calm", type=float, default=15.0, help="seconds to wait, before each life, for a calm machine (default: 15)"
    )
    parser.add_argument("--trace", action="store_true", help="print when each event of an API operation was known")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    lives: dict[str, list[Life]] = {"direct": [], "API": [], "CLI": []}
    with bench(arguments.trace) as it:
        ways: list[tuple[str, Callable[[str], Life]]] = [
            ("API", it.by_api),
            ("direct", it.by_direct_calls),
            ("CLI", it.by_cli),
        ]
        restless = 0
        for number in range(arguments.rounds + 1):
            turn = number % len(ways)
            for way, live in ways[turn:] + ways[:turn]:
                restless += not await_calm(arguments.calm)
                life = live(f"{way.lower()}-{number}")
                if number:
                    lives[way].append(life)
    if restless:
        print(f"The machine was not calm before {restless} of {3 * (arguments.rounds + 1)} lives.\n")
    return report(lives)


def report(lives: dict[str, list[Life]]) -> int:
    """Print the tables; 1 if a promise is missed."""
    rows, missed = [], []
    for verb in VERBS:
        for index, moment in enumerate(("libvirt event", "caller knows")):
            times = {way: [life[verb][index] for life in of] for way, of in lives.items()}
            cells = [verb, moment, spread(times["direct"])]
            for way, promised in (("API", RATIO), ("CLI", RATIO_CLI)):
                found = ratios(times[way], times["direct"])
                more = statistics.median(times[way]) - statistics.median(times["direct"])
                cells += [spread(times[way]), spread(found, digits=2), f"{more:+.0f}"]
                late = way == "API" and more > EXTRA_MS
                if statistics.median(found) > promised or late:
                    missed.append(f"{verb} by {way}, {moment}: {statistics.median(found):.2f}x, {more:+.0f} ms")
            rows.append(cells)
    rounds = len(lives["API"])
    print(f"Milliseconds, median (lowest-highest) of {rounds} rounds; ratios to direct calls of the same round.\n")
    print(table(["verb", "until", "direct", "API", "ratio", "more", "CLI", "ratio", "more"], rows))
    for each in missed:
        print(f"missed: {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
