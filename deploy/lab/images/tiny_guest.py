"""The small guest: a Debian kernel, busybox and Debian's guest agent on a disk that boots by itself in seconds.

Exists so that tests can boot real guests on emulated processors. Must not grow into a distribution: what a test of
the orchestrator does not look at stays out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from deploy.lab.images import bootdisk, initramfs, packages, syslinux
from deploy.lab.images.errors import ImageBuildError, run_tool

_HERE = Path(__file__).parent
_GUEST = _HERE / "guest"
_SOURCES = ("errors.py", "packages.py", "initramfs.py", "bootdisk.py", "syslinux.py", "tiny_guest.py")

_KERNEL = "linux-image-cloud-amd64"
_GUEST_PACKAGES = (
    "busybox-static", "qemu-guest-agent", "libc6", "libglib2.0-0", "libnuma1", "libpcre2-8-0", "libudev1", "liburing2",
)  # fmt: skip
_AGENT_LIBRARIES = (
    "libc.so.6", "libglib-2.0.so.0", "libgmodule-2.0.so.0", "libm.so.6", "libnuma.so.1", "libpcre2-8.so.0",
    "libudev.so.1", "liburing.so.2",
)  # fmt: skip

# Kernel modules by the moment they are needed; what they depend on is added in front of them.
_MODULES = {
    "first": ("virtio_pci", "virtio_blk", "virtio_console"),
    "second": ("virtio_net", "isofs"),
    "third": ("button", "evdev", "virtio-rng", "virtio_balloon", "virtio_mem"),
    "scsi": ("virtio_scsi", "ata_piix", "sd_mod", "sr_mod"),
}

_SCRIPTS = {
    "init": "init",
    "hostname.awk": "lib/seed/hostname.awk",
    "keys.awk": "lib/seed/keys.awk",
    "network.awk": "lib/seed/network.awk",
    "network.sh": "lib/seed/network.sh",
    "dhcp-lease": "sbin/dhcp-lease",
    "shutdown": "sbin/shutdown",
    "power-button": "etc/acpi/PWRF/00000080",
    "freeze-hook": "sbin/freeze-hook",
    "dirty": "sbin/dirty",
}

_DIRECTORIES = (
    "bin", "data", "dev", "etc", "modules", "proc", "root", "run", "sbin", "seed", "sys", "system", "tmp",
)  # fmt: skip
# Everything after `no_timer_check` (without which a loaded machine can panic the guest) only saves boot time on
# emulated processors: no relocation, no cipher self-tests, no patching for flaws an emulator does not have.
_COMMAND_LINE = (
    "console=ttyS0 quiet no_timer_check nokaslr cryptomgr.notests mitigations=off tsc=reliable "
    "rcupdate.rcu_expedited=1 init_on_alloc=0 lsm=capability audit=0 nowatchdog"
)
_MIB = bootdisk.MIB
_BOOT = bootdisk.Partition(start=1 * _MIB, size=32 * _MIB, kind=bootdisk.FAT16)
_DATA = bootdisk.Partition(start=33 * _MIB, size=80 * _MIB)
_SYSTEM = bootdisk.Partition(start=113 * _MIB, size=14 * _MIB)
_DISK_SIZE = 128 * _MIB
_DATA_UUID = "5c0a3c1e-7d0e-4f5b-9b1e-766d6f726302"
_SYSTEM_UUID = "5c0a3c1e-7d0e-4f5b-9b1e-766d6f726303"
_DISK_SIGNATURE = 0x766D6F72


def recipe_versions() -> dict[str, str]:
    """Every Debian package the image is made of, at the version this machine's package lists offer."""
    kernel = packages.newest_dependency(_KERNEL, "linux-image-")
    return packages.candidate_versions([kernel, *_GUEST_PACKAGES, *syslinux.PACKAGES])


def recipe_digest(versions: dict[str, str]) -> str:
    """A hash that changes when any source file or package version that shapes the image changes."""
    digest = hashlib.sha256()
    for source in [*(_HERE / name for name in _SOURCES), *sorted(_GUEST.iterdir())]:
        digest.update(f"{source.name}\0{hashlib.sha256(source.read_bytes()).hexdigest()}\n".encode())
    for name, version in sorted(versions.items()):
        digest.update(f"{name}={version}\n".encode())
    return digest.hexdigest()


