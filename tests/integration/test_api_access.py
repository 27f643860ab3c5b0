"""Who may do what over HTTP, and how every refusal and fault is put into words."""

import re
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from api_fixtures import Api, api, signed  # noqa: F401

from vmorch.bus import keys
from vmorch.core.aggregates.token import Role
from vmorch.core.codes import CODES
from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId
from vmorch.core.operations.create import CreateVm
from vmorch.edge.calls import Access
from vmorch.edge.table import ROUTES
from vmorch.engine.caller import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

WHO: tuple[Role | None, ...] = (None, "viewer", "auditor", "operator", "admin")

ADMITTED: dict[Access, set[Role | None]] = {
    "anyone": {None, "viewer", "auditor", "operator", "admin"},
    "viewer": {"viewer", "auditor", "operator", "admin"},
    "auditor": {"auditor", "admin"},
    "operator": {"operator", "admin"},
    "admin": {"admin"},
    "host": set(),
    "host or operator": {"operator", "admin"},
}
"""Written out here once more: the matrix must not be computed by what it checks."""


async def status_of(client: httpx2.AsyncClient, method: str, path: str) -> int:
    async with client.stream(method, re.sub(r"{\w+}", "nothing", path)) as response:
        return response.status_code


async def test_every_role_is_let_in_exactly_where_the_table_says(api: Api) -> None:  # noqa: F811
    wrong = []
    for role in WHO:
        async with api.client(role) as client:
            for route in ROUTES:
                status = await status_of(client, route.method, route.path)
                refused = 401 if role is None or route.access == "host" else 403
                if (status == refused) == (role in ADMITTED[route.access]):
                    wrong.append((role, route.method, route.path, status))
    assert wrong == []


MUTATIONS_OF_ADMINS = {"hosts", "tokens", "projections", "cluster", "drains", "maintenances", "audit"}
OF_HOSTS = {"/v1/hosts/{ref}/certificate"}
"""What a host may change about itself."""


def test_every_change_needs_at_least_an_operator_and_some_an_admin() -> None:
    for route in ROUTES:
        if route.method == "GET" or route.path == "/v1/enroll":
            continue
        if route.path in OF_HOSTS:
            assert route.access == "host"
            continue
        noun = route.path.split("/")[2]
        assert route.access == ("admin" if noun in MUTATIONS_OF_ADMINS else "operator"), route.path


async def test_a_token_is_refused_from_its_revocation_or_expiry_on(api: Api) -> None:  # noqa: F811
    async with api.client() as admin:
        made = (await admin.post("/v1/tokens", json={"name": "ci", "role": "operator", "expires_in": 3600})).json()
        assert made["token"].startswith("vmo_")
        assert made["role"] == "operator"
        bearer = {"Authorization": f"Bearer {made['token']}"}
        who = await admin.get("/v1/whoami", headers=bearer)
        assert (who.json()["name"], who.json()["roles"]) == ("ci", ["operator", "viewer"])
        listed = await admin.get("/v1/tokens", params={"minPosition": str(made["position"])})
        assert "ci" in [each["name"] for each in listed.json()["items"]]
        assert made["token"] not in listed.text
        assert (await admin.post("/v1/tokens/ci/revoke")).status_code == 202
        refused = await admin.get("/v1/whoami", headers=bearer)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")

        expired = datetime.now(UTC) - timedelta(seconds=1)
        setup = Caller(actor="setup", role="admin")
        _, secret = await api.control.create_token("old", "admin", expired, setup)
        assert (await admin.get("/v1/whoami", headers={"Authorization": f"Bearer {secret}"})).status_code == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Basic dXNlcjpwYXNz", "Bearer vmo_x", "Bearer " + "x" * 500])
async def test_a_malformed_authorization_is_no_authorization(api: Api, header: str) -> None:  # noqa: F811
    async with api.client(None) as client:
        assert (await client.get("/v1/vms", headers={"Authorization": header})).status_code == 401


async def test_a_refusal_is_a_problem_document_with_its_code(api: Api) -> None:  # noqa: F811
    id = "0198f0c1-0000-7000-8000-000000000001"
    async with api.client() as client:
        response = await client.get("/v1/vms/nothing", headers={"Vmorch-Request-Id": id.upper()})
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem == {
        "type": "https://vmorch.dev/errors/no-such-vm",
        "title": CODES["no-such-vm"].title,
        "status": 404,
        "detail": "no vm is called 'nothing'",
        "code": "no-such-vm",
        "hint": "vmorch vm list",
        "facts": {},
        "instance": id,
    }
    assert response.headers["Vmorch-Request-Id"] == id


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b'{"name": "web-1"}', "image"),
        (b'{"name": "w", "image": "x", "memory": 512, "nics": [{"network": "-bad"}]}', "$.nics[0].network"),
        (b'{"name": "w", "image": "x", "memory": "512"}', "$.memory"),
        (b'{"name": "w", "image": "x", "memory": 512, "vcpu": 2}', "vcpu"),
        (b'{"name": ' + b"[" * 100_000, "$.name"),
        (b'{"name": "w\xff", "image": "x", "memory": 512}', "not JSON"),
        (b"null", "object"),
    ],
)
async def test_bad_input_is_refused_with_its_place(api: Api, body: bytes, said: str) -> None:  # noqa: F811
    async with api.client() as client:
        response = await client.post("/v1/vms", content=body)
    assert (response.status_code, response.json()["code"]) == (400, "bad-request")
    assert said in response.json()["detail"]


