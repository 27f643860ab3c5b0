"""Remember which VMs this agent is carrying to another host now, and how often their limits were changed.

libvirt tells of a migration job only by a question that hangs when QEMU's monitor does; this is told at once.
Must not call libvirt.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vmorch.core.ids import VmId


class Passages:
    """The passages of one host. Thread-safe."""

    def __init__(self) -> None:
        self._under_way: Counter[VmId] = Counter()
        self._tunings: Counter[VmId] = Counter()
        self._downtimes: dict[VmId, float] = {}
        self._lock = threading.Lock()

    def begun(self, vm: VmId) -> None:
        """A passage of the VM is under way from now on."""
        with self._lock:
            self._under_way[vm] += 1

    def ended(self, vm: VmId) -> None:
        """That passage is over."""
        with self._lock:
            self._under_way -= Counter({vm: 1})
            if vm not in self._under_way:
                del self._tunings[vm]
                self._downtimes.pop(vm, None)

    @contextmanager
    def under_way(self, vm: VmId) -> Iterator[None]:
        """A passage of the VM is under way inside the block."""
        self.begun(vm)
        try:
            yield
        finally:
            self.ended(vm)

    def moving(self, vm: VmId) -> bool:
        """Whether a passage of the VM is under way."""
        with self._lock:
            return vm in self._under_way

    def tuned(self, vm: VmId, max_downtime: float | None) -> None:
        """The limits of the passage under way were changed, that of its pause to so many seconds, if it was."""
        with self._lock:
            self._tunings[vm] += 1
            if max_downtime is not None:
                self._downtimes[vm] = max_downtime

    def max_downtime(self, vm: VmId) -> float | None:
        """The pause in seconds that the passage under way was allowed later on, if it was."""
        with self._lock:
            return self._downtimes.get(vm)

    def tunings(self, vm: VmId) -> int:
        """How often the limits of the passage under way were changed."""
        with self._lock:
            return self._tunings[vm]
