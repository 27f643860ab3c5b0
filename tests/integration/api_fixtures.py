"""The HTTP API over the real control plane, log and read models; hosts speak through events put into the log."""

import asyncio
import base64
import hashlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from databases import Database
from sqlalchemy.ext.asyncio import create_async_engine

from vmorch.bus import keys
from vmorch.bus.credentials import ensure_keys
from vmorch.bus.memory import MemoryBus
from vmorch.core.aggregates.host import SessionStarted
from vmorch.core.aggregates.token import Role
from vmorch.core.aggregates.vm import OperationFinished, StepDone, Vm, VmDeleted
from vmorch.core.codec import encode, unpack_event
from vmorch.core.fleet import Fleet
from vmorch.core.hostcommands import Observed, Power
from vmorch.core.ids import GiB, MiB, OperationId, Position, SessionId, Stream, stream
from vmorch.core.messages import Event, Meta
from vmorch.core.records import Append, StreamAppend
from vmorch.core.spec import HostFacts
from vmorch.edge.addresses import network
from vmorch.edge.app import build_app
from vmorch.edge.images import ImageStore
from vmorch.edge.serve import serve
from vmorch.edge.settings import EdgeSettings
from vmorch.engine.authority import ensure_authority
from vmorch.engine.caller import Caller
from vmorch.engine.control import Control, Identity
from vmorch.engine.history import History
from vmorch.engine.logkeys import LogKeys, log_origin
from vmorch.engine.masterkey import MasterKey
from vmorch.engine.sealer import Sealer
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.log.keyring import PostgresKeyring
from vmorch.log.seals import Seals
from vmorch.log.state_store import StateStore
from vmorch.log.store import EventLog
from vmorch.system import SystemClock, new_id, secrets_of
from vmorch.views.projector import Projector
from vmorch.views.queries import ReadModels
from vmorch.wire import subjects

RAW = b"\x55" * 1024 * 1024
"""A raw image: a mebibyte that is no other format."""


@dataclass
class Api:
    """A running API and the means to be its world."""

    socket: Path
    control: Control
    log: EventLog
    sealer: Sealer
    images: ImageStore
    tokens: dict[Role, str]
    stop: asyncio.Event
    serving: asyncio.Task[None]

    @property
    def fleet(self) -> Fleet:
        return self.control.fleet

    def client(self, role: Role | None = "admin") -> httpx2.AsyncClient:
        headers = {} if role is None else {"Authorization": f"Bearer {self.tokens[role]}"}
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket))
        return httpx2.AsyncClient(transport=transport, base_url="http://vmorch", headers=headers, timeout=20)

    async def record(self, at: Stream, *events: Event) -> None:
        """Put facts into the log, as a host's report would."""
        meta = Meta(actor="host:test", occurred_at=datetime.now(UTC))
        part = StreamAppend(
            stream=at, expected=self.fleet.version(at), events=tuple(encode(each, meta) for each in events)
        )
        appended = await self.log.append(Append(streams=(part,)))
        await self.control.world.reach(appended.last)

    async def settle(self) -> None:
        """Wait until the read models show everything."""
        assert await self.control.settled(Position(await self.log.head()), 20)

    async def enrol(self, name: str) -> keys.KeyPair:
        """Invite and admit a host over the API; it is connected afterwards."""
        pair = keys.create("user")
        async with self.client() as client:
            invited = (await client.post("/v1/hosts", json={"name": name})).json()
            asked = {"token": invited["token"], "key": pair.public, "machine_id": f"machine-{name}"}
            answer = await client.post("/v1/enroll", json=asked)
            assert answer.status_code == 200, answer.text
        facts = HostFacts(
            hostname=name, machine_id=f"machine-{name}", cpus=8, memory=MiB(16384), local_gib=GiB(500)
        )
        session = SessionStarted(session=SessionId(f"session-{name}"), facts=facts)
        await self.record(stream("host", invited["host"]), session)
        return pair

    async def add_image(self, name: str = "debian-13", data: bytes = RAW) -> dict[str, Any]:
        async with self.client() as client:
            answer = await client.put(f"/v1/images/{name}/content", content=data)
            assert answer.status_code == 201, answer.text
            return dict(answer.json()["item"])

    async def create_vm(self, name: str = "web-1") -> dict[str, Any]:
        async with self.client() as client:
            answer = await client.post("/v1/vms", json={"name": name, "image": "debian-13", "memory": 512})
            assert answer.status_code == 202, answer.text
            return dict(answer.json())

    async def finish_operation(self, id: str, power: Power = "running") -> None:
        """Let every step of an operation succeed; the VM is in this state then."""
        seen = Observed(power=power, vcpus=1, memory=MiB(512), addresses=("10.0.0.7",))
        await self._finish(id, seen)

    async def finish_deletion(self, id: str) -> None:
        """Let every step of a deletion succeed."""
        vm = await self._finish(id, Observed(power="absent"))
        await self.record(stream("vm", vm.id), VmDeleted())

    async def _finish(self, id: str, seen: Observed) -> Vm:
        found = self.fleet.operation(OperationId(id))
        assert found is not None
        vm, operation = found
        at = stream("vm", vm.id)
        for index in range(operation.progress.done, len(operation.steps)):
            await self.record(at, StepDone(operation=operation.id, index=index, observed=seen))
            for change in operation.steps[index].then:
                await self.record(change.stream, unpack_event(change.event))
        await self.record(at, OperationFinished(operation=operation.id, outcome="succeeded"))
        return vm


