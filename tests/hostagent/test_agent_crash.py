"""An agent that is killed again and again, as a process on a real broker, does everything once."""

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from front_desk import FrontDesk, open_desk
from ledger import Ledger, broker, ledger
from scripted import DISK, new_vm, until

from hostagent.enrolment import enroll
from vmorch.core.hostcommands import CreateDisk, Done
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import HostId, VmId

pytestmark = pytest.mark.nats
HOST = HostId("id-1")
KILLS, AT_ONCE = 15, 8

AGENT = """
import asyncio, os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from scripted import FACTS
from hostagent import hosting, identity as files
from hostagent.effects import real_effects
from hostagent.simulated_hypervisor import SimulatedHypervisor, kept_host
from vmorch.bus import keys
from vmorch.core.hypervisor import LibvirtHost
directory = Path(sys.argv[1])

def note(name, text):
    file = os.open(directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, text.encode() + b"\\n")
    os.close(file)

class Noting(SimulatedHypervisor):
    def execute(self, command, scope):
        note("begun", command.vm)
        return super().execute(command, scope)

async def main():
    state, keep = kept_host(directory / "host.json", LibvirtHost())
    hypervisor = Noting(FACTS, state, seconds=lambda command: 0.01, keep=keep)
    identity = files.load_identity(directory)
    pair = keys.load(directory / files.KEY, "user")
    await hosting.host(identity, pair, directory, hypervisor, real_effects(), asyncio.Event())

asyncio.run(main())
"""


def test_an_agent_killed_at_random_does_every_order_at_most_once_and_answers_all(tmp_path: Path) -> None:
    chance = random.Random(os.urandom(8))
    directory = tmp_path / "agent"

    async def scenario(desk: FrontDesk) -> None:
        async with ledger(desk) as book:
            attempts: Counter[VmId] = Counter()
            enough = asyncio.Event()
            work = asyncio.gather(*(_keep_ordering(book, attempts, enough) for _ in range(AT_ONCE)))
            for _ in range(KILLS):
                agent = _start(directory)
                try:
                    await _more_reports(book)
                    await asyncio.sleep(chance.uniform(0, 0.3))
                finally:
                    agent.kill()
                    agent.communicate()
                book.sessions.clear()
            enough.set()
            agent = _start(directory)
            try:
                await asyncio.wait_for(work, 60)
            finally:
                agent.kill()
                agent.communicate()
            begun = Counter((directory / "begun").read_text().split())
            host = msgspec.json.decode((directory / "host.json").read_bytes(), type=LibvirtHost)
            assert len(attempts) > KILLS
            assert set(host.disks) == set(attempts)
            # each attempt is an order of its own, and none of them was told to the host twice
            assert [vm for vm in attempts if begun[vm] > attempts[vm]] == []
            for vm, count in attempts.items():
                for attempt in range(1, count + 1):
                    assert len(set(map(repr, book.answers(f"{vm}.{attempt}")))) == 1

    with broker(tmp_path) as desk, open_desk(desk) as url:
        enroll(url, "t1", directory, name="h", machine_id="0123456789abcdef")
        asyncio.run(scenario(desk))


async def _keep_ordering(book: Ledger, attempts: Counter[VmId], enough: asyncio.Event) -> None:
    """Have disks made one after another, each under a new id whenever it was interrupted."""
    while not enough.is_set():
        vm, answer = new_vm(), None
        while not isinstance(answer, Done):
            assert answer is None or answer.code == "interrupted"
            attempts[vm] += 1
            answer = await book.do(HOST, f"{vm}.{attempts[vm]}", CreateDisk(vm=vm, disk=DISK))


async def _more_reports(book: Ledger) -> None:
    before = len(book.reports)
    await until(lambda: len(book.reports) > before, within=30)


def _start(directory: Path) -> subprocess.Popen[bytes]:
    script = AGENT.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(directory)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
