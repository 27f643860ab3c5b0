"""The small guest's image, booted in plain QEMU: it applies a seed, and its data outlives its reboots."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pycdlib
import pytest

from deploy.lab.images import cached_tiny

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the image is made of Debian packages"),
]

T = TypeVar("T")

USER_DATA = """#cloud-config
hostname: web-1
ssh_authorized_keys:
  - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator@example
vmorch_probe: user data applied
"""
NETWORK = """version: 2
ethernets:
  nic0:
    match:
      macaddress: "52:54:00:64:00:01"
    addresses:
    - 10.0.2.15/24
"""


class Guest:
    """One QEMU process with a seed and an overlay larger than its base image."""

    def __init__(self, base: Path, home: Path) -> None:
        self.home = home
        self.serial = home / "serial.log"
        self.disk = home / "disk.qcow2"
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, self.disk, "512M"], check=True
        )
        write_seed(home / "seed.iso")

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                # whoever kills the test run kills the guest with it
                "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nographic", "-nodefaults",
                "-machine", "q35,accel=tcg", "-m", "128",
                "-chardev", f"file,id=serial,path={self.serial},append=on", "-serial", "chardev:serial",
                "-drive", f"file={self.disk},if=none,id=disk,cache=writeback",
                "-device", "virtio-blk-pci,drive=disk,bootindex=1",
                "-drive", f"file={self.home}/seed.iso,format=raw,readonly=on,if=none,id=seed",
                "-device", "virtio-blk-pci,drive=seed",
                "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,mac=52:54:00:64:00:01",
                "-device", "virtio-serial-pci",
                "-chardev", f"socket,id=agent,path={self.home}/agent,server=on,wait=off",
                "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def agent(self, command: str, **arguments: object) -> dict[str, object]:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(str(self.home / "agent"))
            link.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = json.loads(link.makefile().readline())
        assert "return" in answer, answer
        returned = answer["return"]
        return returned if isinstance(returned, dict) else {"value": returned}

    def shell(self, script: str) -> str:
        started = self.agent("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})

        def ended() -> dict[str, object] | None:
            status = self.agent("guest-exec-status", pid=started["pid"])
            return status if status["exited"] else None

        return base64.b64decode(str(wait_for(ended, f"`{script}` in the guest").get("out-data", ""))).decode()

    def lines(self, pattern: str) -> list[re.Match[str]]:
        text = self.serial.read_text(errors="replace") if self.serial.exists() else ""
        return list(re.finditer(rf"^{pattern}\r?$", text, re.MULTILINE))

    def wait_for_lines(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        return wait_for(lambda: found if len(found := self.lines(pattern)) >= count else None, pattern)

    def power_off(self) -> None:
        """Ask through the agent, as an operator's shutdown does, and wait for QEMU's end."""
        assert self._process is not None
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.home / "agent"))
            link.sendall(b'{"execute": "guest-shutdown"}\n')
            self._process.wait(timeout=30)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = 60) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := condition()) is not None:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"not within {seconds} s: {what}")


def write_seed(path: Path) -> None:
    seed = pycdlib.PyCdlib()
    seed.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    files = {"meta-data": "instance-id: i-0001\n", "user-data": USER_DATA, "network-config": NETWORK}
    for name, text in files.items():
        content = text.encode()
        iso_path = f"/{name.upper().replace('-', '_')}.;1"
        seed.add_fp(io.BytesIO(content), len(content), iso_path, rr_name=name, joliet_path=f"/{name}")
    seed.write(str(path))
    seed.close()


@pytest.fixture(scope="module")
def image() -> Path:
    return cached_tiny(Path(os.environ.get("VMORCH_LAB_CACHE", "~/.cache/vmorch/lab")).expanduser())


@pytest.fixture
def guest(image: Path, tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(image, tmp_path)
    try:
        guest.start()
        yield guest
    finally:
        guest.kill()


def test_the_image_is_small_and_is_built_once(image: Path) -> None:
    assert image.stat().st_size <= 40_000_000
    built = image.stat().st_mtime_ns
    assert cached_tiny(image.parent).stat().st_mtime_ns == built


def test_a_guest_applies_its_seed_and_says_so_on_serial(guest: Guest) -> None:
    (ready,) = guest.wait_for_lines(r"ready .*")
    assert "name=web-1" in ready[0]
    assert "instance=i-0001" in ready[0]
    assert "keys=1" in ready[0]
    assert "addresses=10.0.2.15/24" in ready[0]
    assert guest.lines("probe user data applied")
    assert guest.wait_for_lines(r"tick [0-9a-f]{8} \d+ [\d.]+", 2)
    assert json.loads(guest.shell("wget -qO- http://10.0.2.15/id.json"))["name"] == "web-1"
    assert json.loads(guest.shell("wget -qO- http://127.0.0.1/seed.json"))["ssh_keys"] == 1


def test_ticks_on_disk_survive_a_reboot_and_a_stop(guest: Guest) -> None:
    (first,) = guest.wait_for_lines(r"ready .* boot=([0-9a-f]{8}) .*")
    guest.wait_for_lines(rf"tick {first[1]} \d+ .*", 2)
    guest.shell("(sleep 0.2; reboot) >/dev/null 2>&1 </dev/null &")
    _, second = guest.wait_for_lines(r"ready .* boot=([0-9a-f]{8}) .*", 2)
    guest.wait_for_lines(rf"tick {second[1]} \d+ .*", 2)
    guest.power_off()
    guest.start()
    *_, third = guest.wait_for_lines(r"ready .* boot=([0-9a-f]{8}) .*", 3)
    guest.wait_for_lines(rf"tick {third[1]} \d+ .*", 1)

    on_disk = [line.split() for line in guest.shell("cat /data/ticks").splitlines()]
    boots = list(dict.fromkeys(boot for boot, _, _ in on_disk))
    assert boots == [first[1], second[1], third[1]]
    for boot in boots:
        counts = [int(count) for which, count, _ in on_disk if which == boot]
        assert counts == list(range(1, len(counts) + 1))
