"""Tell how much room there is: of a storage what can be promised to VMs' disks, of the memory what is free now."""

import os
from pathlib import Path

from hostagent.layout import Layout, free_bytes
from vmorch.core.ids import GiB, MiB
from vmorch.core.spec import Storage

_GIB = 1024**3
_BLOCK = 512
_MEMORY = Path("/proc/meminfo")


def storage_gib(layout: Layout, storage: Storage) -> GiB:
    """Whole GiB that all disks of a storage together can come to hold; steady while they fill."""
    root = layout.root(storage)
    root.mkdir(parents=True, exist_ok=True, mode=0o711)
    return GiB((free_bytes(root) + _held(layout.vms(storage))) // _GIB)


def memory_available() -> MiB:
    """What a new guest can get of the machine's memory without pushing anything out."""
    for line in _MEMORY.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return MiB(int(value.split()[0]) // 1024)
    raise ValueError(f"no MemAvailable in {_MEMORY}")


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