def build_tiny(out: Path) -> Path:
    """Write the small guest's disk to `out` (qcow2, 128 MiB virtual), whole or not at all. Needs no root."""
    return _build(out, recipe_versions())


def cached_tiny(cache_dir: Path) -> Path:
    """The small guest's disk, built at most once per recipe; callers at the same time wait for one build.

    Treat the answer as read-only and put an overlay over it.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    versions = recipe_versions()
    image = cache_dir / f"tiny-{recipe_digest(versions)[:16]}.qcow2"
    with (cache_dir / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            for abandoned in cache_dir.glob(".tiny-*.partial"):
                abandoned.unlink()
            _build(image, versions)
    return image


def _build(out: Path, versions: dict[str, str]) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmorch-tiny-") as scratch_name:
        scratch = Path(scratch_name)
        tree = scratch / "debian"
        packages.unpack(versions, tree, scratch / "archives")
        initrd = scratch / "initrd"
        initrd.write_bytes(initramfs.pack(_guest_root(tree, scratch / "root")))
        os.utime(initrd, (0, 0))
        (kernel,) = (tree / "boot").glob("vmlinuz-*")
        files = {"kernel": kernel, "initrd": initrd}

        disk = bootdisk.blank(scratch / "disk.raw", _DISK_SIZE)
        with disk.open("r+b") as raw:
            raw.write(bootdisk.boot_record(syslinux.boot_code(tree), [_BOOT, _DATA, _SYSTEM], _DISK_SIGNATURE))
        boot = syslinux.boot_partition(tree, _BOOT, files, _COMMAND_LINE, scratch)
        data = bootdisk.ext4(scratch / "data.ext4", _DATA.size, "data", _DATA_UUID, ["-J", "size=4"])
        system = bootdisk.ext4(
            scratch / "system.ext4", _SYSTEM.size, "system", _SYSTEM_UUID, ["-O", "^has_journal", "-N", "64"],
            _system_files(tree, scratch / "system"),
        )  # fmt: skip
        for place, image in ((_BOOT, boot), (_DATA, data), (_SYSTEM, system)):
            bootdisk.write_at(disk, place.start, image)
        bootdisk.to_qcow2(disk, out, compress=False)
    return out


def _guest_root(tree: Path, root: Path) -> Path:
    for directory in _DIRECTORIES:
        (root / directory).mkdir(parents=True)
    shutil.copy2(tree / "bin/busybox", root / "bin/busybox")
    for applet in run_tool(root / "bin/busybox", "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    for source, target in _SCRIPTS.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_GUEST / source, root / target)
        (root / target).chmod(0o644 if target.startswith("lib/") else 0o755)
    (root / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    _copy_modules(tree, root / "modules")
    return root


def _copy_modules(tree: Path, target: Path) -> None:
    found = {path.stem: path for path in (tree / "lib/modules").rglob("*.ko")}
    loaded: list[str] = []

    def need(name: str) -> list[str]:
        # module names and file names disagree about dashes
        file = found.get(name) or found.get(name.replace("_", "-"))
        if file is None:
            raise ImageBuildError("module-missing", f"this kernel has no module {name}")
        if file.stem in loaded:
            return []
        before = [module for parent in _depends_on(file) for module in need(parent)]
        loaded.append(file.stem)
        shutil.copyfile(file, target / file.name)
        return [*before, file.stem]

    for moment, wanted in _MODULES.items():
        order = [module for name in wanted for module in need(name)]
        (target / moment).write_text(" ".join(order) + "\n")


def _depends_on(module: Path) -> list[str]:
    content = module.read_bytes()
    start = content.index(b"\0depends=") + len(b"\0depends=")
    return [name for name in content[start : content.index(b"\0", start)].decode().split(",") if name]


def _system_files(tree: Path, system: Path) -> Path:
    """The agent with its libraries. Not in the initramfs: read on demand, and given back when memory is short."""
    agent = system / "agent"
    agent.mkdir(parents=True)
    shutil.copy(tree / "usr/sbin/qemu-ga", agent / "qemu-ga")
    shutil.copy(tree / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", agent / "ld.so")
    for library in _AGENT_LIBRARIES:
        shutil.copy(next(path for path in tree.rglob(library) if path.exists()), agent / library)
    for path in [*system.rglob("*"), system]:
        os.utime(path, (0, 0))
    return system
