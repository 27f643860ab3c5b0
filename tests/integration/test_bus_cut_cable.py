"""A cable is cut between control plane and broker, silently, and healed. Needs root, for network namespaces."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import vmorch

pytestmark = [
    pytest.mark.nats,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]

PREFIX = "vmorch-cable-"


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def near_and_far() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable between them."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and not Path("/proc", owner).exists():
            ip("netns", "delete", name)
    near, far = f"{PREFIX}{os.getpid()}-near", f"{PREFIX}{os.getpid()}-far"
    with ExitStack() as made:
        for namespace in (near, far):
            ip("netns", "add", namespace)
            made.callback(ip, "netns", "delete", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("link", "add", "near", "netns", near, "type", "veth", "peer", "name", "far", "netns", far)
        ends = (
            (near, "near", "10.64.77.1", "02:00:00:00:00:01"),
            (far, "far", "10.64.77.2", "02:00:00:00:00:02"),
        )
        for (namespace, end, address, mac), (_, _, other, other_mac) in (ends, ends[::-1]):
            ip("-n", namespace, "link", "set", end, "address", mac)
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", end)
            ip("-n", namespace, "link", "set", end, "up")
            # a kernel that asks for an address keeps the last packets for some seconds, as a network may
            ip(
                "-n",
                namespace,
                "neighbour",
                "add",
                other,
                "lladdr",
                other_mac,
                "dev",
                end,
                "nud",
                "permanent",
            )
        yield near, far


class End:
    """A process at one end of the cable, and the lines that it says."""

    def __init__(self, namespace: str, role: str, directory: Path) -> None:
        script = Path(__file__).with_name("cable_end.py")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, str(script), role, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(vmorch.__file__).parents[1])},
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def told(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def leave(self) -> None:
        self.process.communicate(timeout=30)


def connections(namespace: str) -> list[str]:
    """The states, in /proc's numbers, of the connections that could still deliver something."""
    table = ip("netns", "exec", namespace, "cat", "/proc/net/tcp").splitlines()[1:]
    syn_sent = "02"
    return [state for line in table if (state := line.split()[3]) != syn_sent]


def test_an_order_from_before_a_cut_is_not_delivered_after_it(
    near_and_far: tuple[str, str], tmp_path: Path
) -> None:
    near, far = near_and_far
    with ExitStack() as running:
        server = End(far, "server", tmp_path)
        running.callback(server.leave)
        assert (server.says(), server.says()) == ("connected", "ready")
        client = End(near, "client", tmp_path)
        running.callback(client.leave)
        assert client.says() == "connected"
        client.told("before")
        assert (client.says(), server.says()) == ("published", "before")

        ip("-n", far, "link", "set", "far", "down")
        cut = time.monotonic()
        client.told("lost")
        assert (client.says(), client.says()) == ("published", "disconnected")
        assert time.monotonic() - cut < 6.5
        # the kernel has nothing left that it would send once it can
        assert connections(near) == []

        ip("-n", far, "link", "set", "far", "up")
        assert client.says() == "connected"
        client.told("after")
        assert (client.says(), server.says()) == ("published", "after")
