"""The CLI as a process of its own, with a home of its own, on pipes or on a terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests.cli.api import Api
from tests.cli.nursery import Nursery

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment without any setting of whoever runs the tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VMORCH_", "_VMORCH"))
        and name not in ("NO_COLOR", "CLICOLOR_FORCE", "FORCE_COLOR")
    }
    return {
        **kept,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "COLUMNS": "80",
        "TZ": "UTC",
    }


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        yield server


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


@pytest.fixture
def vmorch(env: dict[str, str], nursery: Nursery, request: pytest.FixtureRequest) -> Run:
    """Run one command line. It talks to the test's `api`, if there is one."""
    if "api" in request.fixturenames:
        env["VMORCH_API"] = request.getfixturevalue("api").url

    def run(*arguments: str, input: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
            stdin.write(input.encode())
            stdin.seek(0)
            status = nursery.run([*arguments], {**env, **more}, (stdin, stdout, stderr), os.getcwd())
            said = []
            for file in (stdout, stderr):
                file.seek(0)
                said.append(file.read().decode())
        return subprocess.CompletedProcess(arguments, status, *said)

    return run


@pytest.fixture
def started(env: dict[str, str], api: Api) -> Run:
    """The same by a process of its own from its start, for what that start depends on."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            env={**env, "VMORCH_API": api.url, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


class OnTerminal:
    """A command on a terminal of its own."""

    def __init__(self, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        self.seen = ""
        pid, self._fd = pty.fork()
        if pid == 0:
            # whoever runs the tests in the background of a shell has it ignored, which an exec passes on
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(sys.executable, [sys.executable, "-m", "cli", *arguments], env)
        self._pid = pid
        self._status: int | None = None

    def read_until(self, text: str, limit: float = 20.0) -> str:
        """Wait until the terminal has shown this text."""
        deadline = time.monotonic() + limit
        while text not in self.seen:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{text!r} was never shown; seen: {self.seen!r}")
        return self.seen

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.type("\x03")

    def end(self, limit: float = 20.0) -> int:
        """Wait for the process to end, reading what it still shows. Its exit status."""
        deadline = time.monotonic() + limit
        while self._read():
            if time.monotonic() > deadline:
                raise AssertionError(f"still running; seen: {self.seen!r}")
        return self._reap()

    def close(self) -> None:
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()
        os.close(self._fd)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], 0.5)
        if not ready:
            return True
        try:
            chunk = os.read(self._fd, 65536)
        except OSError:
            # Linux answers EIO when the last process has left the terminal
            return False
        self.seen += chunk.decode(errors="replace")
        return bool(chunk)

    def _reap(self) -> int:
        if self._status is None:
            _, status = os.waitpid(self._pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status


@pytest.fixture
def terminal(env: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Callable[..., OnTerminal]]:
    """Start one command line on a terminal."""
    if "api" in request.fixturenames:
        env["VMORCH_API"] = request.getfixturevalue("api").url
    started: list[OnTerminal] = []

    def start(*arguments: str, **more: str) -> OnTerminal:
        made = OnTerminal(arguments, {**env, **more})
        started.append(made)
        return made

    yield start
    for each in started:
        each.close()
