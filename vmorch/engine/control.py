"""The control plane as one object: commands of callers, admission of hosts, and the live state to watch.

Composed once per server process. Must not contain decisions of its own.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from vmorch.bus.bus import Bus, to_nobody, to_sending_host
from vmorch.bus.credentials import ControlKeys, host_credentials
from vmorch.core.aggregates import cluster as clusters
from vmorch.core.aggregates import host as hosts
from vmorch.core.aggregates.host import Host
from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId, Position, Stream, stream
from vmorch.core.operation import Change, change
from vmorch.engine.authority import Authority, read_request
from vmorch.engine.drains import Drains
from vmorch.engine.effects import Clock, Ids, Secrets
from vmorch.engine.erasing import Erasing
from vmorch.engine.errands import Errands
from vmorch.engine.handle import Handler
from vmorch.engine.liveness import Liveness
from vmorch.engine.operations import Operations
from vmorch.engine.reconcile import Reconcile
from vmorch.engine.recorder import Recorder
from vmorch.engine.reports import Reports
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.engine.telemetry import Samples
from vmorch.engine.upkeep import Upkeep
from vmorch.engine.world import World
from vmorch.log.interface import Log
from vmorch.wire import subjects
from vmorch.wire.certificates import Issued, Revoked
from vmorch.wire.envelopes import seal

Reached = Callable[[Position, float], Awaitable[bool]]
"""Whether the read models stand at a position within so many seconds."""

LIFETIME = timedelta(hours=1)
"""How long a host's bus credentials last."""


class Enrolled(Struct, frozen=True, kw_only=True):
    """What a host is told when it is admitted."""

    host: HostId
    name: str
    cluster: str
    incarnation: str
    server_key: str
    nats_url: str
    credentials: str


class Identity(Struct, frozen=True, kw_only=True):
    """Who the control plane is towards its hosts."""

    cluster: str
    nats_url: str
    keys: ControlKeys
    authority: Authority


