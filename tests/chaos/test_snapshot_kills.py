"""Agent, libvirtd and server are killed in each step of snapshots, rollbacks and deletions.

Each ends done or undone, the layers are sound, and the guest holds exactly what it should.
"""

import json
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.lab.process import send_signal
from tests.chaos.test_services_away import control_processes
from tests.integration.lab_fixtures import Away, Site, needs_guest, tiny_image, until
from tests.integration.snapshot_fixtures import Kept, State

pytestmark = [*needs_guest, pytest.mark.timeout(900)]

KILLS = 100
VICTIMS = ("agent", "libvirtd", "server")
LOOK_EVERY = 4
MOST = 5
"""Snapshots that are kept at once."""
POINTS = (
    ("plain", "snapshot"), ("memory", "snapshot"), ("quiesce", "snapshot"),
    ("rollback", "layers"), ("rollback", "save"), ("rollback", "restore"),
    ("delete", "drop"), ("delete", "merge"),
)  # fmt: skip
"""What is under way, and in which step of it."""
BLINK = 0.15
"""Seconds within which a step that has begun is hit; most take less, so some are hit just after."""


@pytest.fixture
def kept(site: Site) -> Iterator[Kept]:
    image, digest = tiny_image()
    site.cli.run("image", "add", "tiny", "--file", str(image), "--sha256", digest)
    site.api.do(
        "/v1/vms",
        {"name": "kept", "image": "tiny", "memory": 128, "extra_disks": [{"size": 1}]},
    )
    yield Kept(site, str(site.api.vm("kept")["id"]))
    site.clean()
    site.cli.run("image", "remove", "tiny", "--yes")


class Trial:
    """A guest, what it should hold now and in each of its snapshots, and what was done to it."""

    def __init__(self, kept: Kept, seed: int) -> None:
        self.kept, self.api, self.vm = kept, kept.site.api, kept.vm
        self.chance = random.Random(seed)
        self.now = kept.write("begin")
        self.states: dict[str, State] = {}
        self.number = 0
        self.ended: dict[str, int] = {}

    def run(self, kind: str, step: str, victim: str) -> None:
        """One operation with one kill in it."""
        self.number += 1
        self._ready(kind)
        verb, body = self._order(kind)
        operation = self.api.change(f"/v1/vms/{self.vm}/{verb}", body)["operation"]
        self._reach(operation, step)
        threading.Event().wait(self.chance.uniform(0, BLINK))
        self._kill(victim)
        print(self.number, kind, step, victim, operation, flush=True)
        try:
            end = self.api.over(operation, 60)
        except AssertionError:
            print(json.dumps(self.api.operation(operation)), self.kept.told(), sep="\n", flush=True)
            raise
        self.ended[end["state"]] = self.ended.get(end["state"], 0) + 1
        what = f"{self.number}: {kind}, {victim} killed in {step}: {json.dumps(end)}"
        assert end["state"] in ("succeeded", "undone"), what
        self._judge(kind, body, end["state"] == "succeeded", what)

    def _ready(self, kind: str) -> None:
        """There is something to go back to or to delete, and not too much."""
        held = self.api.vm(self.vm)["snapshots"]
        while len(held) > MOST:
            self.api.on_vm(self.vm, "delete-snapshot", snapshot=held[0]["name"])
            held = self.api.vm(self.vm)["snapshots"]
        with_memory = [each["name"] for each in held if each["memory"]]
        while (kind == "rollback" and not with_memory) or (kind == "delete" and len(held) < 2):
            self._take(memory=True)
            held = self.api.vm(self.vm)["snapshots"]
            with_memory = [each["name"] for each in held if each["memory"]]

    def _take(self, **more: object) -> None:
        name = f"ready-{secrets.token_hex(3)}"
        self.api.on_vm(self.vm, "snapshot", name=name, **more)
        self.states[name] = self.now

    def _order(self, kind: str) -> tuple[str, dict[str, Any]]:
        held = self.api.vm(self.vm)["snapshots"]
        match kind:
            case "rollback":
                to = self.chance.choice([each["name"] for each in held if each["memory"]])
                self.now = self.kept.write(f"t{self.number}")
                return "rollback", {"to": to}
            case "delete":
                # what the guest stands on is what has to be merged under it
                here = [each["name"] for each in held if each["current"]]
                return "delete-snapshot", {"snapshot": here[0] if here else held[0]["name"]}
            case _:
                self.now = self.kept.write(f"t{self.number}")
                flags = {} if kind == "plain" else {kind: True}
                return "snapshot", {"name": f"s{self.number}", **flags}

    def _reach(self, operation: str, step: str) -> None:
        def there() -> bool:
            found = self.api.operation(operation)
            states = [each["state"] for each in found["steps"] if each["label"] == step]
            return bool(found["ended_at"]) or "running" in states or (bool(states) and set(states) == {"done"})

        until(there, 60, f"step {step}", every=0.02)

    def _kill(self, victim: str) -> None:
        site = self.kept.site
        if victim == "server":
            for process in control_processes(site, "vmorch.main run"):
                send_signal(process, signal.SIGKILL)
            until(lambda: "control" not in site.lab.control.container.daemons(), 60, "the end of the control plane")
            site.lab.control.start_control_plane()
        else:
            host = site.host(self.kept_host)
            host.kill(victim)
            host.start(victim)

    @property
    def kept_host(self) -> str:
        return str(self._patiently(lambda: self.api.vm(self.vm)["host"]))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 60
        while True:
            try:
                return ask()
            except Away:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def _judge(self, kind: str, body: dict[str, Any], done: bool, what: str) -> None:
        self.kept.site.connected()
        self.kept.up()
        held = {each["name"]: each for each in self.api.vm(self.vm)["snapshots"]}
        match kind:
            case "rollback":
                safety = [name for name in held if name not in self.states]
                assert len(safety) == done, (what, held.keys())
                if done:
                    self.states[safety[0]] = self.now
                    self.now = self.states[body["to"]]
            case "delete":
                assert (body["snapshot"] not in held) == done, what
            case _:
                assert (body["name"] in held) == done, what
                if done:
                    self.states[body["name"]] = self.now
        assert self.kept.state() == self.now, what
        # a look into every layer takes longer than most of what is looked at
        if self.number % LOOK_EVERY:
            self.kept.assert_complete()
        else:
            self.kept.assert_sound()
        self.states = {name: state for name, state in self.states.items() if name in held}


def test_a_hundred_kills_leave_every_state_that_was_kept(kept: Kept) -> None:
    seed = secrets.randbits(32)
    print("seed", seed)
    chance = random.Random(seed)
    plan = [(kind, step, victim) for kind, step in POINTS for victim in VICTIMS]
    # the server's death takes Postgres and NATS down with it, which is a matter of seconds
    quick = [each for each in plan if each[2] != "server"]
    plan += [chance.choice(quick) for _ in range(KILLS - len(plan))]
    chance.shuffle(plan)
    trial = Trial(kept, seed)
    for kind, step, victim in plan:
        trial.run(kind, step, victim)
    # and each of them can still be had
    for name, state in list(trial.states.items()):
        kept.site.api.on_vm(kept.vm, "rollback", to=name)
        kept.up()
        held = next(each for each in kept.site.api.vm(kept.vm)["snapshots"] if each["name"] == name)
        found = kept.state()
        assert found == state if held["memory"] else found.on_disk == state.on_disk, name
    kept.assert_sound()
    print(trial.ended)
