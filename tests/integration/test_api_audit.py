"""The log's proof as an auditor has it: the API, the CLI as a process, and files that need neither."""

import asyncio
import json
import os
import re
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from api_fixtures import Api, api_over
from databases import Database
from tlog_witness import TlogWitness, until_done

from vmorch.audit.merkle import extends, includes
from vmorch.audit.notes import read_checkpoint, read_key, read_note
from vmorch.core.aggregates.token import Role
from vmorch.core.ids import Stream

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ROOT = Path(__file__).parents[2]
ALICE = "Alice Meyer <alice@example.org>"


class Auditor:
    """Somebody with the role auditor, a directory of their own, and the CLI."""

    def __init__(self, api: Api, database: Database, directory: Path) -> None:
        self.api = api
        self.database = database
        self.directory = directory

    async def types(self, line: str, *, server: bool = True, role: Role = "auditor") -> tuple[int, str, str]:
        """What `vmorch LINE` answers: exit status, stdout, stderr."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "PYTHONPATH": str(ROOT)}
        env["VMORCH_API"] = f"unix:{self.api.socket}" if server else "http://127.0.0.1:1"
        env["VMORCH_TOKEN"] = self.api.tokens[role] if server else ""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli", *line.split(), env=env, cwd=self.directory,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return await until_done(process)

    async def seal(self, tokens: int = 0) -> None:
        """Let some things happen, and seal the log."""
        async with self.api.client() as client:
            for _ in range(tokens):
                name = f"t{self.api.fleet.position}"
                answer = await client.post("/v1/tokens", json={"name": name, "role": "viewer"})
                assert answer.status_code == 201, answer.text
        await self.api.sealer.seal()

    def attack(self, *statements: str) -> None:
        with psycopg.connect(self.database.owner_url) as connection:
            for statement in statements:
                connection.execute(statement)


@pytest.fixture
async def auditor(database: Database, tmp_path: Path) -> AsyncIterator[Auditor]:
    async with api_over(database, tmp_path) as api:
        found = Auditor(api, database, tmp_path)
        await found.seal(3)
        status, key, _ = await found.types("audit key")
        assert status == 0
        (tmp_path / "auditor.key").write_text(key)
        yield found


async def test_the_status_says_how_far_the_log_is_sealed(auditor: Auditor) -> None:
    status, out, _ = await auditor.types("audit status")
    head = await auditor.api.log.head()
    assert status == 0
    assert f"{head} of {head} events" in out
    assert json.loads((await auditor.types("audit status -o json"))[1])["sealed"] == head


async def test_the_log_is_verified_as_it_is_now(auditor: Auditor) -> None:
    status, out, error = await auditor.types("audit verify --key auditor.key")
    assert (status, error) == (0, "")
    assert "as they were sealed" in out
    status, _, error = await auditor.types("audit verify")
    assert status == 0
    assert "the key is the server's own word" in error


async def test_an_export_is_verified_without_any_server(auditor: Auditor) -> None:
    head = await auditor.api.log.head()
    assert (await auditor.types("audit export --file log.jsonl"))[0] == 0
    lines = (auditor.directory / "log.jsonl").read_bytes().splitlines()
    assert all(json.loads(line)["specversion"] == "1.0" for line in lines)
    status, out, error = await auditor.types("audit verify --file log.jsonl --key auditor.key", server=False)
    assert (status, error) == (0, "")
    assert f"1 to {head}: as they were sealed" in out
    assert not list(auditor.directory.glob("*.part"))


async def test_a_part_of_the_log_is_exported_and_verified(auditor: Auditor) -> None:
    assert (await auditor.types("audit export --from 3 --to 5 --file part.jsonl"))[0] == 0
    status, out, _ = await auditor.types("audit verify --file part.jsonl --key auditor.key --part", server=False)
    assert status == 0
    assert "3 to 5: as they were sealed" in out
    status, out, _ = await auditor.types("audit verify --file part.jsonl --key auditor.key", server=False)
    assert status == 11
    assert "partial: the events up to 2 are not in this export" in out


async def test_tampering_is_told_with_its_place_and_exit_status_11(auditor: Auditor) -> None:
    auditor.attack("UPDATE vmorch.events SET meta = replace(meta::text, 'setup', 'nobody')::json WHERE position = 4")
    await auditor.types("audit export --file log.jsonl")
    status, out, _ = await auditor.types("audit verify --file log.jsonl --key auditor.key", server=False)
    assert status == 11
    assert "changed: event 4 (token.created of token/" in out
    status, out, _ = await auditor.types("audit verify --file log.jsonl --key auditor.key -o json", server=False)
    assert status == 11
    verdict = json.loads(out)
    assert verdict["sound"] is False
    assert [(each["what"], each["first"]) for each in verdict["findings"]] == [("changed", 4)]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("audit verify --file log.jsonl", "bad-request"),
        ("audit verify --file log.jsonl --key nothing", "bad-checkpoint"),
        ("audit verify --file auditor.key --key auditor.key", "bad-export"),
        ("audit verify --file log.jsonl --key auditor.key --witness auditor.key", "bad-checkpoint"),
        ("audit verify --file log.jsonl --key auditor.key --from 3", "bad-request"),
        ("audit witness --key auditor.key", "bad-request"),
        ("audit export --to 99999", "not-sealed"),
    ],
)
async def test_bad_input_is_refused_with_a_code(auditor: Auditor, line: str, code: str) -> None:
    await auditor.types("audit export --file log.jsonl")
    status, out, error = await auditor.types(line)
    assert status != 0
    assert out == ""
    assert f"error[{code}]" in error


async def test_an_export_that_breaks_off_is_not_kept(auditor: Auditor) -> None:
    await auditor.seal(3)
    auditor.attack("DELETE FROM vmorch.seals WHERE after < 5")
    status, _, error = await auditor.types("audit export --from 5 --file log.jsonl")
    assert (status, "error[bad-export]" in error) == (11, True)
    assert not list(auditor.directory.glob("log.jsonl*"))


async def test_a_witness_keeps_what_grew_and_refuses_what_did_not(auditor: Auditor) -> None:
    line = "audit witness --file seen.jsonl --key auditor.key"
    seen = auditor.directory / "seen.jsonl"
    assert (await auditor.types(line))[0] == 0
    await auditor.seal(4)
    assert (await auditor.types(line))[0] == 0
    status, out, _ = await auditor.types(line)
    assert (status, "as seen before" in out) == (0, True)
    kept = seen.read_bytes()
    assert len(kept.splitlines()) == 2
    verify = "audit verify --key auditor.key --witness seen.jsonl"
    status, out, _ = await auditor.types(verify)
    assert status == 0
    assert re.search(r"^Witnessed +2 compared$", out, re.MULTILINE)
    size = read_checkpoint(read_note(json.loads(kept.splitlines()[0])["note"])).size
    auditor.attack(f"DELETE FROM vmorch.seals WHERE size > {size}")
    status, _, error = await auditor.types(line)
    assert status == 11
    assert f"the log has {size} sealed events" in error
    assert (await auditor.types(verify))[0] == 11
    # the forger has the key, and seals another log of more events
    auditor.attack(f"UPDATE vmorch.events SET data = '{{}}' WHERE position = {size + 1}")
    auditor.api.sealer._tree = None
    await auditor.seal(5)
    status, _, error = await auditor.types(line)
    assert status == 11
    assert "the log forked" in error
    assert seen.read_bytes() == kept


async def test_a_witness_elsewhere_sees_the_log_grow_and_refuses_a_fork(auditor: Auditor) -> None:
    witness = TlogWitness(read_key((auditor.directory / "auditor.key").read_text()))
    with witness.serving():
        line = f"audit witness --url {witness.url} --key auditor.key"
        status, out, error = await auditor.types(line)
        assert (status, error) == (0, "")
        assert "witness.example" in out
        assert witness.held is not None
        size = witness.held.size
        await auditor.seal(4)
        assert (await auditor.types(line))[0] == 0
        assert witness.held.size > size
        assert (await auditor.types(line))[0] == 0
        auditor.attack(
            f"DELETE FROM vmorch.seals WHERE size > {size}",
            f"UPDATE vmorch.events SET data = '{{}}' WHERE position = {size + 1}",
        )
        status, _, error = await auditor.types(line)
        assert (status, f"the witness at {witness.url} saw" in error) == (11, True)
        auditor.api.sealer._tree = None
        await auditor.seal(5)
        status, _, error = await auditor.types(line)
        assert (status, "the log forked" in error) == (11, True)


async def test_a_witness_follows_a_change_of_keys(auditor: Auditor) -> None:
    line = "audit witness --file seen.jsonl --key auditor.key"
    assert (await auditor.types(line))[0] == 0
    keys = auditor.api.sealer._keys
    await auditor.api.control.announce_log_key(keys.create().text(), orphaned=False, actor="setup")
    # the checkpoint that ends with the announcement is the old key's last
    for tokens in (0, 2):
        await auditor.seal(tokens)
        assert (await auditor.types(line))[0] == 0
    assert (await auditor.types("audit verify --key auditor.key --witness seen.jsonl"))[0] == 0


async def test_proofs_come_over_the_api_and_hold(auditor: Auditor) -> None:
    async with auditor.api.client("auditor") as client:
        old = (await client.get("/v1/audit/checkpoint")).json()
        await auditor.seal(3)
        new = (await client.get("/v1/audit/checkpoint")).json()
        asked = {"old": old["size"], "size": new["size"]}
        growth = (await client.get("/v1/audit/consistency", params=asked)).json()
        before, after = (read_checkpoint(read_note(each["note"])) for each in (old, new))
        hashes = [b64decode(each) for each in growth["hashes"]]
        assert extends(before.size, before.root, after.size, after.root, hashes)
        proof = (await client.get("/v1/audit/inclusion/5")).json()
        told = read_checkpoint(read_note(proof["note"]))
        path = [b64decode(each) for each in proof["hashes"]]
        assert includes(4, told.size, b64decode(proof["leaf"]), path, told.root)
        assert (await client.get("/v1/audit/inclusion/99999")).json()["code"] == "not-sealed"
        assert (await client.get("/v1/audit/checkpoint", params={"size": 99999})).json()["code"] == "not-sealed"
        assert (await client.get("/v1/audit/consistency", params={"old": 3})).json()["code"] == "bad-request"


async def test_the_log_and_its_exports_verify_before_and_after_an_erasure(auditor: Auditor) -> None:
    await auditor.api.add_image()
    await auditor.api.enrol("hv-1")
    async with auditor.api.client() as client:
        wanted = {"name": "web-1", "image": "debian-13", "memory": 512, "user_data": "#cloud-config\n# hunter2"}
        answer = await client.post("/v1/vms", json=wanted)
        assert answer.status_code == 202, answer.text
    await auditor.seal()
    assert (await auditor.types("audit export --file before.jsonl"))[0] == 0
    line = "audit erase vm/web-1 --yes -m case-4711"
    status, out, error = await auditor.types(line, role="admin")
    assert status == 0, error
    assert out.startswith("what was sealed for web-1 is erased (event ")
    assert "master key" in error
    status, _, error = await auditor.types(line, role="admin")
    assert (status, "error[already-so]" in error) == (6, True)
    assert (await auditor.types(line))[0] == 4
    await auditor.seal(1)
    assert (await auditor.types("audit export --file after.jsonl"))[0] == 0
    for name in ("before", "after"):
        text = (auditor.directory / f"{name}.jsonl").read_bytes()
        assert b"hunter2" not in text
        assert b"sealed:1:vm/" in text
        status, out, _ = await auditor.types(f"audit verify --file {name}.jsonl --key auditor.key", server=False)
        assert (status, "as they were sealed" in out) == (0, True)
    assert (await auditor.types("audit verify --key auditor.key"))[0] == 0
    assert b"audit.subject-erased" in (auditor.directory / "after.jsonl").read_bytes()


async def test_who_holds_a_token_is_told_to_auditors_until_it_is_erased(auditor: Auditor) -> None:
    api = auditor.api
    async with api.client() as client:
        wanted = {"name": "am", "role": "operator", "holder": ALICE}
        assert (await client.post("/v1/tokens", json=wanted)).status_code == 201
        wanted = {"name": "odd", "role": "operator", "holder": "two\nlines"}
        assert (await client.post("/v1/tokens", json=wanted)).json()["code"] == "bad-request"

    async def holder(role: Role, moment: str = "") -> str:
        _, out, _ = await auditor.types(f"token list -o json {moment}", role=role)
        return next(str(each["holder"]) for each in json.loads(out)["items"] if each["name"] == "am")

    told = [await holder(role) for role in ("viewer", "operator", "auditor", "admin")]
    assert told == ["(sealed)", "(sealed)", ALICE, ALICE]
    assert ALICE in (await auditor.types("token list -o wide"))[1]
    then = f"--as-of @{api.fleet.position}"
    assert await holder("auditor", then) == ALICE
    assert (await auditor.types("audit erase token/am --yes -m left", role="admin"))[0] == 0
    assert [await holder("auditor"), await holder("auditor", then), await holder("viewer")] == [
        "(erased)", "(erased)", "(sealed)",
    ]  # fmt: skip


async def test_a_report_tells_who_did_what_and_is_itself_recorded(auditor: Auditor) -> None:
    before = await auditor.api.log.head()
    async with auditor.api.client() as client:
        wanted, reason = {"name": "ci", "role": "viewer"}, {"Vmorch-Reason": "CHG-7"}
        assert (await client.post("/v1/tokens", json=wanted, headers=reason)).status_code == 201
        assert (await client.post("/v1/tokens/ci/revoke", headers={"Vmorch-Reason": "left"})).status_code == 202
    line = f"audit report --actor the-admin --between @{before} now -o json"
    status, out, _ = await auditor.types(line)
    assert status == 0
    acts = [(each["what"], each["subject_name"], each["reason"], each["outcome"]) for each in json.loads(out)["items"]]
    assert acts == [("token.created", "ci", "CHG-7", "done"), ("token.revoked", "ci", "left", "done")]
    status, out, _ = await auditor.types("audit report --object token/the-auditor -o json")
    read = [each["details"] for each in json.loads(out)["items"] if each["what"] == "token.audit-read"]
    assert read[0] == {
        "what": "/v1/audit/report", "query": {"actor": "the-admin", "from": f"@{before}", "limit": "1000", "to": "now"}
    }  # fmt: skip
    assert read[-1]["query"]["object"] == "token/the-auditor"


async def test_a_report_wants_an_auditor_and_knows_its_objects(auditor: Auditor) -> None:
    async with auditor.api.client("operator") as client:
        assert (await client.get("/v1/audit/report")).status_code == 403
    for line, code in (
        ("audit report --object vm/nobody", "no-such-vm"),
        ("audit report --between yesterday now", "bad-moment"),
    ):
        status, out, error = await auditor.types(line)
        assert (status != 0, out, f"error[{code}]" in error) == (True, "", True)


async def test_who_reads_the_log_whole_is_recorded_first(auditor: Auditor) -> None:
    await auditor.types("audit replay")
    await auditor.types("audit export --file log.jsonl")
    events = await auditor.api.log.read_stream(
        next(Stream(f"token/{each.id}") for each in auditor.api.fleet.tokens.values() if each.name == "the-auditor")
    )
    assert [json.loads(each.data)["what"] for each in events[1:]] == ["/v1/audit/replay", "/v1/audit/export"]


async def test_a_secret_that_is_told_again_is_recorded(auditor: Auditor) -> None:
    async with auditor.api.client() as client:
        for _ in range(2):
            asked = await client.post(
                "/v1/tokens",
                json={"name": "ci", "role": "viewer"},
                headers={"Vmorch-Request-Id": "0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"},
            )
            assert asked.status_code == 201
        report = (await client.get("/v1/audit/report", params={"actor": "the-admin"})).json()["items"]
    assert [each["what"] for each in report[-3:]] == ["token.created", "token.audit-read", "token.audit-read"]
    assert report[-2]["details"]["what"] == f"the secret of token/{asked.json()['id']}"


async def test_the_doctor_and_the_status_say_why_nothing_is_sealed(auditor: Auditor) -> None:
    auditor.attack("UPDATE vmorch.events SET data = '{}' WHERE position = 8")
    auditor.api.sealer._tree = None
    running = asyncio.create_task(auditor.api.sealer.run())
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(stopped(auditor.api))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    status, out, _ = await auditor.types("audit status")
    assert status == 11
    assert "event 8 is not what was sealed [log-tampered]" in out
    status, out, _ = await auditor.types("doctor")
    assert status == 1
    assert "event 8 is not what was sealed" in out


async def stopped(api: Api) -> None:
    async for _ in api.control.changes():
        if api.fleet.cluster.unsealed is not None:
            return
