"""The past, the API and the commands, over a log whose old partitions are archived: the answers of before."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from api_fixtures import Api, api_over
from archived import archives, archiving_of, plain
from databases import Database
from sealing import SealedLog, sealed_log, server_of
from test_views import append, engine_of

from tests.core.histories import random_history
from vmorch.core.ids import Position
from vmorch.core.states import digest
from vmorch.engine.checkpoints import Checkpoints
from vmorch.engine.history import History
from vmorch.engine.logkeys import log_origin
from vmorch.engine.replay import Stored, replay
from vmorch.log.schema import partition_by
from vmorch.log.state_store import StateStore
from vmorch.log.store import EventLog
from vmorch.views.projector import Projector
from vmorch.views.queries import ReadModels

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ROOT = Path(__file__).parents[2]
NAMING, OTHER = ("vm.created", "vm.renamed"), ("image.added", "image.removed", "host.cordoned")


async def test_any_moment_is_the_same_fleet_as_before_archiving(database: Database, tmp_path: Path) -> None:
    partition_by(database.owner_url, 130)
    told = random_history(3, 600)
    names = sorted({vm.name for vm in told.fleet.vms.values()})[:4]
    prefix = next(iter(told.fleet.vms))[:3]
    archive_dir, keys_dir = tmp_path / "archives", tmp_path / "keys"
    keys_dir.mkdir()
    async with server_of(database, keys_dir, archive_dir) as log, engine_of(database) as engine:
        for start in range(0, len(told.facts), 100):
            await append(log.log, told.facts[start : start + 100])
            await log.log.ensure_partitions()
        await log.announce()
        await log.sealer.seal()
        head = await log.log.head()
        store = StateStore(database.app_url, archives=archive_dir)
        await Checkpoints(History(log.log, store), store, every=100).catch_up()

        async def told_now(over: EventLog, states: StateStore | None) -> list[object]:
            history, found = History(over, states), list[object]()
            for at in range(5, head, 61):
                found.append(digest(await history.fleet(Position(at))))
                near = History(over, states)
                found += [digest(await near.around_vm(name, Position(at))) for name in (*names, prefix)]
            return found

        async def windows(states: StateStore) -> list[object]:
            spans = [(0, 90), (100, 190), (120, 140), (380, 400), (0, head)]
            return [
                plain(await states.window(Position(low), Position(high), OTHER, NAMING, ref))
                for low, high in spans
                for ref in (*names, prefix, "nobody")
            ]

        async def replayed(over: EventLog, states: StateStore) -> list[object]:
            projector = Projector(over, engine)
            await projector.start()
            live = await History(over, None).fleet(head)
            stored = Stored(*await ReadModels(engine, projector).everything(), live)
            done = await replay(History(over, states), None, stored)
            return [done.digest, done.total, done.checkpoints, done.rows, done.things]

        before = [
            await told_now(log.log, store), await told_now(log.log, None), await windows(store),
            await replayed(log.log, store),
        ]  # fmt: skip
        assert any(windows for windows in before[2])
        async with archiving_of(database, log.log, log.keys.origin, archive_dir) as (archiving, _):
            for each in await archiving.candidates(Position(400)):
                await archiving.archive(each)
        assert [each.last for each in await archives(log)] == [129, 259, 389]
        other = await EventLog.open(database.app_url, archive_dir)
        states = StateStore(database.app_url, archives=archive_dir)
        after = [
            await told_now(other, states), await told_now(other, None), await windows(states),
            await replayed(other, states),
        ]  # fmt: skip
        assert after == before
        assert await windows(store) == before[2]
        for each in (store, states):
            await each.close()
        await other.close()


class Site:
    """A server's API over a log of small partitions."""

    def __init__(self, api: Api, database: Database, directory: Path) -> None:
        self.api = api
        self.database = database
        self.directory = directory

    async def get(self, path: str, **query: Any) -> Any:
        async with self.api.client("auditor") as client:
            answer = await client.get(path, params=query)
        # what tells of this request and of the log's end by now: to ask for an export is an event itself
        if "export" in path:
            header, *lines = map(json.loads, answer.text.splitlines())
            del header["data"]["head"]
            return [header, *lines]
        return {name: told for name, told in answer.json().items() if name not in ("instance", "asOf")}

    async def answers(self, head: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for at in (5, 12, 19, 20, head - 3):
            for path in ("/v1/vms", "/v1/hosts", "/v1/operations", "/v1/tokens", "/v1/hosts/hv-1", "/v1/vms/web-1"):
                found[f"{path}@{at}"] = await self.get(path, asOf=f"@{at}")
            found[f"event {at}"] = await self.get(f"/v1/events/{at}")
            found[f"causes {at}"] = await self.get(f"/v1/events/{at}/causes")
        moment = found["event 19"]["item"]["time"]
        for query in (
            {"limit": 3}, {"limit": 3, "after": 18}, {"limit": 100}, {"kind": "vm.*"}, {"subject": "host/hv-1"},
            {"actor": "the-admin"}, {"until": moment}, {"since": moment, "limit": 9}, {"asOf": "@15", "limit": 100},
        ):  # fmt: skip
            # what was appended since is not asked for
            found[f"events {query}"] = await self.get("/v1/events", **{"asOf": f"@{head}", **query})
        found["why"] = await self.get("/v1/why/vm/web-1")
        found["export"] = await self.get("/v1/audit/export", until=head)
        found["export 7-33"] = await self.get("/v1/audit/export", after=7, until=33)
        replayed = (await self.get("/v1/audit/replay", verify=True, to=f"@{head}"))["item"]
        found["replay"] = {name: replayed[name] for name in ("digest", "total", "differences", "events", "things")}
        return found

    async def checks(self, name: str) -> list[Any]:
        """What doctor says of something."""
        return [each for each in (await self.get("/v1/doctor"))["items"] if each["check"] == name]

    async def archive(self, until: int) -> None:
        # as another process, so that the server remembers nothing of it
        log = await EventLog.open(self.database.app_url, self.directory / "archives")
        origin = log_origin("test", log.incarnation)
        async with archiving_of(self.database, log, origin, self.directory / "archives") as (archiving, _):
            for each in await archiving.candidates(Position(until)):
                await archiving.archive(each)
        await log.close()


async def test_the_api_answers_as_before_and_names_a_file_that_is_not_there(
    database: Database, tmp_path: Path
) -> None:
    partition_by(database.owner_url, 10)
    async with api_over(database, tmp_path) as api:
        site = Site(api, database, tmp_path)
        await api.log.ensure_partitions()
        await api.enrol("hv-1")
        await api.log.ensure_partitions()
        await api.add_image()
        first = await api.create_vm("web-1")
        await api.log.ensure_partitions()
        await api.finish_operation(first["operation"])
        await api.log.ensure_partitions()
        for number in range(20):
            async with api.client() as client:
                await client.post("/v1/tokens", json={"name": f"t{number}", "role": "viewer"})
            await api.log.ensure_partitions()
        await api.sealer.seal()
        await api.settle()
        head = await api.log.head()
        assert head > 35
        before = await site.answers(head)
        await site.archive(29)

        (tmp_path / "archives").rename(tmp_path / "elsewhere")
        for path, query in (
            ("/v1/events/8", {}),
            ("/v1/events", {"limit": 3}),
            ("/v1/events", {"subject": "host/hv-1"}),
            ("/v1/vms", {"asOf": "@14"}),
            ("/v1/events/tail", {"after": 3}),
            ("/v1/audit/replay", {}),
        ):
            async with api.client("auditor") as client:
                answer = await client.get(path, params=query)
            assert answer.status_code == 503, path
            assert answer.json()["code"] == "archive-missing"
            assert str(tmp_path / "archives") in answer.json()["detail"]
        assert [each["state"] for each in await site.checks("archives")] == ["fail"]
        (tmp_path / "elsewhere").rename(tmp_path / "archives")
        assert await site.checks("archives") == []

        after = await site.answers(head)
        for name, told in before.items():
            assert after[name] == told, name


SETTINGS = """\
[server]
cluster = "test"
data_dir = "{dir}"
listen_unix = "{dir}/api.sock"
public_url = "http://localhost"

[database]
url = "{url}"
{owner}

[nats]
url = "nats://localhost"
config_file = "{dir}/nats.conf"
"""


class Keeper:
    """Somebody with the owner's URL on the server's machine."""

    def __init__(self, log: SealedLog, directory: Path) -> None:
        self.directory = directory
        self.log = log
        self.trust(log.database.owner_url)

    def trust(self, owner_url: str | None) -> None:
        owner = "" if owner_url is None else f'owner_url = "{owner_url}"'
        text = SETTINGS.format(dir=self.directory, url=self.log.database.app_url, owner=owner)
        (self.directory / "server.toml").write_text(text)

    async def types(self, line: str, module: str = "vmorch.main") -> tuple[int, str, str]:
        """What a command answers: exit status, stdout, stderr."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "PYTHONPATH": str(ROOT)}
        config = ["--config", "server.toml"] if module == "vmorch.main" else []
        name, *rest = line.split()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, name, *config, *rest, env=env, cwd=self.directory,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), error.decode()


async def test_the_keeper_archives_looks_verifies_and_brings_back(database: Database, tmp_path: Path) -> None:
    partition_by(database.owner_url, 20)
    async with sealed_log(database, tmp_path / "archives") as log:
        await log.grow(30)
        await log.log.ensure_partitions()
        await log.grow(30)
        whole = plain(await log.log.read(Position(0)))
        keeper = Keeper(log, tmp_path)
        (tmp_path / "auditor.key").write_text((await log.key()).text())

        status, out, error = await keeper.types("archive --before @41 --dry-run")
        assert (status, error) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == ["1-19", "20-39"]
        assert await archives(log) == []
        status, out, error = await keeper.types("archive --before 90d")
        assert (status, out) == (0, "")
        assert "No partition of the log is that old" in error

        status, out, error = await keeper.types("archive --before @41")
        assert status == 0, error
        assert error.splitlines() == ["archived up to @19", "archived up to @39"]
        first, second = await archives(log)
        assert plain(await log.log.read(Position(0))) == whole

        (tmp_path / "archives" / second.file).rename(tmp_path / second.file)
        status, out, _ = await keeper.types("archive list")
        assert status == 0
        assert [line.split()[0] for line in out.splitlines()] == ["1-19", "20-39"]
        assert [line.split()[-2:] for line in out.splitlines()] == [[first.file, "ok"], [second.file, "MISSING"]]

        status, out, _ = await keeper.types(f"audit verify --file archives/{first.file} --key auditor.key", "cli")
        assert status == 0
        assert "1 to 19: as they were sealed" in out
        status, out, _ = await keeper.types(f"audit verify --file {second.file} --key auditor.key --part", "cli")
        assert status == 0
        assert "20 to 39: as they were sealed" in out
        (tmp_path / "cut.gz").write_bytes((tmp_path / second.file).read_bytes()[:-9])
        status, _, error = await keeper.types("audit verify --file cut.gz --key auditor.key --part", "cli")
        assert "bad-export" in error

        asked = {"20-39": "archive-missing", "100-200": "no-such-archive", "events": "no-such-archive"}
        for which, code in asked.items():
            status, _, error = await keeper.types(f"restore-archive {which}")
            assert status == 1
            assert f"[{code}]" in error
        status, out, error = await keeper.types(f"restore-archive ./{second.file}")
        assert status == 0, error
        assert "20-39  restored" in out
        status, _, error = await keeper.types("restore-archive 1-5")
        assert (status, error) == (0, "restored up to @19\n")
        assert await archives(log) == []
        assert plain(await log.log.read(Position(0))) == whole


async def test_a_keeper_is_told_what_cannot_be_archived(database: Database, tmp_path: Path) -> None:
    partition_by(database.owner_url, 20)
    async with sealed_log(database, tmp_path / "archives") as log:
        await log.grow(18)
        keeper = Keeper(log, tmp_path)
        asked = {"@20": "partition-in-use", "soon": "bad-moment", "2999-01-01T00:00:00Z": "future-moment"}
        for before, code in asked.items():
            status, _, error = await keeper.types(f"archive --before {before}")
            assert status == 1
            assert f"[{code}]" in error
        await log.append(25)
        status, _, error = await keeper.types("archive --before @41")
        assert "[not-sealed]" in error
        assert await archives(log) == []
        keeper.trust(None)
        status, _, error = await keeper.types("archive --before @20")
        assert status == 1
        assert "owner_url" in error
        keeper.trust(database.app_url)
        status, _, error = await keeper.types("archive --before @20")
        assert status == 1
        assert "permission denied" in error
