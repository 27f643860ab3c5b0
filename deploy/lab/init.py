"""The first process of a host or of the control namespace: makes the namespaces, starts processes, reaps them.

Run as `python -m deploy.lab.init NAME PLAN`. The outer half unshares, records who the inner half is and leaves; the
inner half is pid 1 of its namespace, so killing it is a power cut. Every process of the namespace is its descendant:
a process that waited outside could keep a dead namespace from ending. It must not restart what dies, since a test
that kills a daemon wants it dead. The standard library alone: pid 1 has to be small.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from deploy.lab import namespaces as ns

ALL_NAMESPACES = ns.CLONE_NEWNET | ns.CLONE_NEWNS | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC | ns.CLONE_NEWPID
REQUEST_LIMIT = 1 << 16


def write_json(path: Path, value: object) -> None:
    """Replace a file in one step: a reader sees the old or the new text."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(value))
    draft.replace(path)


def start_time(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def spawn(plan: dict[str, Any]) -> None:
    """Fork pid 1 into new namespaces, and let it go on only once its identity is on disk."""
    ns.unshare(ALL_NAMESPACES)
    gate_out, gate_in = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(gate_in)
        # a spawner that was killed before it wrote the record must leave nothing behind
        if os.read(gate_out, 1) != b"g":
            os._exit(1)
        os.close(gate_out)
        _become_pid_1(plan)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    write_json(Path(plan["record"]), {"pid": child, "started": start_time(child), "boot": boot})
    os.write(gate_in, b"g")


def _become_pid_1(plan: dict[str, Any]) -> None:
    try:
        os.setsid()
        for lock in plan["locks"]:
            os.close(lock)
        os.chdir("/")
        os.umask(int(plan["umask"], 8))
        Path(plan["socket"]).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(plan["socket"] + ".new")
        listener.listen(16)
        set_up(plan)
        os.rename(plan["socket"] + ".new", plan["socket"])
        Init(listener, Path(plan["daemons"])).serve()
    except BaseException as error:
        print(f"init of {plan['hostname']} stopped: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def set_up(plan: dict[str, Any]) -> None:
    """Give the namespace its own name, /proc, /sys, /dev and directories."""
    socket.sethostname(plan["hostname"])
    ns.keep_mounts_private()
    ns.mount_kernel_views()
    if plan["private_dev"]:
        ns.mount_private_devices()
    for target in plan["tmpfs"]:
        ns.mount_tmpfs(target)
    for target in plan["grown"]:
        ns.grow(target, f"{plan['tmpfs'][0]}/.grown{target}")
    for source, target in plan["binds"]:
        if any(target.startswith(f"{made}/") for made in (*plan["tmpfs"], *plan["grown"])):
            _make_room(source, target)
        ns.bind(source, target)
    for name, value in plan["sysctl"].items():
        Path("/proc/sys", name).write_text(value)


def _make_room(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)


class Init:
    """Serves requests on a socket until it is killed. One packet is one request; descriptors 0 to 2 come with it."""

    def __init__(self, listener: socket.socket, daemons_file: Path) -> None:
        self._listener = listener
        self._daemons_file = daemons_file
        self._daemons: dict[str, dict[str, int]] = {}
        self._commands: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        wake_out, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(wake_out, False)
        signal.set_wakeup_fd(wake_in)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(wake_out, selectors.EVENT_READ, lambda: self._woken(wake_out))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        write_json(self._daemons_file, self._daemons)
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self._selector.register(client, selectors.EVENT_READ, lambda: self._receive(client))

    def _receive(self, client: socket.socket) -> None:
        """A first packet is a request; an end of file withdraws the command that is still running."""
        try:
            packet, files, _, _ = socket.recv_fds(client, REQUEST_LIMIT, 3, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            packet, files = b"", []
        if not packet:
            self._withdraw(client)
            return
        try:
            self._answer(client, json.loads(packet), files)
        except (OSError, ValueError, KeyError) as error:
            self._reply(client, {"error": str(error)})
        finally:
            for number in files:
                os.close(number)

    def _answer(self, client: socket.socket, request: dict[str, Any], files: list[int]) -> None:
        # the news of a death may stand behind this request
        self._reap()
        name = request.get("daemon")
        running = self._daemons.get(name) if name is not None else None
        if running is not None and "exit" not in running:
            self._reply(client, {"pid": running["pid"]})
            return
        argv: list[str] = request["argv"]
        environment = {**os.environ, **request["env"]}
        actions = [(os.POSIX_SPAWN_DUP2, number, target) for target, number in enumerate(files)]
        pid = os.posix_spawnp(
            argv[0], argv, environment, file_actions=actions, setsid=True,
            setsigmask=(), setsigdef=(signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT),
        )  # fmt: skip
        if name is None:
            self._commands[pid] = client
            return
        self._daemons[name] = {"pid": pid, "started": start_time(pid)}
        write_json(self._daemons_file, self._daemons)
        self._reply(client, {"pid": pid})

    def _withdraw(self, client: socket.socket) -> None:
        for pid, owner in list(self._commands.items()):
            if owner is client:
                del self._commands[pid]
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        self._close(client)

    def _reply(self, client: socket.socket, answer: dict[str, object]) -> None:
        with contextlib.suppress(OSError):
            client.send(json.dumps(answer).encode())
        self._close(client)

    def _close(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        client.close()

    def _woken(self, wake_out: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake_out, 4096)
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            client = self._commands.pop(pid, None)
            if client is not None:
                self._reply(client, {"exit": code})
            for daemon in self._daemons.values():
                if daemon["pid"] == pid and "exit" not in daemon:
                    daemon["exit"] = code
                    write_json(self._daemons_file, self._daemons)


if __name__ == "__main__":
    spawn(json.loads(Path(sys.argv[2]).read_text()))
