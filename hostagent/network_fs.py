"""Tell whether files lie on a file system that several machines can have open at once."""

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_KINDS = frozenset({
    "nfs", "nfs4", "gfs2", "ocfs2", "afs", "smb3", "cifs", "ceph", "gpfs", "acfs", "fuse.glusterfs", "fuse.quobyte",
})  # fmt: skip
"""Those that libvirt knows as such."""


def is_network_fs(path: Path) -> bool:
    """Whether the path lies on one."""
    return _kind(path) in _KINDS


def keeps_names(path: Path) -> bool:
    """Whether a file that is deleted there while it is open gets another name instead, as on NFS and by FUSE."""
    kind = _kind(path)
    return kind in _KINDS or kind.startswith("fuse")


def _kind(path: Path) -> str:
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return ""
