"""`vmorch-agent run` as systemd starts it: ready, alive, and gone in time."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from front_desk import FrontDesk, open_desk
from ledger import broker, ledger
from scripted import until

from hostagent.enrolment import enroll

pytestmark = pytest.mark.nats


def test_the_agent_tells_systemd_and_ends_in_time_even_when_libvirt_is_away(tmp_path: Path) -> None:
    state, address = tmp_path / "state", str(tmp_path / "notify")
    settings = tmp_path / "agent.toml"
    settings.write_text(
        f'[agent]\nstate_dir = "{state}"\n'
        f'[libvirt]\nuri = "qemu+unix:///system?socket={tmp_path}/nobody"\naccel = "tcg"\n'
        f'[storage]\nlocal_dir = "{tmp_path / "vms"}"\n'
    )
    (tmp_path / "vms").mkdir()

    async def scenario(desk: FrontDesk) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(address)
            systemd.setblocking(False)
            heard: list[bytes] = []

            def hear() -> list[bytes]:
                with suppress(BlockingIOError):
                    heard.append(systemd.recv(1000))
                return heard

            agent = _start(settings, address)
            try:
                async with ledger(desk) as book:
                    await until(lambda: any(line.startswith(b"READY=1") for line in hear()), within=30)
                    await until(lambda: hear().count(b"WATCHDOG=1") >= 3)
                    # nothing is said about a host that cannot be seen
                    assert book.reports == []
                    began = time.monotonic()
                    agent.send_signal(signal.SIGTERM)
                    await until(lambda: agent.poll() is not None, within=15)
                    assert time.monotonic() - began < 10
                    await until(lambda: b"STOPPING=1" in hear())
                    assert agent.returncode == 0
            finally:
                agent.kill()
                _, logged = agent.communicate()
            assert b'"event"' in logged

    with broker(tmp_path) as desk, open_desk(desk) as url:
        enroll(url, "t1", state, name="h", machine_id="m")
        asyncio.run(scenario(desk))


def _start(settings: Path, address: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hostagent.main", "run", "--config", str(settings)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "NOTIFY_SOCKET": address,
            "WATCHDOG_USEC": "400000",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
