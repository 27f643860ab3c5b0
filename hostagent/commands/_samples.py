"""Make of libvirt's figures of a migration job one sample: sizes in bytes, times in seconds."""

from collections.abc import Mapping
from typing import Any

import libvirt

from vmorch.core.hostcommands import Sample

_OVER = frozenset({
    libvirt.VIR_DOMAIN_JOB_NONE,
    libvirt.VIR_DOMAIN_JOB_COMPLETED,
    libvirt.VIR_DOMAIN_JOB_FAILED,
    libvirt.VIR_DOMAIN_JOB_CANCELLED,
})  # fmt: skip
_TYPE = "type"


def is_over(stats: Mapping[str, Any]) -> bool:
    """Whether no job is under way any more."""
    return stats.get(_TYPE, libvirt.VIR_DOMAIN_JOB_NONE) in _OVER


def sample_of(stats: Mapping[str, Any], *, elapsed: float, memory: int, postcopy: bool) -> Sample:
    """What the figures say. `memory` is the guest's, in bytes: libvirt does not count it while disks are carried."""
    memory_total = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_TOTAL, 0)
    disk_total = stats.get(libvirt.VIR_DOMAIN_JOB_DISK_TOTAL, 0)
    if not memory_total and not disk_total:
        return Sample(elapsed=elapsed, postcopy=postcopy)
    left = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_REMAINING, 0) if memory_total else memory
    return Sample(
        elapsed=elapsed,
        passes=stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_ITERATION, 0),
        total=disk_total + (memory_total or memory),
        sent=stats.get(libvirt.VIR_DOMAIN_JOB_DATA_PROCESSED, 0),
        remaining=left + stats.get(libvirt.VIR_DOMAIN_JOB_DISK_REMAINING, 0),
        bandwidth=_rate(stats, memory_total),
        dirty_rate=_dirty_rate(stats, memory_total),
        downtime=stats.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME, -1000) / 1000,
        throttle=stats.get(libvirt.VIR_DOMAIN_JOB_AUTO_CONVERGE_THROTTLE, 0),
        postcopy=postcopy,
    )


def _rate(stats: Mapping[str, Any], memory_total: int) -> float:
    name = libvirt.VIR_DOMAIN_JOB_MEMORY_BPS if memory_total else libvirt.VIR_DOMAIN_JOB_DISK_BPS
    return float(stats.get(name, -1))


def _dirty_rate(stats: Mapping[str, Any], memory_total: int) -> float:
    pages = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE)
    # nothing was counted before memory was gone through once
    if pages is None or not memory_total or stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_ITERATION, 0) < 2:
        return -1
    return float(pages * stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE, 4096))
