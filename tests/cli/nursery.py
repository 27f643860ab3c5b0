"""Processes of the CLI without their start: one process imports it, and forks for each command line.

    python -m tests.cli.nursery SOCKET-FD

A request is argv and environment as JSON, with stdin, stdout, stderr and the directory as file descriptors; the answer
is the exit status. The forked process is as `python -m cli` would be, but that everything is imported. What a start
costs and imports is tested elsewhere.
"""

import gc
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from typing import IO

REQUEST = 1 << 20
LIMIT = 60.0
"""Seconds for one command line."""


class Nursery:
    """The process that forks, as long as the block lasts."""

    def __enter__(self) -> "Nursery":
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.nursery", str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._process.wait(10)

    def run(
        self, argv: list[str], env: dict[str, str], files: tuple[IO[bytes], IO[bytes], IO[bytes]], directory: str
    ) -> int:
        """Run one command line to its end. Its exit status; negative if a signal ended it."""
        there = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            request = json.dumps({"argv": argv, "env": env}).encode()
            assert len(request) < REQUEST
            socket.send_fds(self._line, [request], [*(file.fileno() for file in files), there])
        finally:
            os.close(there)
        self._line.settimeout(LIMIT + 10)
        return int(self._line.recv(64))


def serve(line: socket.socket) -> None:
    """Fork for each request, until nobody asks any more."""
    while True:
        data, fds, _, _ = socket.recv_fds(line, REQUEST, 4)
        if not data:
            return
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            line.close()
            _become(request["argv"], request["env"], list(fds))
        for fd in fds:
            os.close(fd)
        line.send(str(_ended(pid)).encode())


def _become(argv: list[str], env: dict[str, str], fds: list[int]) -> None:
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    os.fchdir(fds[3])
    for fd in fds:
        os.close(fd)
    # whoever runs the tests in the background of a shell has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.argv = ["vmorch", *argv]
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, "r"), os.fdopen(1, "w"), os.fdopen(2, "w")
    from cli.main import main

    main()


def _ended(pid: int) -> int:
    deadline = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    import cli.commands

    for name in ["cli.main", "cli.root", "jmespath", "yaml", "http.client"]:
        import_module(name)
    for module in pkgutil.iter_modules(cli.commands.__path__):
        import_module(f"cli.commands.{module.name}")
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
