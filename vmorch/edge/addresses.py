"""Which addresses the server may connect to on a caller's behalf: public ones, and those an operator allowed.

Everything that is not known to be public is refused, so that a kind of address nobody thought of is too.
Must not resolve names.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

# The special-purpose registries of IANA. Not `ip_address(...).is_global`: its answers differ between Python releases.
_SPECIAL_V4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
# within 2000::/3: protocol assignments with Teredo, documentation, 6to4 (which hides an IPv4 address), AS112
_SPECIAL_V6 = tuple(
    IPv6Network(each) for each in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)


def parse(text: str) -> Address:
    """The address in its one usual spelling. Raises ValueError for anything else, zone ids included."""
    if "%" in text:
        raise ValueError(f"{text!r} carries a zone")
    return ip_address(text)


def network(text: str) -> Network:
    """A network such as 10.0.0.0/8. Raises ValueError."""
    return ip_network(text)


def may_reach(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether a connection to this address is allowed."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address.version == each.version and address in each for each in allowed):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in each for each in _SPECIAL_V4)
    return address in _PUBLIC_V6 and not any(address in each for each in _SPECIAL_V6)
