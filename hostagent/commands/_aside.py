"""Make a call that may hang in another thread, and wait for it only so long.

Who gives up waiting leaves the call running: nothing can end a call into libvirt whose QEMU does not answer.
"""

import threading
from collections.abc import Callable

import libvirt

from hostagent.workers import WORKERS


class Call:
    """A call that has begun. `over` is set at its end; then `error` is libvirt's refusal, if it refused."""

    def __init__(self, call: Callable[[], object], ended: Callable[[], None] = lambda: None) -> None:
        """`ended` is called in the call's thread, after its end."""
        self.over = threading.Event()
        self.error: libvirt.libvirtError | None = None
        self.value: object = None
        self._call = call
        self._ended = ended
        WORKERS.start(self._run)

    def _run(self) -> None:
        try:
            self.value = self._call()
        except libvirt.libvirtError as error:
            self.error = error
        finally:
            self._ended()
            self.over.set()
