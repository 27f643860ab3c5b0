"""Hold the connections to libvirt's daemon, notice when it goes away, and pass on what it tells of domains.

Two connections: one for calls that may take long, one for questions, because libvirt serves only a few requests
of a connection at once. libvirt's own thread only hands over; it must never wait here for a lock that a
calling thread holds during a call. Must not decide what a lost daemon means.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import libvirt

from hostagent.hypervisor import HypervisorLost
from vmorch.core.ids import VmId

KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 3, 4
"""Seconds between questions to a silent daemon, and how many go unanswered before it counts as lost."""

_EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE,
    libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
)

_DEVICES = {
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: "added",
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: "removed",
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED: "refused",
}
News = tuple[str, str]
"""What happened to a device, `added`, `removed` or `refused`, and by which name QEMU knows it."""

_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def _start_event_loop() -> None:
    """Run libvirt's event loop for this process. A connection opened before it has neither events nor keepalive."""
    global _loop
    with _loop_lock:
        if _loop is not None:
            return
        libvirt.virEventRegisterDefaultImpl()
        # errors come as exceptions; without this each is also printed
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        _loop = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
        _loop.start()


def _run_event_loop() -> None:
    while True:
        with suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


class Link:
    """Connects when first asked. Once the daemon is lost every use raises HypervisorLost until it is back."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._registered: list[int] = []
        self._lock = threading.Lock()
        self._connections: tuple[Any, Any] | None = None
        self._changed: Callable[[VmId | None], None] = lambda _vm: None
        self._lost: Callable[[], None] = lambda: None
        self._closed = False
        self._listening: dict[VmId, set[SimpleQueue[News]]] = {}

    @property
    def calls(self) -> Any:
        """The connection for work. Raises HypervisorLost."""
        return self._open()[0]

    @property
    def queries(self) -> Any:
        """The connection for questions that are answered at once. Raises HypervisorLost."""
        return self._open()[1]

    @contextmanager
    def line(self) -> Iterator[Any]:
        """One more connection, inside the block: for a call that may take hours, which would take a place among the
        few that each connection has. Raises HypervisorLost."""
        _start_event_loop()
        try:
            connection = libvirt.open(self._uri)
        except libvirt.libvirtError as error:
            raise HypervisorLost(str(error)) from error
        with suppress(libvirt.libvirtError):
            connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        # not closed by hand: a call that hangs may still be inside, and the last reference to go closes it
        yield connection

    @contextmanager
    def devices(self, vm: VmId) -> Iterator["SimpleQueue[News]"]:
        """What libvirt tells of the domain's devices inside the block. Raises HypervisorLost."""
        self._open()
        told: SimpleQueue[News] = SimpleQueue()
        with self._lock:
            self._listening.setdefault(vm, set()).add(told)
        try:
            yield told
        finally:
            with self._lock:
                self._listening[vm].discard(told)
                if not self._listening[vm]:
                    del self._listening[vm]

    def watch(self, changed: Callable[[VmId | None], None], lost: Callable[[], None]) -> None:
        """Hand over what libvirt tells from now on, from its thread."""
        self._changed, self._lost = changed, lost

    def reconnect(self) -> None:
        """Have living connections. Raises HypervisorLost."""
        for connection in self._open():
            if not _is_alive(connection):
                self._drop(connection)
        self._open()

    def is_alive(self) -> bool:
        """Whether the connections stand now."""
        with self._lock:
            return self._connections is not None and all(_is_alive(each) for each in self._connections)

    def close(self) -> None:
        """Let go of the daemon for good."""
        with self._lock:
            self._closed = True
            gone, self._connections = self._connections, None
            registered, self._registered = self._registered, []
        _let_go(gone or (), registered)

    def _open(self) -> tuple[Any, Any]:
        with self._lock:
            if self._connections is not None:
                return self._connections
            if self._closed:
                raise HypervisorLost("the link was closed")
            _start_event_loop()
            made: list[Any] = []
            try:
                for _ in range(2):
                    made.append(libvirt.open(self._uri))
                    self._prepare(made[-1])
                self._registered = [
                    made[1].domainEventRegisterAny(None, event, self._on_event, event) for event in _EVENTS
                ] + [made[1].domainEventRegisterAny(None, event, self._on_device, event) for event in _DEVICES]
            except libvirt.libvirtError as error:
                _let_go(tuple(made), [])
                raise HypervisorLost(str(error)) from error
            self._connections = (made[0], made[1])
            return self._connections

    def _prepare(self, connection: Any) -> None:
        connection.registerCloseCallback(self._on_close, None)
        with suppress(libvirt.libvirtError):  # a driver inside this process has nothing to keep alive
            connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)

    def _on_close(self, connection: Any, _reason: int, _context: object) -> None:
        # the lock may be held by a thread that waits for this very daemon, so hand over to a thread of its own
        threading.Thread(target=self._drop, args=(connection,), name="libvirt-lost", daemon=True).start()

    def _drop(self, connection: Any) -> None:
        with self._lock:
            known = self._connections
            if known is None or connection not in known:
                return
            self._connections = None
            registered, self._registered = self._registered, []
        _let_go(known, registered)
        self._lost()

    def _on_device(self, _connection: Any, domain: Any, alias: str, event: int) -> None:
        # not under the lock: a calling thread may hold it, and waits for this very thread
        for told in tuple(self._listening.get(VmId(domain.name()), ())):
            told.put((_DEVICES[event], alias))

    def _on_event(self, _connection: Any, domain: Any, *details: Any) -> None:
        self._changed(VmId(domain.name()))


def _is_alive(connection: Any) -> bool:
    """Whether the connection's socket still stands."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _let_go(connections: tuple[Any, ...], registered: list[int]) -> None:
    """Forget connections, of which the last holds the registered events; each event left would keep it open.

    Not closed by hand: another thread may be inside a call, and the last reference to go closes it.
    """
    for event in registered:
        with suppress(libvirt.libvirtError):
            connections[-1].domainEventDeregisterAny(event)
    for connection in connections:
        with suppress(libvirt.libvirtError):
            connection.unregisterCloseCallback()
