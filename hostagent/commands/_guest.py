"""Ask a guest, by its agent or of the network, where it is. What it says is its own claim and read as such."""

import ipaddress
import json
from typing import Any

import libvirt
import libvirt_qemu
import msgspec

from vmorch.core.spec import NicSpec

_AGENT_SECONDS = 2
_MOST_ADDRESSES = 32


class _Address(msgspec.Struct):
    address: str = msgspec.field(name="ip-address")


class _Interface(msgspec.Struct):
    name: str
    addresses: list[_Address] = msgspec.field(name="ip-addresses", default_factory=list)


class _Interfaces(msgspec.Struct):
    interfaces: list[_Interface] = msgspec.field(name="return")


_interfaces = msgspec.json.Decoder(_Interfaces)


def ping(domain: Any) -> str:
    """Empty if the guest's agent answers, else why not."""
    try:
        _ask(domain, "guest-ping")
    except libvirt.libvirtError as error:
        _raise_if_lost(error)
        return f"guest agent: {error.get_error_message()}"
    return ""


def named_addresses(domain: Any) -> tuple[str, ...]:
    """The addresses that the guest's agent names, those of no use from outside left out; none without an agent."""
    try:
        answer = _interfaces.decode(_ask(domain, "guest-network-get-interfaces"))
    except libvirt.libvirtError as error:
        _raise_if_lost(error)
        return ()
    except msgspec.MsgspecError:
        return ()
    named = (each.address for card in answer.interfaces if card.name != "lo" for each in card.addresses)
    return _usable(named)


def likely_addresses(domain: Any, nics: tuple[NicSpec, ...]) -> tuple[str, ...]:
    """Where the guest should be found: as it was told, else as DHCP gave, else as its agent says."""
    fixed = _usable(nic.address.partition("/")[0] for nic in nics if nic.address is not None)
    return fixed or _leased(domain) or named_addresses(domain)


def _leased(domain: Any) -> tuple[str, ...]:
    try:
        cards = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, 0)
    except libvirt.libvirtError as error:
        _raise_if_lost(error)
        return ()
    return _usable(each["addr"] for card in cards.values() for each in card["addrs"] or ())


def _ask(domain: Any, command: str) -> str:
    return str(libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command}), _AGENT_SECONDS, 0))


def _raise_if_lost(error: libvirt.libvirtError) -> None:
    if error.get_error_domain() == libvirt.VIR_FROM_RPC:
        raise error


def _usable(named: Any) -> tuple[str, ...]:
    found: list[str] = []
    for text in named:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast):
            found.append(str(address))
    return tuple(dict.fromkeys(found))[:_MOST_ADDRESSES]