@asynccontextmanager
async def api_over(database: Database, directory: Path, **settings: Any) -> AsyncIterator[Api]:
    archives = directory / "archives"
    log, seals = await EventLog.open(database.app_url, archives), Seals(database.app_url)
    engine = create_async_engine(database.app_url.replace("postgresql://", "postgresql+psycopg://", 1))
    projector = Projector(log, engine)
    states = StateStore(database.app_url, archives=archives)
    history = History(log, states)
    bus = MemoryBus().link("server", subjects.server_inbox("test"))
    identity = Identity(
        cluster="test",
        nats_url="nats://127.0.0.1:4222",
        keys=ensure_keys(directory / "keys"),
        authority=ensure_authority(directory / "keys", "test", datetime.now(UTC)),
    )
    keyring = PostgresKeyring(database.app_url)
    subject_keys = SubjectKeys(keyring, MasterKey(b"m" * 32), os.urandom)
    control = Control(
        log, bus, projector.reached, identity, SystemClock(), new_id, secrets_of(b"test"), subject_keys
    )
    await projector.start()
    await control.start()
    log_keys = LogKeys(directory / "keys", log_origin("test", log.incarnation))
    sealer = Sealer(log, seals, log_keys, control.recorder, SystemClock())
    await control.announce_log_key(log_keys.create().text(), orphaned=False, actor="keeper")
    images = ImageStore(directory / "images")
    options = {"allowed_networks": (network("127.0.0.0/8"),), "max_image_bytes": 64 * 1024**2, **settings}
    app = build_app(
        control,
        ReadModels(engine, projector),
        log,
        seals,
        images,
        EdgeSettings(cluster="test", version="1.2.3", **options),
        bus=bus,
        history=history,
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(control.world.follow()), group.create_task(projector.run())]
        serving = group.create_task(serve(app, directory / "api.sock", None, stop))
        tokens: dict[Role, str] = {}
        roles: tuple[Role, ...] = ("viewer", "auditor", "operator", "admin")
        for role in roles:
            _, tokens[role] = await control.create_token(
                f"the-{role}", role, None, Caller(actor="setup", role="admin")
            )
        try:
            yield Api(directory / "api.sock", control, log, sealer, images, tokens, stop, serving)
        finally:
            stop.set()
            await serving
            for task in running:
                task.cancel()
    await bus.close()
    await states.close()
    await keyring.close()
    await engine.dispose()
    await seals.close()
    await log.close()


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    """The API over an empty fleet."""
    with tempfile.TemporaryDirectory(prefix="vmorch-api-") as directory:
        async with api_over(database, Path(directory)) as running:
            yield running


def signed(
    pair: keys.KeyPair, host: str, path: str, *, at: float | None = None, body: bytes | None = None
) -> dict[str, str]:
    """The headers by which a host shows who it is, to GET something or to POST `body`."""
    stamp = str(int(time.time() if at is None else at))
    digest = "" if body is None else hashlib.sha256(body).hexdigest()
    text = f"GET {path} {stamp}" if body is None else f"POST {path} {stamp} {digest}"
    signature = pair.sign(text.encode())
    return ({"X-Vmorch-Content-SHA256": digest} if digest else {}) | {
        "X-Vmorch-Host": host,
        "X-Vmorch-Time": stamp,
        "X-Vmorch-Signature": base64.b64encode(signature).decode(),
    }


async def sse(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any, str]]:
    """Server-sent events as (event, data, id); comments are left out."""
    event, data, id = "", "", ""
    async for line in lines:
        if not line and data:
            yield event, json.loads(data), id
            event, data, id = "", "", ""
        field, _, value = line.partition(": ")
        if field == "event":
            event = value
        elif field == "data":
            data = value
        elif field == "id":
            id = value


def names(items: Iterable[dict[str, Any]]) -> list[str]:
    return [each["name"] for each in items]
