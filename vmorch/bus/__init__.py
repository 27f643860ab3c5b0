"""The bus between control plane and hosts: requests, answers, reports and heartbeats, kept by nobody.

Must not decide anything about VMs, nor remember what it carried.
"""

from vmorch.bus.bus import (
    Bus,
    BusError,
    BusUnavailable,
    Handler,
    MessageTooLarge,
    NoResponders,
    ReplyAllowed,
    RequestTimeout,
    to_control_plane,
    to_nobody,
    to_sending_host,
)

__all__ = [
    "Bus",
    "BusError",
    "BusUnavailable",
    "Handler",
    "MessageTooLarge",
    "NoResponders",
    "ReplyAllowed",
    "RequestTimeout",
    "to_control_plane",
    "to_nobody",
    "to_sending_host",
]
