"""Find out whether this machine can really run a guest with KVM, by running one.

A kernel may offer /dev/kvm and still be unable to run anything; whoever believes it ends with guests that die. So a
guest of 512 bytes has to boot and say so. The answer holds until the machine boots again.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from hostagent.domain_xml import DomainType

SECONDS = 10.0
_EMULATOR = "qemu-system-x86_64"
_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SAID = 0x2A
_EXIT_PORT = 0xF4
_DISK_BYTES = 1 << 20
"""Firmware does not boot from a disk of one sector."""
_EXPECTED_STATUS = (_SAID << 1) | 1
"""What QEMU's isa-debug-exit device makes of a byte written to it."""

_log = structlog.get_logger(__name__)


class _Verdict(msgspec.Struct, frozen=True):
    boot: str
    kvm: bool


def choose_domain_type(accel: Literal["auto", "kvm", "tcg"], memory: Path) -> DomainType:
    """`kvm` where a guest was seen to run with it, else `qemu`. Only `auto` looks; the verdict is kept in `memory`."""
    if accel != "auto":
        return "kvm" if accel == "kvm" else "qemu"
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "qemu"
    boot = _BOOT_ID.read_text().strip()
    known = _recall(memory)
    if known is None or known.boot != boot:
        known = _Verdict(boot, boots_with("kvm"))
        _log.info("tried KVM with a guest", works=known.kvm)
        memory.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        memory.write_bytes(msgspec.json.encode(known))
    return "kvm" if known.kvm else "qemu"


def boots_with(accelerator: str) -> bool:
    """Whether a guest gets through its firmware to its boot sector within the time given."""
    with tempfile.TemporaryDirectory(prefix="vmorch-accel-") as directory:
        disk = Path(directory) / "boot.img"
        disk.write_bytes(_boot_sector().ljust(_DISK_BYTES, b"\0"))
        arguments = [
            *("-machine", f"q35,accel={accelerator}", "-cpu", "host" if accelerator == "kvm" else "qemu64"),
            *("-m", "32", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-drive", f"file={disk},format=raw,if=virtio,readonly=on"),
            *("-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"),
        ]
        try:
            done = subprocess.run(
                [_EMULATOR, *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=SECONDS, check=False,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, FileNotFoundError):
            return False
        return done.returncode == _EXPECTED_STATUS


def _boot_sector() -> bytes:
    # mov al, said; out port, al; cli; hlt
    code = bytes((0xB0, _SAID, 0xE6, _EXIT_PORT, 0xFA, 0xF4))
    return code.ljust(510, b"\0") + b"\x55\xaa"


def _recall(memory: Path) -> _Verdict | None:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=_Verdict)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
