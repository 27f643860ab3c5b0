"""Say at once, and completely, why a machine cannot run a lab, instead of failing in the middle of it."""

import os
import shutil
import sys
from pathlib import Path

from deploy.lab.container import CHECKOUT
from deploy.lab.errors import LabError

# tool or file -> Debian package
_TOOLS = {
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
_FILES = {
    "etc/libvirt/nwfilter": "libvirt-daemon-config-nwfilter",
    "usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so": "libvirt-daemon-driver-qemu",
}
_MOUNT_POINTS = (
    "/srv", "/run", "/etc/libvirt", "/etc/hosts", "/etc/machine-id",
    "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt",
)  # fmt: skip
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require_root() -> None:
    """LabError unless this process may make, enter and end namespaces."""
    if sys.platform != "linux":
        raise LabError("a lab needs Linux: it is made of its namespaces")
    if os.geteuid() != 0:
        raise LabError("a lab needs root, for namespaces and libvirtd", "run it with sudo")


def check() -> None:
    """LabError with the way out if this machine or this process cannot make a lab."""
    require_root()
    missing = {package for tool, package in _TOOLS.items() if shutil.which(tool, path=_SYSTEM_PATH) is None}
    missing |= {package for file, package in _FILES.items() if not any(Path("/").glob(file))}
    if missing:
        packages = " ".join(sorted(missing))
        raise LabError(f"missing packages: {packages}", f"apt-get install --no-install-recommends {packages}")
    for kind in ("net", "mnt", "uts", "ipc", "pid"):
        if not Path("/proc/self/ns", kind).exists():
            raise LabError(f"this kernel has no {kind} namespaces")
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        raise LabError("this kernel has no overlay file system", "modprobe overlay")
    absent = [path for path in _MOUNT_POINTS if not Path(path).exists()]
    if absent:
        raise LabError(f"a host needs these to exist, to cover them with its own: {' '.join(absent)}")
    for needed in (CHECKOUT, Path(sys.prefix).resolve()):
        for covered in ("/srv", "/run"):
            if needed.is_relative_to(covered):
                raise LabError(f"{needed} would be invisible on hosts: each has its own {covered}", "move it")
