"""Certificates of hosts over HTTP: who gets one for which name, what is recorded, and what is revoked.

A compromised host holds a valid host key; what it must not get is a certificate for anybody else's name.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from api_fixtures import Api, api, signed  # noqa: F401
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hostagent.pki import Draft
from vmorch.bus import keys
from vmorch.core.aggregates.host import HostUnreachable
from vmorch.core.errors import Rejected
from vmorch.core.ids import Position, stream
from vmorch.engine.authority import ensure_authority
from vmorch.engine.caller import Caller
from vmorch.engine.control import Control
from vmorch.system import SystemClock, new_id
from vmorch.wire.certificates import Issued
from vmorch.wire.envelopes import Forged, unseal

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ADMIN = Caller(actor="setup", role="admin", reason="test")


def request(*names: str, name: str = "hv-1", key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    draft = Draft(None, key or ec.generate_private_key(ec.SECP256R1()))  # type: ignore[arg-type]
    return json.dumps({"csr": draft.request(name, names)}).encode()


class Asker:
    """A host that asks for certificates, as its agent would or as whoever stole its key would."""

    def __init__(self, api: Api, client: httpx2.AsyncClient, name: str, pair: keys.KeyPair) -> None:  # noqa: F811
        self.api, self.client, self.pair = api, client, pair
        self.id = api.fleet.find_host(name).id

    @property
    def path(self) -> str:
        return f"/v1/hosts/{self.id}/certificate"

    async def post(self, body: bytes, **headers: str) -> httpx2.Response:
        return await self.client.post(
            self.path, content=body, headers=signed(self.pair, self.id, self.path, body=body) | headers
        )

    async def certified(self, body: bytes) -> Issued:
        answer = await self.post(body)
        assert answer.status_code == 200, answer.text
        server = keys.verifier(self.api.control.identity.keys.server.public)
        issued: Issued = unseal(answer.content, Issued, server)
        return issued

    async def refused(self, body: bytes, **headers: str) -> tuple[int, str]:
        answer = await self.post(body, **headers)
        return answer.status_code, answer.json()["code"]


@pytest.fixture
async def asker(api: Api) -> Any:  # noqa: F811
    pair = await api.enrol("hv-1")
    async with api.client(None) as client:
        yield Asker(api, client, "hv-1", pair)


async def revoked(client: httpx2.AsyncClient, **options: Any) -> set[str]:
    answer = await client.get("/v1/certificates/revoked", **options)
    assert answer.status_code == 200, answer.text
    listed = x509.load_pem_x509_crl(answer.json()["body"]["revoked"].encode())
    return {f"{each.serial_number:x}" for each in listed}


async def test_a_host_gets_a_certificate_and_the_log_says_which(api: Api, asker: Asker) -> None:  # noqa: F811
    issued = await asker.certified(request("10.0.0.1"))
    made = x509.load_pem_x509_certificate(issued.certificate.encode())
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(issued.authority.encode()))
    assert not list(x509.load_pem_x509_crl(issued.revoked.encode()))
    async with api.client("auditor") as auditor:
        events = (await auditor.get("/v1/events", params={"kind": "host.certified"})).json()["items"]
        shown = (await auditor.get("/v1/hosts/hv-1")).json()["item"]["certificate"]
    [event] = events
    assert event["actor"] == "host:hv-1"
    assert event["data"]["fingerprint"] == made.fingerprint(hashes.SHA256()).hex()
    assert event["data"]["names"] == ["hv-1", "10.0.0.1"]
    assert datetime.fromisoformat(event["data"]["expires"]) == made.not_valid_after_utc
    assert shown == {key: event["data"][key] for key in ("fingerprint", "serial", "names", "expires")}
    assert made.not_valid_after_utc - datetime.now(UTC) > timedelta(days=89)


async def test_the_answer_is_sealed_by_the_control_plane(api: Api, asker: Asker) -> None:  # noqa: F811
    answer = (await asker.post(request())).content
    server = keys.verifier(api.control.identity.keys.server.public)
    assert unseal(answer, Issued, server).host == asker.id
    other = api.control.identity.authority.certificate[100:120].encode()
    for forged in (answer.replace(other, other[::-1]), answer.replace(asker.id.encode(), b"0" * len(asker.id))):
        assert forged != answer
        with pytest.raises(Forged):
            unseal(forged, Issued, server)


async def test_no_host_gets_a_certificate_for_another_one(api: Api, asker: Asker) -> None:  # noqa: F811
    second = Asker(api, asker.client, "hv-2", await api.enrol("hv-2"))
    await second.certified(request("10.0.0.2", name="hv-2"))
    for names in (("hv-2",), ("hv-2.example",), ("10.0.0.2",), ("10.0.0.1", "10.0.0.2"), ("localhost",)):
        assert await asker.refused(request(*names)) == (403, "foreign-name"), names
    assert await asker.refused(request(name="hv-2")) == (403, "foreign-name")
    # with a good signature of its own, at the other one's place
    body = request(name="hv-2")
    stolen = await asker.client.post(
        second.path, content=body, headers=signed(asker.pair, asker.id, second.path, body=body)
    )
    assert (stolen.status_code, stolen.json()["code"]) == (403, "forbidden")
    posing = await asker.client.post(
        second.path, content=body, headers=signed(asker.pair, second.id, second.path, body=body)
    )
    assert (posing.status_code, posing.json()["code"]) == (401, "unauthenticated")
    assert len(api.fleet.find_host("hv-2").certificates) == 1
    # its address is free again only when it has left
    await api.control.on_host("hv-2", "retire", {}, ADMIN)
    await asker.certified(request("10.0.0.2"))
    assert api.fleet.find_host("hv-1").certificates[-1].names == ("hv-1", "10.0.0.2")


async def test_what_is_heard_on_the_way_is_of_no_use(api: Api, asker: Asker) -> None:  # noqa: F811
    body = request("10.0.0.1")
    headers = signed(asker.pair, asker.id, asker.path, body=body)
    assert (await asker.client.post(asker.path, content=body, headers=headers)).status_code == 200

    async def code(content: bytes, given: dict[str, str]) -> tuple[int, str]:
        answer = await asker.client.post(asker.path, content=content, headers=given)
        return answer.status_code, answer.json()["code"]

    # the same once more; another request under these headers, with and without its own digest
    assert await code(body, headers) == (409, "key-reused")
    mine = request("10.0.0.1")
    own = signed(keys.create("user"), asker.id, asker.path, body=mine)
    assert await code(mine, headers) == (401, "unauthenticated")
    digest = {"X-Vmorch-Content-SHA256": own["X-Vmorch-Content-SHA256"]}
    assert await code(mine, headers | digest) == (401, "unauthenticated")
    without = {name: value for name, value in headers.items() if name != "X-Vmorch-Content-SHA256"}
    assert await code(mine, without) == (401, "unauthenticated")
    # a signature for a GET opens nothing that changes
    assert await code(mine, signed(asker.pair, asker.id, asker.path) | digest) == (401, "unauthenticated")
    late = signed(asker.pair, asker.id, asker.path, body=mine, at=datetime.now(UTC).timestamp() - 301)
    assert await code(mine, late) == (401, "unauthenticated")
    assert len(api.fleet.find_host("hv-1").certificates) == 1


async def test_a_bad_request_is_refused_with_its_code(asker: Asker) -> None:
    assert await asker.refused(b'{"csr": "hello"}') == (422, "bad-csr")
    assert await asker.refused(b"{}") == (400, "bad-request")
    assert await asker.refused(json.dumps({"csr": "x" * 9000}).encode()) == (400, "bad-request")
    assert await asker.refused(b" " * 100_000 + request()) == (413, "too-large")
    async with asker.api.client("admin") as admin:
        assert (await admin.post(asker.path, content=request())).status_code == 401


async def test_certificates_of_hosts_that_left_or_began_anew_are_revoked(api: Api, asker: Asker) -> None:  # noqa: F811
    second = Asker(api, asker.client, "hv-2", await api.enrol("hv-2"))
    for each, name in ((asker, "hv-1"), (second, "hv-2")):
        await each.certified(request(name=name))
    path = "/v1/certificates/revoked"
    first_headers = {"headers": signed(asker.pair, asker.id, path)}
    assert await revoked(asker.client, **first_headers) == set()
    gone = {each.serial for each in api.fleet.find_host("hv-2").certificates}
    await api.control.on_host("hv-2", "retire", {}, ADMIN)
    assert await revoked(asker.client, **first_headers) == gone
    # a host that is enrolled again is another one, though it has the name
    before = {each.serial for each in api.fleet.find_host("hv-1").certificates}
    await _say_unreachable(api, "hv-1")
    await api.enrol("hv-1")
    async with api.client("operator") as operator:
        assert await revoked(operator) == gone | before
        assert (await operator.get("/v1/hosts/hv-1")).json()["item"]["certificate"] is None
    async with api.client("viewer") as viewer:
        assert (await viewer.get(path)).status_code == 403


async def _say_unreachable(api: Api, name: str) -> None:  # noqa: F811
    host = api.fleet.find_host(name)
    await api.record(stream("host", host.id), HostUnreachable(session=host.session, silent=20))


async def test_no_private_key_is_in_the_log_or_in_any_answer(api: Api, asker: Asker) -> None:  # noqa: F811
    answer = (await asker.post(request("10.0.0.1"))).text
    log = b"".join(each.data + each.meta for each in await api.log.read(0, 10_000))  # type: ignore[arg-type]
    assert b"PRIVATE" not in log + answer.encode()


async def test_the_policy_is_seen_by_all_and_changed_by_admins_with_a_reason(api: Api) -> None:  # noqa: F811
    async with api.client("viewer") as viewer, api.client("admin") as admin:
        shown = (await viewer.get("/v1/cluster")).json()["item"]
        assert shown["policy"] == {
            "clear_migration": False, "migrations_out": 4, "migrations_in": 4, "migrations": 32,
        }  # fmt: skip
        assert (await viewer.patch("/v1/cluster", json={"migrations": 1})).status_code == 403
        bare = await admin.patch("/v1/cluster", json={"clear_migration": True})
        assert (bare.status_code, bare.json()["code"]) == (400, "reason-missing")
        for body in ({"migrations": 0}, {"migrations": 1001}, {"clear_migrations": True}, {"migrations": "4"}):
            assert (await admin.patch("/v1/cluster", json=body)).json()["code"] == "bad-request", body
        done = await admin.patch(
            "/v1/cluster", json={"clear_migration": True, "migrations_out": 1}, headers={"Vmorch-Reason": "CHG-1"}
        )
        assert done.status_code == 202, done.text
        again = await admin.patch("/v1/cluster", json={"migrations_out": 1})
        assert (again.status_code, again.json()["code"]) == (409, "already-so")
        after = (await viewer.get("/v1/cluster")).json()["item"]
        assert (after["policy"]["clear_migration"], after["policy"]["migrations_out"]) == (True, 1)
        assert after["policy"]["migrations"] == 32
        assert (await viewer.get("/v1/status")).json()["clearMigration"] is True
        asked = {"subject": "cluster/policy", "actor": "the-admin"}
        [event] = (await viewer.get("/v1/events", params=asked)).json()["items"]
        assert (event["actor"], event["reason"]) == ("the-admin", "CHG-1")
        # whole, so that another default some day does not change what was in force
        assert event["data"]["policy"] == after["policy"]
        checks = (await viewer.get("/v1/doctor")).json()["items"]
        assert [each["check"] for each in checks if each["check"] == "policy"] == ["policy"]


async def test_two_servers_that_sign_at_once_give_no_name_to_two_hosts(api: Api, asker: Asker) -> None:  # noqa: F811
    await api.enrol("hv-2")
    second = api.fleet.find_host("hv-2").id
    await asker.certified(request())
    identity = api.control.identity

    async def reached(position: Position, seconds: float) -> bool:
        return True

    other = Control(api.log, api.control.bus, reached, identity, SystemClock(), new_id, str, api.control.keys)
    await other.start()
    # the other server does not follow the log, so it does not know of this one
    await asker.certified(request("10.0.0.7"))
    with pytest.raises(Rejected) as refusal:
        await other.certify_host(second, json.loads(request("10.0.0.7", name="hv-2"))["csr"])
    assert refusal.value.code == "name-taken"
    kinds = {each.kind for each in await api.log.read_stream(stream("host", second))}
    assert "host.certified" not in kinds


async def test_a_server_with_another_authority_signs_nothing(
    api: Api,  # noqa: F811
    asker: Asker,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    await asker.certified(request())
    stranger = ensure_authority(tmp_path, "test", datetime.now(UTC))
    identity = msgspec.structs.replace(api.control.identity, authority=stranger)
    monkeypatch.setattr(api.control, "identity", identity)
    assert await asker.refused(request()) == (409, "other-authority")
    with pytest.raises(Rejected):
        await api.control.adopt_authority(stranger.fingerprint, instead=False, actor="setup")
    await api.control.adopt_authority(stranger.fingerprint, instead=True, actor="setup")
    assert (await asker.certified(request())).authority == stranger.certificate
    assert api.fleet.cluster.authority == stranger.fingerprint
