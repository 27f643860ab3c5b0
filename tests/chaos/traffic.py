"""A stream of real operations on several small VMs, going on while things break, and what must hold after it.

What the product recorded is compared with what libvirt reported to an observer of ours and with QEMU's logs.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from deploy.lab.container import CHECKOUT
from tests.integration.lab_fixtures import Answer, Away, Site, until

VMS_PER_HOST = 2

_NEXT: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {
    "running": (("pause", {}), ("stop", {"grace": 0, "force": True}), ("delete", {})),
    "paused": (("resume", {}), ("resume", {}), ("stop", {"grace": 0, "force": True})),
    "off": (("start", {}), ("start", {}), ("delete", {})),
    "crashed": (("start", {}), ("delete", {})),
}
_AGAIN_WITH_SAME_ID = frozenset({"log-unavailable", "not-leader", "version-conflict"})
_NOT_NOW = frozenset({"host-offline", "no-host-fits", "wrong-power-state"})

# virDomainEventType and its detail for what each step does, as libvirt numbers them
_EVENT_OF_STEP = {"define": (0, 0), "undefine": (1, 0), "start": (2, 0), "pause": (3, 0)}


class Traffic:
    """Operations on VMS_PER_HOST VMs of each host, one after the other on each, until it is told to finish."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.ended: list[dict[str, Any]] = []
        self._seed = seed
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor()
        self._streams: list[Future[None]] = []

    def __enter__(self) -> "Traffic":
        print(f"traffic's seed: {self._seed}")
        for host in self.site.lab.hosts:
            for index in range(VMS_PER_HOST):
                chance = random.Random(f"{self._seed}/{host.name}/{index}")
                self._streams.append(self._pool.submit(self._live, host.name, f"{host.name}-{index}", chance))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def goes_on(self, operations: int, seconds: float = 60.0) -> None:
        """Wait until so many more operations have ended."""
        wanted = len(self.ended) + operations

        def enough() -> bool:
            for stream in self._streams:
                if stream.done():
                    stream.result()
            return len(self.ended) >= wanted

        until(enough, seconds, f"{operations} more operations")

    def finish(self) -> None:
        """Let the last operations end by themselves; raises what went wrong in any stream."""
        self._stop.set()
        for stream in self._streams:
            stream.result()
        assert self.site.api.items("/v1/operations", active="true") == []

    def assert_all_succeeded(self) -> None:
        """Every operation that ended did what it was asked to, trouble or not."""
        assert self.ended
        failed = [one for one in self.ended if one["state"] != "succeeded"]
        assert not failed, f"{len(failed)} of {len(self.ended)} operations failed, the first: {failed[0]}"

    def _live(self, host: str, name: str, chance: random.Random) -> None:
        while not self._stop.is_set():
            vm = f"{name}-{uuid.UUID(int=chance.getrandbits(128)).hex[:6]}"
            wanted = {"name": vm, "image": "blank", "memory": 48, "ready": {"by": "none"}, "placing": {"host": host}}
            id = self._do("/v1/vms", wanted)
            while id is not None and not self._stop.is_set():
                seen = self._ask("GET", f"/v1/vms/{id}")
                if seen.status == 404 or seen.body["item"]["state"] == "deleted":
                    break
                verbs = _NEXT.get(seen.body["item"]["power"])
                if verbs is None:
                    # its host has not looked yet
                    self._stop.wait(0.1)
                    continue
                verb, arguments = chance.choice(verbs)
                self._do(f"/v1/vms/{id}/{verb}", arguments)

    def _do(self, path: str, body: Mapping[str, Any]) -> str | None:
        """Have one operation done; its VM's id, or None if it was refused for now."""
        answer = self._ask("POST", path, body)
        if answer.status >= 300:
            assert answer.body["code"] in _NOT_NOW, answer
            self._stop.wait(0.2)
            return None
        operation = self.site.api.over(answer.body["operation"])
        self.ended.append(operation)
        return str(operation["vm"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """An answer, asked for under one request id until it comes."""
        request = str(uuid.uuid4())

        def answered() -> Answer | None:
            try:
                answer = self.site.api.ask(method, path, body, timeout=15, request_id=request)
            except Away:
                return None
            if answer.status >= 500 or (answer.status >= 400 and answer.body["code"] in _AGAIN_WITH_SAME_ID):
                return None
            return answer

        found = until(answered, 90, f"an answer to {method} {path}")
        assert found is not None
        return found


# -- what must hold afterwards ------------------------------------------------------------------------------------


@contextmanager
def lifecycle_events(site: Site) -> Iterator[dict[str, Counter[tuple[int, int]]]]:
    """What every host's libvirt reports of its domains, by VM id; complete when the context is left."""
    told: dict[str, Counter[tuple[int, int]]] = {}
    with ExitStack() as stack:
        observers = []
        for host in site.lab.hosts:
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            argv = [sys.executable, "-m", "tests.chaos.observer", host.uri]
            observer = subprocess.Popen(argv, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=said, text=True)
            stack.callback(observer.kill)
            observers.append((observer, said))
        for _, said in observers:
            until(lambda said=said: os.fstat(said.fileno()).st_size > 0, 30, "an observer of libvirt")  # type: ignore[misc]
        yield told
        for observer, said in observers:
            observer.communicate(timeout=30)
            said.seek(0)
            for line in said.read().splitlines()[1:]:
                domain, event, detail = line.split()
                told.setdefault(domain, Counter())[int(event), int(detail)] += 1


def recorded_steps(site: Site, after: int) -> dict[str, Counter[str]]:
    """How often each kind of step was recorded as done, by VM id; undone ones count by what undid them."""
    plans: dict[str, list[str]] = {}
    done: dict[str, Counter[str]] = {}
    for event in site.api.items("/v1/events", kind="vm.*", after=after):
        vm, data = event["subject"].removeprefix("vm/"), event["data"]
        if event["kind"] == "vm.operation-started":
            plans[data["operation"]] = [step["label"] for step in data["steps"]]
        elif event["kind"] == "vm.step-done" and not data.get("undo"):
            done.setdefault(vm, Counter())[plans[data["operation"]][data["index"]]] += 1
    return done


def head(site: Site) -> int:
    return int(site.api.get("/v1/status")["head"])


def assert_nothing_happened_twice(site: Site, after: int, told: Mapping[str, Counter[tuple[int, int]]]) -> None:
    """Every domain was defined, started, paused and undefined exactly as often as the log says."""
    recorded = recorded_steps(site, after)
    assert recorded, "nothing was recorded"
    for vm, steps in recorded.items():
        seen = told.get(vm, Counter())
        for step, event in _EVENT_OF_STEP.items():
            assert seen[event] == steps[step], f"{vm}: {step} seen {seen[event]} times, recorded {steps[step]} times"
    assert set(told) <= set(recorded), "domains that the log does not know"


def assert_boots_are_recorded(site: Site, after: int) -> None:
    """QEMU was started for each VM exactly as often as the log says."""
    for vm, steps in recorded_steps(site, after).items():
        boots = sum(site.boots(host.name, vm) for host in site.lab.hosts)
        assert boots == steps["start"], f"{vm}: QEMU was started {boots} times, recorded are {steps['start']}"


def assert_shown_is_what_is(site: Site) -> None:
    """Every VM stands on its host and no other, in the power state that is shown; no other QEMU runs."""
    site.connected()

    def agree() -> bool:
        shown: dict[str, dict[str, bool]] = {host.name: {} for host in site.lab.hosts}
        for vm in site.api.items("/v1/vms"):
            shown[vm["host"]][vm["id"]] = vm["power"] in ("running", "paused")
        found = {host.name: site.domains(host.name) for host in site.lab.hosts}
        active = {name: {vm for vm, on in domains.items() if on} for name, domains in found.items()}
        return shown == found and active == {host.name: set(host.qemus()) for host in site.lab.hosts}

    until(agree, 30, "agreement of what is shown with what libvirt has")


def assert_journals_are_drained(site: Site, after: int) -> None:
    """No agent holds an order without an answer, nor an answer that is not in the log."""
    answers = {
        (data["operation"], data["index"], data.get("undo", False), data.get("attempt", 1))
        for event in site.api.items("/v1/events", kind="vm.step-*", after=after)
        if (data := event["data"]) and event["kind"] != "vm.step-timed-out"
    }
    for host in site.lab.hosts:
        journal = f"file:{host.directory}/agent/journal.sqlite?mode=ro"
        host.kill("agent", signal.SIGTERM)
        try:
            with sqlite3.connect(journal, uri=True) as db:
                assert db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
                assert db.execute("SELECT id FROM orders WHERE state = 'intent'").fetchall() == []
                orders = [row[0].split(".") for row in db.execute("SELECT id FROM orders")]
            db.close()
        finally:
            host.start("agent")
        operations = {operation for operation, *_ in answers}
        for operation, index, way, attempt in orders:
            if operation in operations:
                assert (operation, int(index), way == "undo", int(attempt)) in answers
    site.connected()
