"""A Debian 12 cloud image: systemd, cloud-init, guest agent and SSH on a disk that boots through GRUB.

Exists to prove what the small guest cannot: that a real cloud-init understands our seeds. Must not be what the
everyday tests boot; on an emulated processor it takes minutes.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deploy.lab.images import bootdisk
from deploy.lab.images.errors import ImageBuildError, run_tool

_CLOUD = Path(__file__).parent / "cloud"
_PACKAGES = (
    "ca-certificates", "cloud-guest-utils", "cloud-init", "dbus", "e2fsprogs", "fdisk", "grub-common", "grub-pc-bin",
    "ifupdown", "iproute2", "isc-dhcp-client", "kmod", "linux-image-cloud-amd64", "lz4", "netbase", "openssh-server",
    "qemu-guest-agent", "systemd-sysv", "udev",
)  # fmt: skip
_NEVER_NEEDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# Timers and services that only cost time in a machine that lives for minutes.
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty@tty1.service", "systemd-binfmt.service", "systemd-journal-flush.service",
    "systemd-pstore.service", "systemd-timesyncd.service",
)  # fmt: skip
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "boot", "serial", "terminal", "echo")
_ROOT_START = 1 * bootdisk.MIB
_ROOT_UUID = "5c0a3c1e-7d0e-4f5b-9b1e-766d6f726311"
_DISK_SIGNATURE = 0x766D6F73

Progress = Callable[[str], None]


def build_debian(out: Path, progress: Progress, *, size_mib: int = 2048) -> Path:
    """Write a bootable Debian 12 cloud image (compressed qcow2) to `out`, whole or not at all.

    Needs root, mmdebstrap and the package mirror, and takes some minutes; `progress` hears of each stage.
    """
    if os.geteuid() != 0:
        raise ImageBuildError("not-root", "the Debian image holds files of many owners; build it as root")
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def stage(what: str) -> None:
        progress(f"{time.monotonic() - began:6.1f} s  {what}")

    with tempfile.TemporaryDirectory(prefix="vmorch-debian-") as scratch_name:
        scratch = Path(scratch_name)
        root = scratch / "root"
        stage("installing packages")
        _install_packages(root, progress)
        stage("configuring")
        _configure(root)
        core = _grub_core(root)
        stage("writing the disk")
        disk = bootdisk.blank(scratch / "disk.raw", size_mib * bootdisk.MIB)
        partition = bootdisk.Partition(start=_ROOT_START, size=size_mib * bootdisk.MIB - _ROOT_START)
        boot_code = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()[:440]
        with disk.open("r+b") as raw:
            raw.write(bootdisk.boot_record(_pointing_at_core(boot_code), [partition], _DISK_SIGNATURE))
            raw.write(_embedded(core))
        filesystem = bootdisk.ext4(
            scratch / "root.ext4", partition.size, "root", _ROOT_UUID, ["-O", "^metadata_csum_seed"], root
        )
        bootdisk.write_at(disk, partition.start, filesystem)
        stage("compressing")
        bootdisk.to_qcow2(disk, out, compress=True)
    stage(f"done: {out} of {out.stat().st_size / 1e6:.0f} MB")
    return out


def _install_packages(root: Path, hear: Progress) -> None:
    # In namespaces of its own, so that the end of this process ends every process of it and leaves no mount of the
    # host's /dev in a directory that is about to be removed.
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child"]
    command += ["mmdebstrap"]
    command += ["--variant=minbase", "--mode=root", "--format=directory", f"--include={','.join(_PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _NEVER_NEEDED]
    # package lists of a mirror snapshot say "expired" when they are merely old
    command += ["--aptopt=Acquire::Check-Valid-Until false"]
    # before the kernel arrives, so that its initramfs is made once and small
    command += [
        '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"',
        f'--essential-hook=copy-in {_CLOUD}/initramfs.conf {_CLOUD}/initramfs.modules /tmp',
        '--essential-hook=mv "$1/tmp/initramfs.conf" "$1/etc/initramfs-tools/conf.d/vmorch-lab"',
        '--essential-hook=mv "$1/tmp/initramfs.modules" "$1/etc/initramfs-tools/modules"',
        '--dpkgopt=force-confold',
    ]  # fmt: skip
    with subprocess.Popen(
        [*command, "bookworm", str(root)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                hear(line.rstrip())
        except BaseException:
            process.kill()
            # the pipe ends when the last process that could still write into the tree is gone
            process.stdout.read()
            raise
    if process.returncode != 0:
        raise ImageBuildError("packages-failed", f"mmdebstrap ended with {process.returncode}; its words are above")


def _configure(root: Path) -> None:
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/fstab").write_text("LABEL=root / ext4 defaults,noatime 0 1\n")
    (root / "etc/cloud/cloud.cfg.d/90_dpkg.cfg").unlink(missing_ok=True)
    (root / "etc/cloud/cloud.cfg.d/99-vmorch-lab.cfg").write_bytes((_CLOUD / "99-vmorch-lab.cfg").read_bytes())
    # an empty file, not a missing one: systemd then makes an id without asking the first-boot questions
    (root / "etc/machine-id").write_text("")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")


def _grub_core(root: Path) -> bytes:
    # run inside the new tree, so that this machine needs no GRUB
    script, core = root / "tmp/grub-early.cfg", root / "tmp/core.img"
    script.write_bytes((_CLOUD / "grub-early.cfg").read_bytes())
    run_tool(
        "chroot", root, "grub-mkimage", "-O", "i386-pc", "-o", "/tmp/core.img", "-p", "(hd0,msdos1)/boot/grub",
        "-c", "/tmp/grub-early.cfg", *_GRUB_MODULES,
    )  # fmt: skip
    image = core.read_bytes()
    script.unlink()
    core.unlink()
    return image


def _pointing_at_core(boot_code: bytes) -> bytes:
    code = bytearray(boot_code)
    struct.pack_into("<Q", code, 0x5C, 1)  # core begins in sector 1
    code[0x64] = 0xFF  # on whatever disk the BIOS booted from
    return bytes(code)


def _embedded(core: bytes) -> bytes:
    image = bytearray(core + b"\0" * (-len(core) % bootdisk.SECTOR))
    if len(image) > _ROOT_START - bootdisk.SECTOR:
        raise ImageBuildError("grub-too-large", f"a core image of {len(image)} bytes does not fit before partition 1")
    # the block list that ends core's first sector: the rest follows at sector 2, to be loaded at 0x8200
    struct.pack_into("<QHH", image, bootdisk.SECTOR - 12, 2, len(image) // bootdisk.SECTOR - 1, 0x820)
    return bytes(image)
