"""Tell how much of a storage can be promised to VMs' disks: what is free, and what their disks already hold."""

import os
from pathlib import Path

from hostagent.layout import Layout, free_bytes
from vmorch.core.ids import GiB
from vmorch.core.spec import Storage

_GIB = 1024**3
_BLOCK = 512


def storage_gib(layout: Layout, storage: Storage) -> GiB:
    """Whole GiB that all disks of a storage together can come to hold; steady while they fill."""
    root = layout.root(storage)
    root.mkdir(parents=True, exist_ok=True, mode=0o711)
    return GiB((free_bytes(root) + _held(layout.vms(storage))) // _GIB)


def _held(vms: Path) -> int:
    """Bytes that the VMs' files take now."""
    total = 0
    for directory, _, names in os.walk(vms):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * _BLOCK
            except FileNotFoundError:  # deleted while we walked
                continue
    return total
