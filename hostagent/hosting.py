"""Bring one enrolled host to life and down again: journal, bus link and agent, in that order.

The same for a real host and a simulated one. Must not choose the hypervisor.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from hostagent import identity as files
from hostagent.agent import Agent
from hostagent.certificates import Certificates
from hostagent.credentials import Credentials
from hostagent.effects import Effects
from hostagent.hypervisor import Hypervisor
from hostagent.identity import Identity
from hostagent.journal import Journal
from hostagent.pinning import Pins
from hostagent.session import Party
from vmorch.bus.keys import KeyPair, verifier
from vmorch.bus.link import Link
from vmorch.wire import subjects

FINISH_WITHIN = 5.0
"""Seconds that running orders have when the agent is told to stop; what still runs is left as an intent."""
_LEAVE_WITHIN, _LET_GO_WITHIN = 3.0, 1.0

_log = structlog.get_logger(__name__)


async def host(
    identity: Identity,
    pair: KeyPair,
    state_dir: Path,
    hypervisor: Hypervisor,
    effects: Effects,
    stop: asyncio.Event,
    begun: Callable[[], None] = lambda: None,
    certificates: Certificates | None = None,
) -> None:
    """Be this host's agent until `stop`, then end within 10 seconds. `begun` is called when orders can come;
    `certificates` are kept in force meanwhile.

    Raises NotEnrolled, UnsafeBroker, sqlite3.OperationalError if the journal is in use or damaged.
    """
    credentials = Credentials(state_dir, identity, pair, effects)
    journal = Journal(state_dir / files.JOURNAL)
    try:
        pins = Pins(journal, identity.incarnation, identity.machine_id, pair.public)
        party = Party(identity.cluster, identity.host, pair, verifier(identity.server_key))
        agent = Agent(party, journal, hypervisor, pins, effects, credentials.replace)
        link = await Link.connect(
            identity.nats_url,
            f"host {identity.name}",
            credentials.newest,
            pair,
            subjects.inbox(identity.host),
            on_state=agent.connection_changed,
        )
        try:
            begun()
            await _until(stop, agent, link, credentials, certificates)
        finally:
            await _leave(link)
    finally:
        journal.close()
        try:
            async with asyncio.timeout(_LET_GO_WITHIN):
                await effects.blocking.run(hypervisor.close)
        except TimeoutError:
            _log.warning("the hypervisor did not let go")


async def _until(
    stop: asyncio.Event, agent: Agent, link: Link, credentials: Credentials, certificates: Certificates | None
) -> None:
    working: list[asyncio.Task[None]] = [
        asyncio.create_task(agent.run(link), name="agent"),
        asyncio.create_task(credentials.renew_while_away(lambda: link.connected), name="credentials"),
    ]
    if certificates is not None:
        working.append(asyncio.create_task(certificates.keep(agent.facts_changed), name="certificates"))
    stopping = asyncio.create_task(stop.wait(), name="stop")
    everything: list[asyncio.Task[Any]] = [*working, stopping]
    try:
        await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        await agent.close(FINISH_WITHIN)
        for task in working:
            if task.done():
                # nothing but a fault ends them
                task.result()
    finally:
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)


async def _leave(link: Link) -> None:
    try:
        async with asyncio.timeout(_LEAVE_WITHIN):
            await link.close()
    except TimeoutError:
        _log.warning("left the bus without a word")
