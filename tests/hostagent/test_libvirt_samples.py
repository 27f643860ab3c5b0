"""libvirt's figures of a migration, as one sample."""

import libvirt

from hostagent.commands._samples import is_over, sample_of
from vmorch.core.hostcommands import Sample
from vmorch.core.migration import Track, follow

MEMORY = 128 << 20


def sample(**stats: int) -> Sample:
    return sample_of(stats, elapsed=1.0, memory=MEMORY, postcopy=False)


def test_before_anything_is_known_nothing_is_said() -> None:
    assert sample(type=libvirt.VIR_DOMAIN_JOB_UNBOUNDED, memory_total=0) == Sample(elapsed=1.0)
    assert is_over({"type": libvirt.VIR_DOMAIN_JOB_NONE})
    assert is_over({})
    assert not is_over({"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED})


def test_memory_that_is_not_counted_yet_is_still_to_come_while_disks_are_carried() -> None:
    disks = sample(disk_total=1 << 30, disk_remaining=1 << 20, disk_bps=5 << 20, data_processed=1 << 29)
    assert (disks.total, disks.remaining) == ((1 << 30) + MEMORY, (1 << 20) + MEMORY)
    assert (disks.bandwidth, disks.dirty_rate, disks.downtime) == (5 << 20, -1, -1)
    begun = sample(disk_total=1 << 30, memory_total=MEMORY, memory_remaining=MEMORY - (4 << 20), memory_iteration=1)
    # so that the change from disks to memory is progress, not a step back
    assert follow(follow(Track(), disks), begun).least == begun.remaining


def test_rates_and_times_are_in_bytes_and_seconds() -> None:
    seen = sample(
        memory_total=MEMORY,
        memory_remaining=1 << 20,
        memory_iteration=3,
        memory_bps=10_000,
        memory_dirty_rate=991,
        memory_page_size=4096,
        downtime=250,
        auto_converge_throttle=40,
        data_processed=77,
    )
    assert seen == Sample(
        elapsed=1.0,
        passes=3,
        total=MEMORY,
        sent=77,
        remaining=1 << 20,
        bandwidth=10_000,
        dirty_rate=991 * 4096,
        downtime=0.25,
        throttle=40,
    )


def test_what_a_guest_writes_is_not_known_in_the_first_pass() -> None:
    assert sample(memory_total=MEMORY, memory_iteration=1, memory_dirty_rate=0).dirty_rate == -1
