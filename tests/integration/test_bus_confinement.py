"""What a stolen host credential can do on a real NATS server: only what its host may do itself."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bus_fixtures import CLUSTER, Broker, Raw, a_broker, until
from nats import errors
from nats.aio.msg import Msg

from vmorch.bus import ReplyAllowed, to_control_plane, to_nobody, to_sending_host
from vmorch.bus.credentials import ensure_keys, host_credentials
from vmorch.bus.keys import KeyPair, create
from vmorch.core.ids import HostId, VmId
from vmorch.wire import subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

H1, H2 = HostId("h1"), HostId("h2")
OWN = f"vmorch.{CLUSTER}.host.h1"
OTHER = f"vmorch.{CLUSTER}.host.h2"
VICTIM = subjects.command(CLUSTER, H2)

FORBIDDEN_TO_PUBLISH = [
    f"{OTHER}.command",
    f"{OTHER}.report",
    f"{OTHER}.heartbeat",
    f"{OTHER}.telemetry.vm",
    f"{OWN}.command",
    f"{OWN}.telemetry",
    f"{OWN}.telemetry.vm.more",
    f"{OWN}.report.more",
    OWN,
    "vmorch.other.host.h1.report",
    f"vmorch.{CLUSTER}.log.vm.1.started",
    f"vmorch.{CLUSTER}.anything",
    "vmorch",
    "elsewhere",
    f"{subjects.inbox(H2)}.x.y",
    f"{subjects.inbox(H1)}.x.y",
    f"{subjects.server_inbox(CLUSTER)}.x.y",
    "_INBOX.x",
    "_R_.x",
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.x",
    "$JS.API.STREAM.DELETE.x",
    "$JS.API.STREAM.MSG.GET.x",
    "$JS.API.CONSUMER.CREATE.x",
    "$JS.ACK.x.y.1.1.1.1.1",
    "$JS.FC.x",
    "$KV.x.y",
    "$O.x.y",
    "$SYS.REQ.USER.INFO",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.REQ.CLAIMS.DELETE",
    "$SYS.REQ.SERVER.x.RELOAD",
    "$SYS.ACCOUNT.x.CONNECT",
    "$SRV.PING",
    "$NRG.V.x",
    "$G.x",
]

FORBIDDEN_TO_HEAR = [
    ">",
    "*",
    "*.>",
    "vmorch.>",
    f"vmorch.{CLUSTER}.>",
    f"vmorch.{CLUSTER}.host.>",
    f"vmorch.{CLUSTER}.host.*.command",
    f"vmorch.{CLUSTER}.*.h1.command",
    f"*.{CLUSTER}.host.h1.command",
    f"{OWN}.*",
    f"{OWN}.>",
    f"{OWN}.report",
    f"{OWN}.heartbeat",
    f"{OWN}.telemetry.*",
    f"{OTHER}.command",
    f"{OTHER}.report",
    f"{OTHER}.>",
    f"{subjects.inbox(H2)}.>",
    f"{subjects.inbox(H2)}.*",
    f"{subjects.inbox(H1)}",
    f"{subjects.server_inbox(CLUSTER)}.>",
    "_INBOX.>",
    "*.*.*",
    "_INBOX.*",
    "_R_.>",
    "$SYS.>",
    "$SYS.ACCOUNT.>",
    "$SYS.SERVER.>",
    "$JS.>",
    "$JS.API.>",
    "$JS.EVENT.ADVISORY.>",
    "$KV.>",
    "$SRV.>",
    f"vmorch.{CLUSTER}.log.>",
]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    yield from a_broker(tmp_path)


@pytest.fixture
async def thief(broker: Broker) -> AsyncIterator[Raw]:
    """Somebody with the credential and the key of h1, and a NATS client of his own."""
    thief = await broker.raw_host("h1")
    yield thief
    await thief.client.close()


async def silent(message: Msg) -> None:
    return None


async def test_a_host_may_publish_its_own_facts(broker: Broker, thief: Raw) -> None:
    for subject in (f"{OWN}.report", f"{OWN}.heartbeat", f"{OWN}.telemetry.vm"):
        await thief.client.publish(subject, b"")
    assert await thief.objections() == []


async def test_the_control_plane_hears_every_hosts_telemetry(broker: Broker, thief: Raw) -> None:
    server = await broker.control_plane()
    heard: list[str] = []

    async def hear(subject: str, reply: str, data: bytes) -> None:
        heard.append(subject)

    await server.serve(subjects.telemetries(CLUSTER), hear, reply_allowed=to_nobody)
    told = subjects.telemetry(CLUSTER, H1, VmId("0192f0c1-5b6a-7c3d-8e4f-0123456789ab"))
    await thief.client.publish(told, b"")
    await until(lambda: heard == [told])
    assert await thief.objections() == []
    await server.close()


async def test_a_host_may_hear_its_own_commands_and_inbox(broker: Broker, thief: Raw) -> None:
    for subject in (f"{OWN}.command", f"{subjects.inbox(H1)}.>", f"{subjects.inbox(H1)}.x.*"):
        await thief.client.subscribe(subject, cb=silent)
    assert await thief.objections() == []


async def test_a_host_may_publish_nothing_else(broker: Broker, thief: Raw) -> None:
    assert len(set(FORBIDDEN_TO_PUBLISH)) >= 35
    for subject in FORBIDDEN_TO_PUBLISH:
        await thief.client.publish(subject, b"forged")
        objections = await thief.objections()
        assert [text.lower() for text in objections] == [
            f'nats: permissions violation for publish to "{subject.lower()}"'
        ]


async def test_a_host_may_hear_nothing_else_alone_or_in_a_queue_group(broker: Broker, thief: Raw) -> None:
    assert len(set(FORBIDDEN_TO_HEAR)) >= 30
    for subject in FORBIDDEN_TO_HEAR:
        for queue in ("", "group", "*"):
            await thief.client.subscribe(subject, queue=queue, cb=silent)
            (objection,) = await thief.objections()
            assert objection.lower().startswith(
                f'nats: permissions violation for subscription to "{subject.lower()}"'
            )


async def test_nothing_forbidden_was_delivered_to_anybody(broker: Broker, thief: Raw) -> None:
    victim, server = await broker.host("h2"), await broker.control_plane()
    heard: list[str] = []

    async def hear(subject: str, reply: str, data: bytes) -> None:
        heard.append(subject)

    await victim.serve(VICTIM, hear, reply_allowed=lambda subject, reply: True)
    await victim.serve(f"{subjects.inbox(H2)}.>", hear, reply_allowed=lambda subject, reply: True)
    await server.serve(f"vmorch.{CLUSTER}.>", hear, reply_allowed=lambda subject, reply: True)
    await server.serve(f"{subjects.server_inbox(CLUSTER)}.>", hear, reply_allowed=lambda subject, reply: True)
    for subject in FORBIDDEN_TO_PUBLISH:
        await thief.client.publish(subject, b"forged", reply=f"{subjects.inbox(H1)}.x")
    await thief.client.publish(f"{OWN}.heartbeat", b"last")
    await until(lambda: f"{OWN}.heartbeat" in heard)
    assert heard == [f"{OWN}.heartbeat"]
    await server.close()
    await victim.close()


FOREIGN_REPLIES = [
    VICTIM,
    f"{OTHER}.report",
    f"{OWN}.command",
    f"{OWN}.report",
    f"{subjects.inbox(H2)}.x.y",
    f"{subjects.inbox(H1)}",
    f"{subjects.inbox(H1)}2.x",
    f"{subjects.server_inbox(CLUSTER)}.x.y",
    f"vmorch.{CLUSTER}.log.vm.1.started",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$JS.API.STREAM.DELETE.x",
    "_INBOX.x",
]


async def victims_of_answers(broker: Broker, thief: Raw, reply_allowed: ReplyAllowed) -> list[str]:
    """Where the answers of a control plane with such a rule went, when a thief names foreign reply subjects."""
    server, victim = await broker.control_plane(), await broker.host("h2")
    witness = await broker.control_plane()
    heard: list[str] = []
    handled: list[bytes] = []

    async def hear(subject: str, reply: str, data: bytes) -> None:
        if data == b"recorded":
            heard.append(subject)

    async def record(subject: str, reply: str, data: bytes) -> bytes:
        handled.append(data)
        return b"recorded"

    await victim.serve(VICTIM, hear, reply_allowed=to_nobody)
    await witness.serve(f"vmorch.{CLUSTER}.>", hear, reply_allowed=lambda subject, reply: True)
    await server.serve(subjects.reports(CLUSTER), record, reply_allowed=reply_allowed)
    for reply in FOREIGN_REPLIES:
        await thief.client.publish(f"{OWN}.report", b"forged", reply=reply)
    honest = await thief.client.request(f"{OWN}.report", b"honest", timeout=5)
    assert honest.data == b"recorded"
    # the answers above went over the server's one connection before this one
    await server.publish(f"vmorch.{CLUSTER}.last", b"recorded")
    await until(lambda: heard[-1:] == [f"vmorch.{CLUSTER}.last"])
    await victim.close()
    await server.close()
    await witness.close()
    return heard[:-1]


async def test_the_control_plane_answers_a_host_in_its_own_inbox_only(broker: Broker, thief: Raw) -> None:
    assert await victims_of_answers(broker, thief, to_sending_host) == []


async def test_without_the_check_a_host_could_make_the_control_plane_publish_for_it(
    broker: Broker, thief: Raw
) -> None:
    # shows that the test above tests something
    assert VICTIM in await victims_of_answers(broker, thief, lambda subject, reply: True)


async def test_the_servers_own_notices_do_not_go_to_foreign_reply_subjects(
    broker: Broker, thief: Raw
) -> None:
    """Nobody hears telemetry here, so that the server itself tells the sender that nobody does."""
    victim, server = await broker.raw_host("h2"), await broker.control_plane()
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    await victim.client.subscribe(VICTIM, cb=hear)
    await victim.client.subscribe(f"{subjects.inbox(H2)}.>", cb=hear)
    await victim.settle()
    for reply in FOREIGN_REPLIES:
        await thief.client.publish(f"{OWN}.telemetry.vm", b"", reply=reply)
    await thief.settle()
    await server.publish(VICTIM, b"order")
    await until(lambda: bool(heard))
    assert [(message.subject, message.data) for message in heard] == [(VICTIM, b"order")]
    await server.close()
    await victim.client.close()


async def test_a_host_answers_once_and_only_what_it_was_asked(broker: Broker, thief: Raw) -> None:
    server = await broker.control_plane()
    asked: list[str] = []

    async def hear(message: Msg) -> None:
        asked.append(message.reply)
        await message.respond(b"first")

    await thief.client.subscribe(f"{OWN}.command", cb=hear)
    await thief.settle()
    assert await server.request(f"{OWN}.command", b"", 5) == b"first"
    assert await thief.objections() == []
    for reply in (asked[0], asked[0] + "x"):
        await thief.client.publish(reply, b"second")
        assert len(await thief.objections()) == 1
    await server.close()


def test_an_agent_answers_the_control_plane_only() -> None:
    rule = to_control_plane(CLUSTER)
    assert rule(f"{OWN}.command", f"{subjects.server_inbox(CLUSTER)}.x.y")
    for reply in [*FOREIGN_REPLIES[:7], f"{subjects.server_inbox(CLUSTER)}2.x", "x"]:
        assert not rule(f"{OWN}.command", reply)


async def refused(broker: Broker, jwt: str, key: KeyPair) -> bool:
    with suppress(errors.Error):
        raw = await broker.raw(jwt, key, "_INBOX_host_h1")
        await raw.client.close()
        return False
    return True


async def test_a_stolen_jwt_is_useless_without_its_key(broker: Broker) -> None:
    pair = create("user")
    jwt = broker.host_jwt("h1", pair)
    assert not await refused(broker, jwt, pair)
    assert await refused(broker, jwt, create("user"))


async def test_credentials_that_the_cluster_did_not_issue_are_refused(broker: Broker, tmp_path: Path) -> None:
    pair, now = create("user"), datetime.now(UTC)
    foreign = ensure_keys(tmp_path / "foreign")
    assert await refused(
        broker, host_credentials(foreign, CLUSTER, H1, pair.public, now, timedelta(hours=1)), pair
    )
    header, body, signature = broker.host_jwt("h1", pair).split(".")
    claims = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    claims["nats"]["pub"]["allow"] = [">"]
    widened = urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    assert await refused(broker, f"{header}.{widened}.{signature}", pair)
    unsigned = urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').decode().rstrip("=")
    assert await refused(broker, f"{unsigned}.{widened}.", pair)
    assert await refused(broker, "", pair)


async def test_an_expired_credential_is_refused(broker: Broker) -> None:
    pair = create("user")
    past = datetime.now(UTC) - timedelta(hours=1)
    assert await refused(
        broker,
        host_credentials(broker.keys, CLUSTER, H1, pair.public, past, timedelta(minutes=59)),
        pair,
    )


async def test_a_host_with_too_many_subscriptions_is_stopped(broker: Broker, thief: Raw) -> None:
    for n in range(40):
        with suppress(errors.Error):
            await thief.client.subscribe(f"{subjects.inbox(H1)}.{n}", cb=silent)
    await until(
        lambda: thief.client.is_closed or any("maximum subs" in text.lower() for text in thief.errors),
        within=5,
    )