class Control(Handler):
    """One control plane: its world, its commands and its two engines."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        reached: Reached,
        identity: Identity,
        clock: Clock,
        ids: Ids,
        secrets: Secrets,
        keys: SubjectKeys,
    ) -> None:
        self.world = World(log)
        super().__init__(Recorder(self.world, clock), ids, secrets, keys)
        self.bus = bus
        self.reached = reached
        self.identity = identity
        signer, cluster = identity.keys.server, identity.cluster
        self.operations = Operations(self.recorder, bus, cluster, signer, log.incarnation, keys)
        self.reports = Reports(self.recorder, cluster, signer, log.incarnation, self._renewed)
        self.liveness = Liveness(self.recorder, bus)
        self.errands = Errands(self.recorder, self.operations.orders)
        self.reconcile = Reconcile(self.recorder, ids)
        self.drains = Drains(self.recorder, ids)
        self.upkeep = Upkeep(self.recorder, ids)
        self.erasing = Erasing(self.recorder, keys)
        self.samples = Samples(self.world.fleet)
        self._leading = False
        self._serving = False

    async def start(self) -> None:
        """Know the whole log."""
        await self.world.load()
        # whoever serves watchers hears the hosts, whether or not it leads
        telemetries = subjects.telemetries(self.identity.cluster)
        await self.bus.serve(telemetries, self.samples.handle, reply_allowed=to_nobody)

    async def run(self) -> None:
        """Follow the log and lead, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.world.follow(), name="world")
            group.create_task(self.lead(), name="lead")

    async def lead(self) -> None:
        """Take reports, drive operations and judge silence, until cancelled."""
        # hosts take a position below one that they were told before for a log restored from a backup
        await self.world.reach(await self.world.log.head())
        self._leading = True
        await self._serve_hosts()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.operations.run(), name="operations")
                group.create_task(self.liveness.run(), name="liveness")
                group.create_task(self.errands.run(), name="errands")
                group.create_task(self.reconcile.run(), name="reconcile")
        finally:
            self._leading = False

    async def _serve_hosts(self) -> None:
        """Hear hosts from the first time that this process leads; before, they find nobody and try again soon."""
        if self._serving:
            return
        self._serving = True
        cluster = self.identity.cluster
        await self.bus.serve(subjects.reports(cluster), self._report, reply_allowed=to_sending_host)
        await self.bus.serve(subjects.heartbeats(cluster), self.liveness.handle, reply_allowed=to_nobody)

    async def _report(self, subject: str, reply: str, data: bytes) -> bytes | None:
        return await self.reports.handle(subject, reply, data) if self._leading else None

    async def enrol_host(self, token: str, key: str, machine_id: str) -> Enrolled:
        """Admit the host that shows its one-time token. Raises Rejected `bad-token` or `token-expired`."""
        host = await self.admit_host(token, key, machine_id)
        return Enrolled(
            host=host.id,
            name=host.name,
            cluster=self.identity.cluster,
            incarnation=self.world.log.incarnation,
            server_key=self.identity.keys.server.public,
            nats_url=self.identity.nats_url,
            credentials=self._renewed(host, self.recorder.clock.now()),
        )

    async def renew_host(self, id: HostId) -> str:
        """New bus credentials for an enrolled host, which has proven its key. Raises Rejected `no-such-host`."""
        return self._renewed(self._member(id), self.recorder.clock.now())

    async def certify_host(self, id: HostId, csr: str) -> bytes:
        """A certificate for the key of an enrolled host's request, sealed for the host, which has proven who it is.

        Raises Rejected `bad-csr`, `foreign-name`, `key-reused`, `too-many-certificates`, `other-authority` or
        `no-such-host`.
        """
        wish, authority = read_request(csr), self.identity.authority
        name = self._member(id).name

        def decide() -> tuple[Iterable[Change], str]:
            host, now = self._member(id), self.recorder.clock.now()
            asked = (wish.common_name, *wish.names)
            names = hosts.may_certify(host, wish.digest, asked, self.fleet.hosts.values(), now)
            adopted = clusters.adopt_authority(self.fleet.cluster, authority.fingerprint)
            signed, pem = authority.issue(wish, names, now)
            return [
                change(stream("host", id), hosts.certified(signed)),
                *(change(clusters.STREAM, event) for event in adopted),
            ], pem

        _, pem = await self.recorder.record(decide, lambda _: self.recorder.meta(actor=f"host:{name}"))
        issued = Issued(host=id, certificate=pem, authority=authority.certificate, revoked=self._revoked())
        return seal(issued, self.identity.keys.server)

    def revoked(self) -> bytes:
        """The list of the certificates that no host may trust any more, signed and sealed."""
        return seal(Revoked(revoked=self._revoked()), self.identity.keys.server)

    def _revoked(self) -> str:
        fleet, now = self.fleet, self.recorder.clock.now()
        found = [each for host in fleet.hosts.values() for each in host.revocations if each.expires > now]
        return self.identity.authority.revoked(found, fleet.position, now)

    def _member(self, id: HostId) -> Host:
        host = self.fleet.hosts.get(id)
        if host is None or host.retired or not host.key:
            raise Rejected("no-such-host", f"no host has the id {id}")
        return host

    @property
    def poisoned(self) -> Mapping[Stream, str]:
        """Streams with an event that the live state cannot read, and why: nothing is decided on them."""
        return self.world.poisoned

    async def settled(self, position: Position, timeout: float) -> bool:
        """Whether the read models show everything up to `position` within `timeout` seconds."""
        return await self.reached(position, timeout)

    def changes(self) -> AsyncGenerator[Position, None]:
        """The position now, and again whenever it has moved."""
        return self.world.changes()

    def _renewed(self, host: Host, now: datetime) -> str:
        keys = self.identity.keys
        return host_credentials(keys, self.identity.cluster, host.id, host.key, now, LIFETIME)
