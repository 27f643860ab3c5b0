"""Certificates of hosts: which names one may carry, and which ones are no longer to be trusted.

Guests travel from host to host under these names, so that a host with another's name could take its guests in. Must
not sign anything, and must not look a name up.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from ipaddress import ip_address
from typing import Annotated, Final

from msgspec import Meta

from vmorch.core.errors import Rejected
from vmorch.core.spec import NAME_PATTERN
from vmorch.core.value import Value

_LABEL: Final = re.compile(NAME_PATTERN)

Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{1,64}$(?!\n)")]

MAX_NAMES = 4
MAX_CERTIFICATES = 32
"""Certificates in force that a host may have at once: it needs one, and a second while it changes over."""


class Certificate(Value, frozen=True, kw_only=True):
    """A certificate as the log knows it. `fingerprint` is the SHA-256 of all of it, `key` that of its public key."""

    serial: Hex
    fingerprint: Hex
    key: Hex
    names: tuple[str, ...]
    expires: datetime


class Revocation(Value, frozen=True, kw_only=True):
    """A certificate that is not to be trusted from `at` on, although it would last longer."""

    serial: Hex
    at: datetime
    expires: datetime


def revoke(certificates: Iterable[Certificate], at: datetime) -> tuple[Revocation, ...]:
    """Those that would still be in force."""
    return tuple(
        Revocation(serial=each.serial, at=at, expires=each.expires) for each in certificates if each.expires > at
    )


def names_for(name: str, asked: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """What the certificate of the host called `name` carries when its agent asks for these names. `others` are held by
    other hosts, as their own or in their certificates. Raises Rejected `foreign-name`."""
    found = (name, *sorted({each.lower() for each in asked} - {name}))
    if len(found) > MAX_NAMES:
        raise Rejected("foreign-name", f"a certificate carries at most {MAX_NAMES} names, not {len(found)}")
    taken = set(others)
    for each in found[1:]:
        against = _against(each, taken)
        if against:
            raise Rejected("foreign-name", f"the certificate of {name} cannot carry {each!r}: {against}")
    return found


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _against(name: str, taken: set[str]) -> str:
    if name in taken:
        return "another host holds it"
    if is_address(name):
        address = ip_address(name)
        if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
            return "every host has such an address"
        return "" if str(address) == name else f"it is written {address}"
    if not _is_host_name(name):
        return "it is neither a host name nor an address"
    first = name.partition(".")[0]
    if first == "localhost":
        return "every host has this name"
    # hv-02.example is hv-02 to everybody who has a search domain
    return "another host is called that" if first in taken else ""


def _is_host_name(name: str) -> bool:
    # a last label of digits alone is an address gone wrong
    labels = name.split(".")
    return (
        len(name) <= 253
        and len(labels) <= 9
        and not labels[-1].isdigit()
        and all(_LABEL.fullmatch(label) for label in labels)
    )
