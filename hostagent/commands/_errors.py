"""The one place where libvirt's errors get a meaning; its own words are kept."""

import libvirt

from hostagent.hypervisor import HypervisorLost
from hostagent.link import Link
from vmorch.core.errors import Rejected

_GONE = frozenset({libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN})
_BUSY = frozenset({libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY})
_NO_HALF = "is not processing incoming migration"
_NO_SPACE = ("No space left on device", "Disk quota exceeded")


def is_absent(error: libvirt.libvirtError) -> bool:
    """Whether libvirt says that there is no such domain."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


def is_busy(error: libvirt.libvirtError) -> bool:
    """Whether libvirt gave up waiting for another of its jobs on the domain."""
    return error.get_error_code() in _BUSY


def has_nothing_to_take_up(error: libvirt.libvirtError) -> bool:
    """Whether a destination says that no half of the guest is there any more. It has no code of its own for that."""
    return is_absent(error) or _NO_HALF in (error.get_error_message() or "")


def refusal_of(error: libvirt.libvirtError, link: Link) -> Rejected:
    """What an error means for the one who gave the order. Raises HypervisorLost if the daemon went away."""
    code, message = error.get_error_code(), error.get_error_message() or str(error)
    if code in _GONE or error.get_error_domain() == libvirt.VIR_FROM_RPC or not link.is_alive():
        raise HypervisorLost(message) from error
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return Rejected("no-domain", message)
    if code in _BUSY:
        return Rejected("busy", message)
    if any(words in message for words in _NO_SPACE):
        return Rejected("disk-full", message)
    return Rejected("libvirt-refused", message)
