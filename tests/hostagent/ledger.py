"""A control plane on a real broker that confirms everything, for tests of whole agents."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from front_desk import FrontDesk
from scripted import until

from vmorch.bus.bus import BusError, to_sending_host
from vmorch.bus.credentials import account_jwts, ensure_keys, nats_config, operator_jwt, server_credentials
from vmorch.bus.keys import verifier
from vmorch.bus.link import Link
from vmorch.core.codec import pack
from vmorch.core.hostcommands import Answer
from vmorch.core.ids import CommandId, HostId, Position, SessionId
from vmorch.core.messages import HostCommand
from vmorch.embedded import EmbeddedNats
from vmorch.wire import subjects
from vmorch.wire.envelopes import Answered, Confirmation, Hello, Order, Receipt, Report, seal, unseal

CLUSTER = "lab"


@contextmanager
def broker(tmp_path: Path) -> Iterator[FrontDesk]:
    """A broker, and the front desk of a cluster on it."""
    keys, now = ensure_keys(tmp_path / "control"), datetime.now(UTC)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "nats.conf"
    config.write_text(nats_config(f"127.0.0.1:{port}", operator_jwt(keys, now), account_jwts(keys, CLUSTER, now)))
    with EmbeddedNats(tmp_path / "nats", config) as nats:
        yield FrontDesk(keys, CLUSTER, nats.url, {f"t{index}" for index in range(10)}, tmp_path / "authority")


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

    async def do(self, host: HostId, id: str, command: HostCommand) -> Answer:
        """Send an order until it is accepted, and return its answer, however often the agent dies meanwhile."""
        while not self.answers(id):
            session = self.sessions.get(host)
            if session is not None and await self._accepted(host, id, session, command):
                await self._answered_or_over(host, id, session)
            else:
                await asyncio.sleep(0.02)
        return self.answers(id)[0]

    def answers(self, id: str) -> list[Answer]:
        """Every answer that came for an order."""
        items = [item for report in self.reports for item in report.items]
        return [item.answer for item in items if isinstance(item, Answered) and item.id == id]

    async def _answered_or_over(self, host: HostId, id: str, session: SessionId) -> None:
        await until(lambda: self.answers(id) or self.sessions.get(host) != session)

    async def _accepted(self, host: HostId, id: str, session: SessionId, command: HostCommand) -> bool:
        order = Order(
            id=CommandId(id),
            host=host,
            session=session,
            incarnation="first",
            epoch=1,
            deadline=30,
            command=pack(command),
        )
        try:
            data = await self.link.request(subjects.command(CLUSTER, host), seal(order, self.desk.keys.server), 2)
        except BusError:
            return False
        receipt: Receipt = unseal(data, Receipt, verifier(self.desk.hosts[host]))
        return receipt.accepted


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
