"""Print every lifecycle event of a libvirt as `NAME EVENT DETAIL`, after a first line `ready`, until stdin ends.

Run as `python -m tests.chaos.observer URI`, in a process of its own because libvirt's event loop is one per process.
"""

import sys
import threading
from typing import Any

import libvirt


def tell(_connection: Any, domain: Any, event: int, detail: int, _opaque: None) -> None:
    print(domain.name(), event, detail, flush=True)


def dispatch() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def main(uri: str) -> None:
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=dispatch, daemon=True).start()
    connection = libvirt.openReadOnly(uri)
    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, tell, None)
    print("ready", flush=True)
    sys.stdin.read()
    # answers come in the order of events: after this one every earlier event has been told
    connection.listAllDomains()


if __name__ == "__main__":
    main(sys.argv[1])
