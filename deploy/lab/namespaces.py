"""The system calls that make a namespace a machine: unshare, mount and a private /dev.

Used only by the first process of each namespace set, before it starts anything else. Needs root. The standard
library alone: this is loaded by pid 1 of every lab host.
"""

import ctypes
import os
import stat
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MNT_DETACH = 2

# name, major, minor. No kvm: many machines offer one that cannot run a guest, and libvirt believes what it sees.
_DEVICES = (
    ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0),
    ("net/tun", 10, 200), ("vhost-net", 10, 238), ("fuse", 10, 229),
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()), f"mount {source} on {target}")


def keep_mounts_private() -> None:
    """No mount made from here on reaches another namespace."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def bind(source: str, target: str) -> None:
    _mount(source, target, None, _MS_BIND)


def mount_tmpfs(target: str, mode: str = "0755") -> None:
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID, f"mode={mode}")


def grow(target: str, room: str) -> None:
    """Let a directory of the machine have more in it here than there; `room`, on a tmpfs, takes what is new."""
    upper, work = f"{room}/upper", f"{room}/work"
    os.makedirs(upper)
    os.makedirs(work)
    _mount("overlay", target, "overlay", 0, f"lowerdir={target},upperdir={upper},workdir={work}")


def mount_kernel_views() -> None:
    """Show the processes and the network devices of this namespace, and no control groups of the machine."""
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _check(_libc.umount2(b"/sys", _MNT_DETACH), "umount /sys")
    _mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def mount_private_devices() -> None:
    """A /dev of our own with what libvirt and QEMU need, terminals and shared memory included."""
    mount_tmpfs("/dev")
    for name, major, minor in _DEVICES:
        path = Path("/dev", name)
        if not (path.name in ("vhost-net", "fuse") and not _driver_present(major, minor)):
            path.parent.mkdir(exist_ok=True)
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            path.chmod(0o666)
    for name in ("pts", "shm", "mqueue"):
        Path("/dev", name).mkdir()
    _mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    mount_tmpfs("/dev/shm", "1777")
    _mount("mqueue", "/dev/mqueue", "mqueue", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.symlink("/proc/self/fd", "/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")


def _driver_present(major: int, minor: int) -> bool:
    return Path(f"/sys/dev/char/{major}:{minor}").exists()
