"""The lab's own Ethernet: one bridge in the control namespace and a cable from it to each host.

Every link is made between two namespaces of the lab, so the machine's own network never sees one, not even for the
time of a move. All labs use the same addresses; they cannot meet.
"""

import json
import subprocess
from ipaddress import IPv4Address, IPv4Network

from deploy.lab.errors import LabError

SUBNET = IPv4Network("10.64.0.0/16")
CONTROL_ADDRESS = IPv4Address("10.64.0.1")
DHCP_FIRST = IPv4Address("10.64.8.0")
DHCP_LAST = IPv4Address("10.64.15.255")
STATIC_GUESTS = IPv4Network("10.64.16.0/20")
BRIDGE = "lab0"
HOST_BRIDGE = "br0"
MAX_HOSTS = 200


def host_address(index: int) -> IPv4Address:
    """The address of the index-th host, counted from 1."""
    return SUBNET[10 + index]


def host_mac(index: int) -> str:
    """Fixed, since a rebooted host with a new one would be unreachable until its peers' ARP caches expire."""
    return f"52:54:00:64:00:{10 + index:02x}"


def in_namespace(pid: int, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one command in the network namespace of a process, and in no other of its namespaces."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", *argv], capture_output=True, text=True, check=False, timeout=30
    )
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done


def _ip(pid: int, *lines: str) -> None:
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"],
        input="\n".join(lines), capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if done.returncode != 0:
        raise LabError(f"ip {'; '.join(lines)}: {done.stderr.strip()}")


def set_up_control(pid: int) -> None:
    """Give the control namespace its bridge and address."""
    _ip(
        pid,
        "link set lo up",
        f"link add {BRIDGE} address 52:54:00:64:00:01 type bridge forward_delay 0",
        f"address add {CONTROL_ADDRESS}/{SUBNET.prefixlen} dev {BRIDGE}",
        f"link set {BRIDGE} up",
    )


def plug_in(control: int, host: int, index: int) -> None:
    """Lay a cable from the control namespace's bridge to a freshly started host and configure the host's end."""
    unplug(control, index)
    mac = host_mac(index)
    _ip(
        control,
        f"link add v{index} type veth peer name e0 address {mac} netns {host}",
        f"link set v{index} master {BRIDGE} up",
    )
    # the bridge's own address is pinned: it would follow whichever port has the lowest one
    _ip(
        host,
        "link set lo up",
        f"link add {HOST_BRIDGE} address {mac} type bridge forward_delay 0",
        f"link set e0 master {HOST_BRIDGE} up",
        f"address add {host_address(index)}/{SUBNET.prefixlen} dev {HOST_BRIDGE}",
        f"link set {HOST_BRIDGE} up",
    )


def relay(control: int, host: int, index: int) -> None:
    """Lay the cable of a running host again, after the control namespace was lost and with it the bridge."""
    unplug(control, index)
    # the kernel takes a dead namespace's links down in its own time
    in_namespace(host, "ip", "link", "del", "e0", check=False)
    _ip(
        control,
        f"link add v{index} type veth peer name e0 address {host_mac(index)} netns {host}",
        f"link set v{index} master {BRIDGE} up",
    )
    _ip(host, f"link set e0 master {HOST_BRIDGE} up")


def has_cable(control: int, index: int) -> bool:
    return in_namespace(control, "ip", "link", "show", f"v{index}", check=False).returncode == 0


def cable_is_up(control: int, index: int) -> bool:
    done = in_namespace(control, "ip", "-json", "link", "show", f"v{index}", check=False)
    return done.returncode == 0 and "UP" in json.loads(done.stdout)[0]["flags"]


def has_carrier(host: int) -> bool:
    """Whether a host's bridge passes packets."""
    done = in_namespace(host, "ip", "-json", "link", "show", HOST_BRIDGE, check=False)
    return done.returncode == 0 and json.loads(done.stdout)[0]["operstate"] == "UP"


def set_cable(control: int, index: int, *, up: bool) -> None:
    """Pull or plug in the control end of a host's cable; the host sees its carrier go and come."""
    _ip(control, f"link set v{index} {'up' if up else 'down'}")


def unplug(control: int, index: int) -> None:
    """Remove a host's cable. Quiet if there is none."""
    in_namespace(control, "ip", "link", "del", f"v{index}", check=False)