async def test_a_malformed_name_has_a_code_of_its_own(api: Api) -> None:  # noqa: F811
    async with api.client() as client:
        for method, path, body in (
            ("POST", "/v1/vms", b'{"name": "Web 1", "image": "x", "memory": 512}'),
            ("POST", "/v1/hosts", b'{"name": "Web 1"}'),
            ("PUT", "/v1/images/Web%201/content", b"x" * 512),
        ):
            response = await client.request(method, path, content=body)
            assert (response.status_code, response.json()["code"]) == (422, "bad-name")
            assert "1 to 63 of a-z, 0-9 and -" in response.json()["detail"]


async def test_bad_parameters_and_headers_are_refused(api: Api) -> None:  # noqa: F811
    asked = [
        ("/v1/vms?limit=0", {}),
        ("/v1/vms?limit=10001", {}),
        ("/v1/vms?limit=-1", {}),
        ("/v1/vms?label=x", {}),
        ("/v1/vms?nmae=web-1", {}),
        ("/v1/vms?minPosition=x", {}),
        ("/v1/operations?active=maybe", {}),
        ("/v1/events?since=yesterday", {}),
        ("/v1/events?since=2026-01-01T00:00:00", {}),
        ("/v1/events/x", {}),
        ("/v1/vms", {"Vmorch-Request-Id": "17"}),
        ("/v1/vms", {"Vmorch-Reason": b"\xff\xfe"}),
        ("/v1/vms", {"Vmorch-Reason": "x" * 501}),
    ]
    async with api.client() as client:
        for path, headers in asked:
            response = await client.get(path, headers=headers)
            assert (response.status_code, response.json()["code"]) == (400, "bad-request"), path


async def test_a_body_beyond_the_limit_is_refused(api: Api) -> None:  # noqa: F811
    async with api.client() as client:
        response = await client.post("/v1/vms", content=b" " * (1024 * 1024 + 1))
    assert (response.status_code, response.json()["code"]) == (413, "too-large")


async def test_unknown_places_and_methods_are_problems_too(api: Api) -> None:  # noqa: F811
    async with api.client() as client:
        missing = await client.get("/v2/vms")
        assert (missing.status_code, missing.json()["code"]) == (404, "not-found")
        method = await client.request("DELETE", "/v1/vms/web-1")
        assert (method.status_code, method.json()["code"]) == (405, "wrong-method")
        assert "GET" in method.headers["Allow"]
        slash = await client.get("/v1/vms/")
        assert slash.status_code == 404


async def test_a_fault_is_logged_and_tells_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    async def broken(command: CreateVm, caller: Caller) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.control, "create_vm", broken)
    async with api.client() as client:
        response = await client.post("/v1/vms", json={"name": "w", "image": "x", "memory": 512})
    assert (response.status_code, response.json()["code"]) == (500, "internal-error")
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text


async def test_only_an_enrolled_host_s_fresh_signature_opens_an_image(api: Api) -> None:  # noqa: F811
    pair = await api.enrol("hv-1")
    image = await api.add_image()
    host = api.fleet.find_host("hv-1").id
    path = f"/v1/images/{image['digest']}/content"
    good = signed(pair, host, path)
    bad = [
        signed(keys.create("user"), host, path),
        signed(pair, host, path + "x"),
        signed(pair, "no-such-host", path),
        {**good, "X-Vmorch-Signature": "AAAA"},
        {**good, "X-Vmorch-Signature": "not base64!"},
        {**good, "X-Vmorch-Time": str(int(good["X-Vmorch-Time"]) + 1)},
        {**good, "X-Vmorch-Time": "9" * 400},
        {**good, "X-Vmorch-Time": ""},
        signed(pair, host, path, at=datetime.now(UTC).timestamp() - 301),
        signed(pair, host, path, at=datetime.now(UTC).timestamp() + 360),
        {"X-Vmorch-Host": host},
    ]
    async with api.client(None) as client:
        whole = await client.get(path, headers=good)
        assert whole.status_code == 200
        assert len(whole.content) == image["size"]
        for headers in bad:
            assert (await client.get(path, headers=headers)).status_code == 401, headers
        # what a host may read it cannot use elsewhere
        assert (await client.get("/v1/vms", headers=signed(pair, host, "/v1/vms"))).status_code == 401
        await api.control.on_host("hv-1", "retire", {}, Caller(actor="setup", role="admin"))
        assert (await client.get(path, headers=signed(pair, host, path))).status_code == 401


async def test_a_host_renews_its_own_credentials_and_no_others(api: Api) -> None:  # noqa: F811
    pair = await api.enrol("hv-1")
    await api.enrol("hv-2")
    mine, other = (api.fleet.find_host(name).id for name in ("hv-1", "hv-2"))
    async with api.client(None) as client:
        path = f"/v1/hosts/{mine}/credentials"
        renewed = await client.get(path, headers=signed(pair, mine, path))
        assert renewed.status_code == 200
        assert renewed.json()["credentials"]
        path = f"/v1/hosts/{other}/credentials"
        assert (await client.get(path, headers=signed(pair, mine, path))).status_code == 403
        with pytest.raises(Rejected):
            await api.control.renew_host(HostId("nobody"))


async def test_what_the_api_says_about_itself_needs_no_guessing(api: Api) -> None:  # noqa: F811
    async with api.client("viewer") as client:
        assert (await client.get("/v1/openapi.json", headers={"Authorization": ""})).json()["openapi"] == "3.1.0"
        assert (await client.get("/healthz", headers={"Authorization": ""})).json()["status"] == "ok"
        codes = (await client.get("/v1/errors")).json()["items"]
        assert {each["code"] for each in codes} == set(CODES)
        kinds = (await client.get("/v1/schemas")).json()["items"]
        for each in kinds:
            schema = (await client.get(f"/v1/schemas/{each['kind']}")).json()["schema"]
            assert "$ref" in schema or "$defs" in schema or "properties" in schema or "type" in schema
        assert (await client.get("/v1/schemas/nothing")).status_code == 404
