"""Simulated hosts as whole processes are: enrolled over HTTP, on a real broker, stopped and started again."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from front_desk import FrontDesk, open_desk
from scripted import new_vm, provisioning, until

from hostagent.simulated import SimulatedHostConfig, run_simulated_hosts
from vmorch.bus.bus import to_sending_host
from vmorch.bus.credentials import account_jwts, ensure_keys, nats_config, operator_jwt, server_credentials
from vmorch.bus.keys import verifier
from vmorch.bus.link import Link
from vmorch.core.codec import pack
from vmorch.core.hostcommands import Done
from vmorch.core.ids import CommandId, HostId, Position, SessionId
from vmorch.embedded import EmbeddedNats
from vmorch.wire import subjects
from vmorch.wire.envelopes import Answered, Confirmation, Hello, Order, Receipt, Report, seal, unseal

pytestmark = pytest.mark.nats
CLUSTER = "lab"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[FrontDesk]:
    keys, now = ensure_keys(tmp_path / "control"), datetime.now(UTC)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "nats.conf"
    config.write_text(nats_config(f"127.0.0.1:{port}", operator_jwt(keys, now), account_jwts(keys, CLUSTER, now)))
    with EmbeddedNats(tmp_path / "nats", config) as nats:
        yield FrontDesk(keys, CLUSTER, nats.url, {f"t{index}" for index in range(10)})


class Ledger:
    """The control plane's end of the bus: confirms everything."""

    def __init__(self, desk: FrontDesk, link: Link) -> None:
        self.desk = desk
        self.link = link
        self.reports: list[Report] = []
        self.sessions: dict[HostId, SessionId] = {}
        self.beating: set[HostId] = set()

    async def report(self, subject: str, _reply: str, data: bytes) -> bytes:
        host = subjects.host_of(subject)
        report: Report = unseal(data, Report, verifier(self.desk.hosts[host]))
        self.reports.append(report)
        if any(isinstance(item, Hello) for item in report.items):
            self.sessions[host] = report.session
        position = Position(len(self.reports))
        confirmation = Confirmation(
            through=report.through,
            position=position,
            incarnation="first",
            credentials=self.desk.credentials(host),
        )
        return seal(confirmation, self.desk.keys.server)

    async def beat(self, subject: str, _reply: str, _data: bytes) -> None:
        self.beating.add(subjects.host_of(subject))

    async def do(self, host: HostId, id: str, command: object) -> object:
        order = Order(
            id=CommandId(id),
            host=host,
            session=self.sessions[host],
            incarnation="first",
            epoch=1,
            deadline=30,
            command=pack(command),  # type: ignore[arg-type]
        )
        subject = subjects.command(CLUSTER, host)
        data = await self.link.request(subject, seal(order, self.desk.keys.server), 5)
        receipt: Receipt = unseal(data, Receipt, verifier(self.desk.hosts[host]))
        assert receipt.accepted, receipt

        def answers() -> list[object]:
            items = [item for report in self.reports for item in report.items]
            return [item.answer for item in items if isinstance(item, Answered) and item.id == id]

        await until(answers)
        return answers()[0]


@asynccontextmanager
async def ledger(desk: FrontDesk) -> AsyncIterator[Ledger]:
    link = await Link.connect(
        desk.nats_url,
        "server",
        lambda: server_credentials(desk.keys, CLUSTER, datetime.now(UTC)),
        desk.keys.server,
        subjects.server_inbox(CLUSTER),
    )
    book = Ledger(desk, link)
    await link.serve(subjects.reports(CLUSTER), book.report, reply_allowed=to_sending_host)
    await link.serve(subjects.heartbeats(CLUSTER), book.beat, reply_allowed=to_sending_host)
    try:
        yield book
    finally:
        await link.close()


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
