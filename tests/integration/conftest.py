"""Real servers for the tests that need them: private, in directories of their own, gone afterwards."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from databases import Database, fresh_database, make_template

from vmorch.embedded import EmbeddedPostgres
from vmorch.log.store import EventLog


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def service_directory() -> Iterator[Path]:
    """A place under /tmp that an unprivileged server may enter, short enough for Unix sockets."""
    for leftover in Path(tempfile.gettempdir()).glob("vmorch-test-*-*"):
        owner = leftover.name.split("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(leftover, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=f"vmorch-test-{os.getpid()}-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgres(service_directory: Path) -> Iterator[EmbeddedPostgres]:
    """The embedded Postgres, with a template database to copy."""
    with EmbeddedPostgres(service_directory / "postgres") as server:
        make_template(server)
        yield server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A fresh, empty log."""
    yield from fresh_database(postgres)


@pytest.fixture
async def event_log(database: Database) -> AsyncIterator[EventLog]:
    """The fresh database's log, opened as the server does."""
    log = await EventLog.open(database.app_url)
    yield log
    await log.close()
