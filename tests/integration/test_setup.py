"""What `vmorch server init` makes for what is sealed in the log, and for the log's partitions."""

import shutil
from pathlib import Path

import psycopg
import pytest
from databases import Database

from vmorch.config import Config, DatabaseSection, NatsSection, ServerSection
from vmorch.core.errors import Rejected
from vmorch.engine.masterkey import path_of
from vmorch.setup import prepare

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


def server(database: Database, directory: Path, owner_url: str | None = None) -> Config:
    return Config(
        server=ServerSection(
            cluster="test", data_dir=str(directory), listen_unix="/run/api.sock", public_url="http://localhost"
        ),
        database=DatabaseSection(url=database.app_url, owner_url=owner_url),
        nats=NatsSection(url="nats://127.0.0.1:4222", config_file=str(directory / "nats.conf")),
    )


def key(config: Config) -> str:
    return path_of(config.data_dir / "keys").read_text()


async def test_the_master_key_is_made_once_and_shared_like_the_others(database: Database, tmp_path: Path) -> None:
    first, second = server(database, tmp_path / "first"), server(database, tmp_path / "second")
    await prepare(first)
    made = key(first)
    await prepare(first)
    assert key(first) == made
    shutil.copytree(first.data_dir / "keys", second.data_dir / "keys")
    await prepare(second)
    path_of(second.data_dir / "keys").unlink()
    with pytest.raises(Rejected) as refusal:
        await prepare(second)
    assert refusal.value.code == "other-master-key"
    assert not path_of(second.data_dir / "keys").exists()


async def test_a_lost_master_key_is_replaced_only_when_told_to(database: Database, tmp_path: Path) -> None:
    config = server(database, tmp_path)
    await prepare(config)
    lost = key(config)
    path_of(tmp_path / "keys").unlink()
    await prepare(config, new_master_key=True)
    assert key(config) != lost
    await prepare(config)


async def test_a_site_chooses_the_size_of_its_partitions_before_the_first_event(
    database: Database, tmp_path: Path
) -> None:
    await prepare(server(database, tmp_path, database.owner_url), partition_size=5000)
    await prepare(server(database, tmp_path, database.owner_url))
    with psycopg.connect(database.auditor_url) as connection:
        bounds = connection.execute("SELECT low, high FROM vmorch.partitions ORDER BY low").fetchall()
    assert bounds == [(0, 5000), (5000, 10000), (10000, 15000)]


async def test_only_the_owner_chooses_the_size_of_partitions(database: Database, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="owner") as refusal:
        await prepare(server(database, tmp_path), partition_size=5000)
    assert "owner_url" in refusal.value.hint
