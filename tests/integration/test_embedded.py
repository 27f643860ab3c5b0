"""The servers we start ourselves: private, restartable, gone with whoever started them."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from vmorch.embedded import EmbeddedError, EmbeddedNats, EmbeddedPostgres

ROOT = Path(__file__).parents[2]


def lives(pid: int) -> bool:
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + 20
    while lives(pid):
        assert time.monotonic() < deadline, f"{pid} still lives"
        time.sleep(0.02)


@pytest.mark.postgres
def test_postgres_keeps_its_data_over_stop_kill_and_start(service_directory: Path) -> None:
    server = EmbeddedPostgres(service_directory / "kept")
    with server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("INSERT INTO kept VALUES (2)")
    server.kill()
    with server, psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (2,)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)


@pytest.mark.postgres
def test_a_killed_postgres_leaves_nothing_outside_its_directory(service_directory: Path) -> None:
    server = EmbeddedPostgres(service_directory / "killed")
    server.start()
    mapped = Path("/proc", str(server.pid), "maps").read_text()
    server.kill()
    assert "/dev/shm" not in mapped


@pytest.mark.postgres
def test_a_deep_directory_still_gets_a_socket(service_directory: Path) -> None:
    deep = service_directory / ("deep" * 30)
    with EmbeddedPostgres(deep) as server, psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.postgres
def test_a_lock_file_that_names_a_living_stranger_does_not_stop_a_start(service_directory: Path) -> None:
    directory = service_directory / "stale"
    with EmbeddedPostgres(directory):
        pass
    stranger = subprocess.Popen(["sleep", "60"], user="nobody" if os.geteuid() == 0 else None)
    try:
        (directory / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n{directory / 'data'}\n")
        with EmbeddedPostgres(directory) as server, psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.postgres
def test_postgres_dies_with_its_parent_and_the_next_start_succeeds(service_directory: Path) -> None:
    directory = service_directory / "orphan"
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from vmorch.embedded import EmbeddedPostgres
        server = EmbeddedPostgres(Path({str(directory)!r}))
        server.start()
        print(server.pid, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with EmbeddedPostgres(directory):
        assert not lives(pid)


def test_a_missing_postgres_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=f"no initdb in {tmp_path}"):
        EmbeddedPostgres(tmp_path / "data", binaries=tmp_path).start()


@pytest.mark.postgres
def test_a_directory_that_the_servers_user_cannot_enter_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs Postgres as someone else")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match="cannot enter"):
        EmbeddedPostgres(closed / "postgres").start()


@pytest.mark.nats
def test_nats_runs_with_its_configuration_until_stopped(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text('listen: "127.0.0.1:-1"\n')
    server = EmbeddedNats(tmp_path / "nats", config)
    with server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            assert connection.recv(4) == b"INFO"
        pid = server.pid
    assert not lives(pid)
    with pytest.raises(EmbeddedError):
        _ = server.url


@pytest.mark.nats
def test_nats_with_a_broken_configuration_says_why(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("jetstream { store_dir: \n")
    with pytest.raises(EmbeddedError, match="NATS ended at once"):
        EmbeddedNats(tmp_path / "nats", config).start()
    with pytest.raises(EmbeddedError, match="no NATS configuration"):
        EmbeddedNats(tmp_path / "nats", tmp_path / "missing.conf").start()
