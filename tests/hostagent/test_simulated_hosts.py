"""Simulated hosts as whole processes are: enrolled over HTTP, on a real broker, stopped and started again."""

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from front_desk import FrontDesk, open_desk
from ledger import broker, ledger
from scripted import new_vm, provisioning, until

from hostagent.simulated import SimulatedHostConfig, run_simulated_hosts
from vmorch.core.hostcommands import Done
from vmorch.core.ids import HostId
from vmorch.wire.envelopes import Hello

pytestmark = pytest.mark.nats
CLUSTER = "lab"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[FrontDesk]:
    with broker(tmp_path) as desk:
        yield desk


def test_simulated_hosts_enrol_work_stop_in_time_and_come_back_as_they_were(desk: FrontDesk, tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        configs = [
            SimulatedHostConfig(
                name=f"sim-{index}",
                directory=tmp_path / f"sim-{index}",
                server_url=url,
                token=f"t{index}",
            )
            for index in range(5)
        ]
        vms = {HostId(f"id-{index + 1}"): new_vm() for index in range(5)}
        async with ledger(desk) as book:
            stop = asyncio.Event()
            running = asyncio.create_task(run_simulated_hosts(configs, stop))
            await until(lambda: book.sessions.keys() == vms.keys() and book.beating == vms.keys(), within=30)
            for host, vm in vms.items():
                for number, command in enumerate(provisioning(vm)):
                    assert isinstance(await book.do(host, f"{vm}.{number}", command), Done)
            began = time.monotonic()
            stop.set()
            await running
            assert time.monotonic() - began < 10
            book.sessions.clear()
            again = asyncio.create_task(run_simulated_hosts(configs, stop := asyncio.Event()))
            await until(lambda: book.sessions.keys() == vms.keys(), within=30)
            hellos = {report.host: report.items[0] for report in book.reports if report.through == 0 and report.items}
            for host, vm in vms.items():
                hello = hellos[host]
                assert isinstance(hello, Hello)
                assert hello.domains[vm].power == "running"
            stop.set()
            await again

    with open_desk(desk) as url:
        asyncio.run(scenario(url))
    assert len(desk.asked) == 5


def test_a_host_whose_credentials_expired_off_the_bus_asks_for_new_ones(desk: FrontDesk, tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        desk.lifetime = timedelta(seconds=1)
        config = SimulatedHostConfig(name="sim", directory=tmp_path / "sim", server_url=url, token="t1")
        stop = asyncio.Event()
        # no control plane confirms anything, so the bus brings no new credentials
        running = asyncio.create_task(run_simulated_hosts([config], stop))
        await until(lambda: desk.hosts)
        desk.lifetime = timedelta(hours=1)
        await until(lambda: desk.renewals, within=30)
        async with ledger(desk) as book:
            await until(lambda: book.sessions, within=30)
        stop.set()
        await running

    with open_desk(desk) as url:
        asyncio.run(scenario(url))
